"""Turns folders of images into a data set that jaxdp trains on: TFDS, in array_record format, without TensorFlow.

  python -m jaxdp.data.prepare --source=photos --name=birds

`photos` holds `train/CLASS/IMAGE` and one of `test`, `validation` or `val` likewise (the split of `val` is named
`validation`); images are JPEG or PNG files, by their names (.jpg, .jpeg, .png). They are stored as they are, or resized
(--size). Started again after it was stopped, it goes on with the shards that are not there yet. Files that are no
images are left out, counted and named.
"""

from __future__ import annotations

import argparse
import collections
import concurrent.futures
import dataclasses
import io
import itertools
import json
import multiprocessing
import os
import pathlib
import sys
from collections.abc import Sequence
from typing import Any

from jaxdp import compat, parse
from jaxdp.data.folders import check_inventory, inventory_of, listed
from jaxdp.data.order import even_bounds
from jaxdp.data.shards import results, writing
from jaxdp.world import USER_ERROR

VERSION = "1.0.0"
_SHARD_BYTES = 64 * 2**20
_JPEG_QUALITY = 95
_MOST_NAMED = 10


@dataclasses.dataclass(frozen=True)
class Shard:
    """A part of a split, for one process to write.

    Attributes:
      split, index, count: shard `index` of `count` of the split.
      files: its images and the indices of their classes.
      folder: of the data set.
      size: of the shorter side of resized images; None to store them as they are.
    """

    split: str
    index: int
    count: int
    files: tuple[tuple[pathlib.Path, int], ...]
    folder: pathlib.Path
    size: int | None

    def path(self, name: str) -> pathlib.Path:
        """Of its records, for a data set of this name."""
        return self.folder / f"{name}-{self.split}.array_record-{self.index:05}-of-{self.count:05}"


@dataclasses.dataclass(frozen=True)
class Written:
    """What is in a shard.

    Attributes:
      examples: how many.
      num_bytes: of their records.
      unreadable: files that were left out, each with the reason.
    """

    examples: int
    num_bytes: int
    unreadable: list[str]


def main(words: Sequence[str]) -> None:
    """Prepares, and says what it did."""
    try:
        given = _parser().parse_args(words)
        print(prepare(given.source, given.name, given.dir, size=given.size, processes=given.processes))
    except ValueError as error:
        print(f"jaxdp: error: {error}", file=sys.stderr)
        sys.exit(USER_ERROR)


def prepare(
    source: pathlib.Path, name: str, data_dir: pathlib.Path | None, *, size: int | None = None, processes: int = 1
) -> str:
    """Writes the data set; returns words about it for a person.

    Args:
      source: the folder with the images.
      name: of the data set: small letters, digits and underscores.
      data_dir: where data sets are; None for TFDS's own folder.
      size: to which the shorter side of larger images is resized; None to store files as they are.
      processes: that read and write at once.

    Raises:
      ValueError: the folders are not as they must be, or the data set is there already, made of other files.
    """
    if not name.isidentifier() or name != name.lower():
        raise ValueError(f"the name of a data set has small letters, digits and underscores: --name={name} has others")
    parent = compat.data_folder(data_dir) / name
    folder, begun = parent / VERSION, parent / f"{VERSION}.begun"
    classes, splits = listed(source)
    inventory = inventory_of(source, splits, size)
    if folder.exists():
        raise ValueError(f"there is a data set in {folder} already: remove it, or choose another --name")
    try:
        begun.mkdir(parents=True, exist_ok=True)
        check_inventory(begun, inventory)
        shards = _shards(splits, begun, size)
        written = _write_all(shards, name, classes, processes)
        _write_metadata(begun, name, classes, shards, written)
        begun.rename(folder)
    except OSError as error:
        raise ValueError(
            f"{begun} cannot be written: {error}: what is there already is kept for the next start"
        ) from error
    return _summary(folder, classes, shards, written)


def _parser() -> parse.Parser:
    parser = parse.Parser("jaxdp.data.prepare", description=__doc__, allow_abbrev=False)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    add = parser.add_argument
    add("--source", type=pathlib.Path, required=True, help="the folder with train/CLASS/IMAGE and test/CLASS/IMAGE")
    add("--name", required=True, help="of the data set: config.data.name")
    add("--dir", type=pathlib.Path, help="where data sets are: config.data.dir; default: TFDS's own folder")
    add("--size", type=parse.number, help="resize the shorter side of larger images to so many pixels")
    add("--processes", type=parse.number, default=len(os.sched_getaffinity(0)), help="default: one a core")
    return parser


