"""Benchmarks of the parts of jaxdp."""

from __future__ import annotations

from collections.abc import Sequence

from jaxdp.cli import subcommands
from jaxdp.cli.subcommands import Subcommand

BENCHMARKS = {
    "allreduce": Subcommand("jaxdp.bench.allreduce", "allreduces of several sizes, algorithms and engines"),
    "step": Subcommand("jaxdp.bench.step", "a training step, its parts, and a lower bound for its time"),
    "staging": Subcommand("jaxdp.bench.staging", "an allreduce through pinned host memory, as on GPUs"),
    "input": Subcommand("jaxdp.bench.input", "the input pipeline from RAM to the devices"),
    "schedule": Subcommand("jaxdp.bench.schedule", "cost and trees of an allreduce schedule; does not need MPI"),
    "scaling": Subcommand("jaxdp.bench.scaling", "predicted allreduce times of many ranks; does not need MPI"),
    "weak": Subcommand("jaxdp.bench.weak", "weak scaling of training steps on virtual hosts of this machine"),
}


def main(words: Sequence[str] | None = None) -> None:
    """Runs the benchmark that the first word selects."""
    subcommands.run(
        "bench",
        "benchmark",
        BENCHMARKS,
        words,
        about="Measures parts of jaxdp.",
        examples=(
            "mpirun -n 4 jaxdp bench allreduce --sizes=1M,25M --algorithms=all",
            "mpirun -n 2 jaxdp bench step --engine=native",
        ),
    )


if __name__ == "__main__":
    main()
