"""Prepares a TensorFlow Datasets (TFDS) data set in array_record format; launch/prepare runs it with TensorFlow.

Files that TFDS cannot download must be in the subfolder downloads/manual of --dir. TFDS's own folder is TFDS_DATA_DIR,
or ~/tensorflow_datasets. If a conversion (--from) is interrupted, run the same command again: it resumes with the
missing shards.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import json
import os
import pathlib
import shutil
import sys
from collections.abc import Sequence
from typing import Any

from jaxdp.cli import parsing, start
from jaxdp.data import tfds_compat
from jaxdp.data.shards import results, writing

_INFO = "dataset_info.json"


def main(words: Sequence[str] | None = None) -> None:
    """Prepares a data set, and prints its folder and the sizes of its splits."""
    parser = parsing.Parser(
        "",
        __doc__,
        examples=(
            "launch/prepare cifar10",
            "launch/prepare imagenet2012 --dir=DIR               with archives in DIR/downloads/manual",
            "launch/prepare imagenet2012 --dir=DIR --from=OTHER  from tfrecord format in OTHER",
        ),
    )
    parser.prog = "launch/prepare"
    parser.add_argument("name", help="name of the data set, as in config.data.name: NAME, NAME:VERSION or NAME/CONFIG")
    parser.add_argument("--dir", type=_folder, help="folder of data sets, for config.data.dir; default: TFDS's own")
    parser.add_argument("--from", type=_folder, dest="other", help="folder of the data set in tfrecord format")
    start.alone(parser, _prepare, words)


def _prepare(given: argparse.Namespace) -> None:
    try:
        if given.other is None:
            folder, infos = _download(given.name, given.dir)
        else:
            folder, infos = convert(given.name, given.other, given.dir)
    except Exception as error:  # TFDS raises many kinds of exceptions, for names, downloads and missing files.
        sys.exit(f"launch/prepare: error: {given.name!r} cannot be prepared: {type(error).__name__}: {error}")
    print(f"{folder}: {', '.join(f'{split} {info.num_examples:,}' for split, info in infos.items())} examples")


def convert(name: str, other: pathlib.Path, data_dir: pathlib.Path | None) -> tuple[pathlib.Path, Any]:
    """Copies the records of a data set from tfrecord to array_record files, and returns its folder and splits.

    Raises:
      ValueError: the data set is missing from `other`, is not in tfrecord format there, or exists in `data_dir`.
    """
    tfds = tfds_compat.import_quiet_tfds()
    builder = tfds_compat.prepared_builder(name, other)
    if builder is None:
        raise ValueError(f"there is no such data set in {other}: --from must be the folder with {name.split(':')[0]}/")
    if builder.info.file_format is not tfds.core.FileFormat.TFRECORD:
        raise ValueError(
            f"--from needs tfrecord format, but the data set in {other} is in {builder.info.file_format.value}"
        )
    source = pathlib.Path(builder.data_path)
    folder = tfds_compat.data_folder(data_dir) / source.relative_to(other)
    if folder.exists():
        raise ValueError(f"a data set already exists in {folder}: delete it, or choose another --dir")
    # jaxdp does not take a folder with this suffix for a data set.
    begun = folder.with_name(f"{folder.name}.incomplete")
    begun.mkdir(parents=True, exist_ok=True)
    infos = builder.info.splits
    lengths = {
        pathlib.Path(path): length
        for info in infos.values()
        for path, length in zip(info.filepaths, info.shard_lengths, strict=True)
    }
    with concurrent.futures.ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        pending = {pool.submit(_convert_shard, path, begun, length): length for path, length in lengths.items()}
        results(pool, pending, unit="examples")
    for path in source.iterdir():
        if path.is_file() and path not in lengths:
            shutil.copyfile(path, begun / path.name)
    info = json.loads((source / _INFO).read_text())
    (begun / _INFO).write_text(json.dumps(info | {"fileFormat": "array_record"}, indent=2))
    begun.rename(folder)
    return folder, infos


def _download(name: str, data_dir: pathlib.Path | None) -> tuple[pathlib.Path, Any]:
    import tensorflow_datasets as tfds

    builder = tfds.builder(name, data_dir=data_dir, file_format="array_record")
    builder.download_and_prepare()
    return pathlib.Path(builder.data_path), builder.info.splits


def _convert_shard(path: pathlib.Path, folder: pathlib.Path, length: int) -> None:
    import tensorflow as tf

    target = folder / path.name.replace(".tfrecord", ".array_record")
    if target.exists():
        return
    count = 0
    with writing(target) as writer:
        for record in tf.data.TFRecordDataset(str(path)).as_numpy_iterator():
            writer.write(record)
            count += 1
        if count != length:
            raise ValueError(f"{path} has {count:,} records instead of {length:,}: replace it with a complete copy")


def _folder(text: str) -> pathlib.Path:
    return pathlib.Path(text).expanduser().absolute()


if __name__ == "__main__":
    main()