def _shards(splits: dict[str, list[tuple[pathlib.Path, int]]], folder: pathlib.Path, size: int | None) -> list[Shard]:
    shards = []
    for split, files in splits.items():
        total = sum(path.stat().st_size for path, _ in files)
        count = max(1, min(len(files), -(-total // _SHARD_BYTES)))
        bounds = even_bounds(len(files), count).tolist()
        for index, part in enumerate(itertools.pairwise(bounds)):
            shards.append(Shard(split, index, count, tuple(files[slice(*part)]), folder, size))
    return shards


def _write_all(shards: list[Shard], name: str, classes: list[str], processes: int) -> list[Written]:
    # Not forked: the libraries below have threads.
    pool = concurrent.futures.ProcessPoolExecutor(processes, multiprocessing.get_context("spawn"))
    with pool:
        pending = {pool.submit(write_shard, shard, name, classes): len(shard.files) for shard in shards}
        return results(pool, pending, unit="images")


def write_shard(shard: Shard, name: str, classes: list[str]) -> Written:
    """Writes one shard, unless it is there; whole, or not at all."""
    path = shard.path(name)
    note = path.with_name(f"{path.name}.json")
    if path.exists() and note.exists():
        return Written(**json.loads(note.read_text()))
    features = _features(classes)
    num_examples, num_bytes, unreadable = 0, 0, []
    with writing(path) as writer:
        for file, label in shard.files:
            try:
                content = _image(file, shard.size)
            except Exception as error:  # Pillow raises whatever it likes on what is no image.
                unreadable.append(f"{file}: {type(error).__name__}: {error}")
                continue
            record = features.serialize_example(features.encode_example({"image": content, "label": label}))
            writer.write(record)
            num_examples, num_bytes = num_examples + 1, num_bytes + len(record)
        written = Written(num_examples, num_bytes, unreadable)
        note.write_text(json.dumps(dataclasses.asdict(written)))
    return written


def _image(path: pathlib.Path, size: int | None) -> bytes:
    """The file as it is stored: decoded once to see that it can be, written anew if it is no RGB JPEG or PNG."""
    from PIL import Image

    content = path.read_bytes()
    with Image.open(io.BytesIO(content)) as image:
        image.load()
        smaller = size is not None and min(image.size) > size
        if image.format in ("JPEG", "PNG") and image.mode == "RGB" and not smaller:
            return content
        kind = "PNG" if image.format == "PNG" else "JPEG"
        plain = image.convert("RGB")
    if smaller:
        assert size is not None
        scale = size / min(plain.size)
        plain = plain.resize(
            (max(size, round(plain.width * scale)), max(size, round(plain.height * scale))), Image.Resampling.BICUBIC
        )
    anew = io.BytesIO()
    plain.save(anew, kind, **({"quality": _JPEG_QUALITY} if kind == "JPEG" else {}))
    return anew.getvalue()


def _features(classes: list[str]) -> Any:
    tfds = compat.import_tfds()
    return tfds.features.FeaturesDict(
        {"image": tfds.features.Image(shape=(None, None, 3)), "label": tfds.features.ClassLabel(names=classes)}
    )


def _write_metadata(
    folder: pathlib.Path, name: str, classes: list[str], shards: list[Shard], written: list[Written]
) -> None:
    tfds = compat.import_tfds()
    infos = []
    for split in dict.fromkeys(shard.split for shard in shards):
        parts = [done for shard, done in zip(shards, written, strict=True) if shard.split == split]
        if not sum(part.examples for part in parts):
            raise ValueError(f"no file of the split {split!r} is an image that can be read")
        template = tfds.core.ShardedFileTemplate(
            dataset_name=name, data_dir=folder, split=split, filetype_suffix="array_record"
        )
        infos.append(
            tfds.core.SplitInfo(
                name=split,
                shard_lengths=[part.examples for part in parts],
                num_bytes=sum(part.num_bytes for part in parts),
                filename_template=template,
            )
        )
    tfds.folder_dataset.write_metadata(
        data_dir=folder, features=_features(classes), split_infos=infos, filename_template=None, check_data=False
    )
    for extra in [folder / "inventory", *folder.glob("*.half"), *(folder.glob("*-of-*.json"))]:
        extra.unlink()
    unreadable = [line for one in written for line in one.unreadable]
    if unreadable:
        (folder / "unreadable.txt").write_text("\n".join(unreadable) + "\n")


def _summary(folder: pathlib.Path, classes: list[str], shards: list[Shard], written: list[Written]) -> str:
    counts: dict[str, int] = collections.defaultdict(int)
    for shard, one in zip(shards, written, strict=True):
        counts[shard.split] += one.examples
    unreadable = [line for one in written for line in one.unreadable]
    size = sum(one.num_bytes for one in written) / 2**20
    images = ", ".join(f"{split} {count:,}" for split, count in counts.items())
    lines = [f"{folder}: {images} images of {len(classes)} classes, {size:.1f} MiB"]
    if unreadable:
        lines += [f"{len(unreadable):,} files are no images and were left out, see {folder / 'unreadable.txt'}:"]
        lines += [f"  {line}" for line in unreadable[:_MOST_NAMED]]
    return "\n".join(lines)


if __name__ == "__main__":
    main(sys.argv[1:])
