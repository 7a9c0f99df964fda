"""Checks whether training can run here, alone or under mpirun, and says how to fix each problem.

Ends with "ready" and exit code 0, or with a to-do list and exit code 2. Warnings do not prevent "ready".
"""

from __future__ import annotations

import pathlib
from collections.abc import Sequence

from jaxdp.cli import parsing, start
from jaxdp.trainer import diagnosis


def main(words: Sequence[str] | None = None) -> None:
    """Runs the command on every rank."""
    parser = parsing.Parser(
        "doctor", __doc__, examples=("jaxdp doctor", "mpirun -n 4 jaxdp doctor --workdir=/shared/runs")
    )
    parser.add_argument(
        "--workdir", type=pathlib.Path, default="runs", metavar="FOLDER", help="folder in which runs will be saved"
    )
    start.on_ranks(parser, lambda given, world: diagnosis.examine(given.workdir, world), words)


if __name__ == "__main__":
    main()
