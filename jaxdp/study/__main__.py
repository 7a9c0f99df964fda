"""Studies that answer questions about training with many runs."""

from __future__ import annotations

from collections.abc import Sequence

from jaxdp.cli import subcommands
from jaxdp.cli.subcommands import Subcommand

STUDIES = {
    "large_batch": Subcommand("jaxdp.study.large_batch", "whether large batches keep the accuracy of small ones"),
}


def main(words: Sequence[str] | None = None) -> None:
    """Runs the study that the first word selects."""
    subcommands.run(
        "study",
        "study",
        STUDIES,
        words,
        about="Answers questions about training with many runs.",
        examples=("mpirun -n 2 jaxdp study large_batch --table=large_batch.md --plot=large_batch.png",),
    )


if __name__ == "__main__":
    main()
