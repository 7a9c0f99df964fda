"""Converts folders of images into a TFDS data set in array_record format, without TensorFlow."""

from __future__ import annotations

import collections
import concurrent.futures
import dataclasses
import io
import itertools
import json
import multiprocessing
import pathlib
from typing import Any

from jaxdp.data import tfds_compat
from jaxdp.data.folders import check_inventory, inventory_of, listed
from jaxdp.data.order import even_bounds
from jaxdp.data.shards import results, writing

VERSION = "1.0.0"
SHARD_BYTES = 64 * 2**20
_JPEG_QUALITY = 95
_MOST_NAMED = 10


@dataclasses.dataclass(frozen=True)
class Shard:
    """A part of a split that one process writes.

    Attributes:
      split: name of the split.
      index: number of this shard in the split, from 0.
      count: number of shards of the split.
      files: image files of the shard, with the indices of their classes.
      folder: folder of the data set.
      size: length of the shorter side of resized images, in pixels; None to store them unchanged.
    """

    split: str
    index: int
    count: int
    files: tuple[tuple[pathlib.Path, int], ...]
    folder: pathlib.Path
    size: int | None

    def path(self, name: str) -> pathlib.Path:
        """Path of the shard's records in a data set of this name."""
        return self.folder / f"{name}-{self.split}.array_record-{self.index:05}-of-{self.count:05}"


@dataclasses.dataclass(frozen=True)
class Written:
    """The contents of a shard.

    Attributes:
      examples: number of examples.
      num_bytes: total size of the records, in bytes.
      unreadable: files that were skipped, each with the reason.
    """

    examples: int
    num_bytes: int
    unreadable: list[str]


def prepare(
    source: pathlib.Path,
    name: str,
    data_dir: pathlib.Path | None,
    *,
    size: int | None = None,
    processes: int = 1,
    shard_bytes: int = SHARD_BYTES,
) -> str:
    """Writes the data set and returns a summary for the user.

    Args:
      source: folder with the images.
      name: name of the data set: lower-case letters, digits and underscores.
      data_dir: folder of the data sets; None for TFDS's own folder.
      size: length in pixels to which the shorter side of larger images is resized; None for no resizing.
      processes: number of processes that read and write.
      shard_bytes: size of the image files in a shard.

    Raises:
      ValueError: the name or the layout of the folders is invalid, the data set exists already, an interrupted
        preparation used other files, a split has no readable image, or the data set cannot be written.
    """
    if not name.isidentifier() or name != name.lower():
        raise ValueError(
            f"--name={name} is not a valid name of a data set: use lower-case letters, digits and underscores, and no "
            "digit first"
        )
    parent = tfds_compat.data_folder(data_dir) / name
    folder, begun = parent / VERSION, parent / f"{VERSION}.begun"
    classes, splits = listed(source)
    inventory = inventory_of(source, splits, size)
    if folder.exists():
        raise ValueError(f"a data set already exists in {folder}: delete it, or choose another --name")
    try:
        begun.mkdir(parents=True, exist_ok=True)
        check_inventory(begun, inventory)
        shards = _shards(splits, begun, size, shard_bytes)
        written = _write_all(shards, name, classes, processes)
        _write_metadata(begun, name, classes, shards, written)
        begun.rename(folder)
    except OSError as error:
        raise ValueError(
            f"cannot write {begun}: {error}. Finished shards are kept: run the command again to resume"
        ) from error
    return _summary(folder, classes, shards, written)


def _shards(
    splits: dict[str, list[tuple[pathlib.Path, int]]], folder: pathlib.Path, size: int | None, shard_bytes: int
) -> list[Shard]:
    shards = []
    for split, files in splits.items():
        total = sum(path.stat().st_size for path, _ in files)
        count = max(1, min(len(files), -(-total // shard_bytes)))
        bounds = even_bounds(len(files), count).tolist()
        for index, part in enumerate(itertools.pairwise(bounds)):
            shards.append(Shard(split, index, count, tuple(files[slice(*part)]), folder, size))
    return shards


def _write_all(shards: list[Shard], name: str, classes: list[str], processes: int) -> list[Written]:
    # Spawn instead of fork, because the libraries below have threads.
    pool = concurrent.futures.ProcessPoolExecutor(processes, multiprocessing.get_context("spawn"))
    with pool:
        pending = {pool.submit(write_shard, shard, name, classes): len(shard.files) for shard in shards}
        return results(pool, pending, unit="images")


def write_shard(shard: Shard, name: str, classes: list[str]) -> Written:
    """Writes one shard, completely or not at all, and returns its contents; a shard that exists is kept."""
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
            except Exception as error:  # Pillow raises many kinds of exceptions on invalid images.
                unreadable.append(f"{file}: {type(error).__name__}: {error}")
                continue
            record = features.serialize_example(features.encode_example({"image": content, "label": label}))
            writer.write(record)
            num_examples, num_bytes = num_examples + 1, num_bytes + len(record)
        written = Written(num_examples, num_bytes, unreadable)
        note.write_text(json.dumps(dataclasses.asdict(written)))
    return written


def _image(path: pathlib.Path, size: int | None) -> bytes:
    """The file to store. Decodes it as a check; encodes it again if it is resized or is not an RGB JPEG or PNG file."""
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
        assert size is not None, "an image is made smaller only if a size is set"
        scale = size / min(plain.size)
        plain = plain.resize(
            (max(size, round(plain.width * scale)), max(size, round(plain.height * scale))), Image.Resampling.BICUBIC
        )
    file = io.BytesIO()
    plain.save(file, kind, **({"quality": _JPEG_QUALITY} if kind == "JPEG" else {}))
    return file.getvalue()


def _features(classes: list[str]) -> Any:
    tfds = tfds_compat.import_quiet_tfds()
    return tfds.features.FeaturesDict(
        {"image": tfds.features.Image(shape=(None, None, 3)), "label": tfds.features.ClassLabel(names=classes)}
    )


def _write_metadata(
    folder: pathlib.Path, name: str, classes: list[str], shards: list[Shard], written: list[Written]
) -> None:
    tfds = tfds_compat.import_quiet_tfds()
    infos = []
    for split in dict.fromkeys(shard.split for shard in shards):
        parts = [done for shard, done in zip(shards, written, strict=True) if shard.split == split]
        if not sum(part.examples for part in parts):
            raise ValueError(f"no image of the split {split!r} can be read: check that its files are images")
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
        lines += [f"skipped {len(unreadable):,} files that are not readable images, see {folder / 'unreadable.txt'}:"]
        lines += [f"  {line}" for line in unreadable[:_MOST_NAMED]]
    return "\n".join(lines)
