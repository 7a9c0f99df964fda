"""Classifies images with a trained network. Under mpirun the images are divided among the ranks."""

from __future__ import annotations

import argparse
import json
import pathlib
from collections.abc import Sequence

from jaxdp.cli import parsing, start
from jaxdp.runtime.world import World
from jaxdp.trainer import prediction


def main(words: Sequence[str] | None = None) -> None:
    """Runs the command on every rank."""
    parser = parsing.Parser(
        "predict", __doc__, examples=("jaxdp predict --workdir=runs/digits --top=3 photo.png folder/",)
    )
    add = parser.add_argument
    add("--workdir", type=pathlib.Path, required=True, metavar="FOLDER", help="folder of the run or a checkpoint")
    add("--top", type=parsing.number, default=5, metavar="N", help="number of classes per image, most likely first")
    add("--json", type=pathlib.Path, metavar="FILE", help="also write the predictions here, a line of JSON per image")
    add("images", type=pathlib.Path, nargs="+", help="image files, or folders, of which all files are taken")
    start.on_ranks(parser, _predict, words, check=lambda given, _: parsing.check_writable(given.json))


def _predict(arguments: argparse.Namespace, world: World) -> None:
    found = prediction.predict(arguments.workdir, arguments.images, world, num_classes=arguments.top)
    if world.is_root:
        for line in found:
            print(line["image"], *(f" {name} {share:.4f}" for name, share in line["classes"]), flush=True)
    with world.agree_or_exit():
        if world.is_root and arguments.json:
            parsing.write_text(arguments.json, "\n".join(map(json.dumps, found)))


if __name__ == "__main__":
    main()
