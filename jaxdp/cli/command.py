"""The command `jaxdp`, which is also `python -m jaxdp`."""

from __future__ import annotations

import pathlib
import sys
from collections.abc import Sequence

from jaxdp.cli import subcommands
from jaxdp.cli.subcommands import Subcommand

COMMANDS = {
    "train": Subcommand("jaxdp.train", "train a network on all ranks"),
    "evaluate": Subcommand("jaxdp.evaluate", "evaluate the latest checkpoint of a run on the test split"),
    "predict": Subcommand("jaxdp.predict", "classify images with a trained network"),
    "prepare": Subcommand("jaxdp.prepare", "convert folders of images into a data set"),
    "explain": Subcommand("jaxdp.explain", "describe what a config would do, without its data and its cluster"),
    "doctor": Subcommand("jaxdp.doctor", "check whether training can run here, and say how to fix each problem"),
    "bench": Subcommand("jaxdp.bench.__main__", "measure parts of jaxdp, such as allreduce, step and input"),
    "study": Subcommand("jaxdp.study.__main__", "answer a question about training with many runs"),
    "faults": Subcommand("jaxdp.faults.__main__", "inject faults into jobs and check that no progress is lost"),
    "supervise": Subcommand("jaxdp.supervise", "keep a run going on hosts that come and go, without a scheduler"),
}
"""All commands by name. Names of modules in place of imports keep `jaxdp --help` quick."""


def main(words: Sequence[str] | None = None) -> None:
    """Runs the command that the first word of the command line selects."""
    # Users' objects ("module:Name") are found in the current folder, as with `python -m`.
    here = str(pathlib.Path.cwd())
    if not sys.flags.safe_path and here not in sys.path:
        sys.path.insert(0, here)
    subcommands.run(
        "",
        "command",
        COMMANDS,
        words,
        about="Trains image networks with synchronous data parallelism on MPI clusters.",
        examples=(
            "mpirun -n 4 jaxdp train --config=digits --workdir=runs/digits",
            "mpirun -n 4 jaxdp evaluate --workdir=runs/digits",
            "jaxdp predict --workdir=runs/digits photo.png",
        ),
    )
