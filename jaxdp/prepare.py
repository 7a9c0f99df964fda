"""Converts folders of images into a data set that training can read, in TFDS's array_record format.

SOURCE must contain `train/CLASS/IMAGE` and exactly one of `test`, `validation` or `val` with the same layout (`val`
becomes the split `validation`). Images are files whose names end in .jpg, .jpeg or .png. RGB images in JPEG or PNG
format are stored unchanged unless --size makes them smaller; all other images are converted to RGB. If interrupted,
run the same command again: it resumes with the missing shards. Files that cannot be read as images are skipped, counted
and listed.
"""

from __future__ import annotations

import argparse
import os
import pathlib
from collections.abc import Sequence

from jaxdp.cli import parsing, start
from jaxdp.data import preparation


def main(words: Sequence[str] | None = None) -> None:
    """Prepares a data set and prints a summary."""
    parser = parsing.Parser("prepare", __doc__, examples=("jaxdp prepare --source=photos --name=birds --size=256",))
    add = parser.add_argument
    add("--source", type=pathlib.Path, required=True, help="folder with train/CLASS/IMAGE and test/CLASS/IMAGE")
    add("--name", required=True, help="name of the data set, for config.data.name")
    add("--dir", type=pathlib.Path, help="folder of data sets, for config.data.dir; default: TFDS's own")
    add("--size", type=parsing.number, help="pixels to which the shorter side of larger images is resized")
    add("--processes", type=parsing.number, default=len(os.sched_getaffinity(0)), help="default: one per core")
    start.alone(parser, _prepare, words)


def _prepare(given: argparse.Namespace) -> None:
    print(preparation.prepare(given.source, given.name, given.dir, size=given.size, processes=given.processes))


if __name__ == "__main__":
    main()
