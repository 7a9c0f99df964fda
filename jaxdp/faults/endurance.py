"""Runs a long job with more ranks than cores and checks it for leaks.

Prints the resident memory, open files and threads of every rank after warm-up and at the end. Exits with code 1 if the
memory of a rank has grown by more than 2 %, or its number of files or threads has grown at all.

TensorStore's worker threads are counted separately and not compared. They start with a save and exit after 20 s without
work (TensorStore's internal/thread/pool_impl.cc), so their number only reflects the time since the last save.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import os
import pathlib
import statistics
import sys
import time
from collections.abc import Sequence
from typing import NamedTuple

from jaxdp.cli import parsing, start
from jaxdp.faults.job import Job
from jaxdp.runtime.exit_codes import INTERNAL_ERROR, SUCCESS
from jaxdp.runtime.world import Failure

_EVERY_S = 1.0
# Fractions of the steps: the samples taken in these two intervals are compared.
_WARM, _LAST = (0.1, 0.2), (0.9, 1.0)
_MOST_GROWTH = 0.02
_WORKER = "ts_pool_worker"


class Use(NamedTuple):
    """Resource use of a process.

    Attributes:
      mib: resident memory in MiB.
      files: number of open files.
      threads: number of threads, without TensorStore's workers.
      workers: number of TensorStore's worker threads.
    """

    mib: float
    files: int
    threads: int
    workers: int

    @classmethod
    def of(cls, pid: int) -> Use:
        """Measures a running process."""
        folder = pathlib.Path("/proc", str(pid))
        pages = int((folder / "statm").read_text().split()[1])
        mib = pages * os.sysconf("SC_PAGE_SIZE") / 2**20
        names = [path.read_text().strip() for path in folder.glob("task/*/comm")]
        workers = names.count(_WORKER)
        return cls(mib, len(list((folder / "fd").iterdir())), len(names) - workers, workers)

    @classmethod
    def middle(cls, uses: Sequence[Use]) -> Use:
        """Returns the median of each quantity."""
        return cls(*(statistics.median(column) for column in zip(*uses, strict=True)))


@dataclasses.dataclass(frozen=True)
class Growth:
    """Resource use of a rank after warm-up and at the end."""

    rank: int
    warm: Use
    last: Use

    @property
    def of_memory(self) -> float:
        return self.last.mib / self.warm.mib - 1

    @property
    def is_flat(self) -> bool:
        return (
            self.of_memory <= _MOST_GROWTH
            and self.last.files <= self.warm.files
            and self.last.threads <= self.warm.threads
        )


def watch(job: Job, steps: int) -> list[tuple[int, dict[int, Use]]]:
    """Samples the step and the resource use of every rank about once a second until the job ends."""
    samples = []
    while job.lives_on(_EVERY_S):
        with contextlib.suppress(OSError):
            uses = {rank: Use.of(pid) for rank, pid in job.processes().items()}
            if (step := job.last_step) < steps:
                samples.append((step, uses))
    return samples


def growth(samples: Sequence[tuple[int, dict[int, Use]]], steps: int, ranks: int) -> list[Growth]:
    """Returns the growth of each rank, from medians over the intervals `_WARM` and `_LAST` of the steps."""

    def between(part: tuple[float, float], rank: int) -> Use:
        return Use.middle([uses[rank] for step, uses in samples if part[0] <= step / steps <= part[1]])

    return [Growth(rank, between(_WARM, rank), between(_LAST, rank)) for rank in range(ranks)]


def main(words: Sequence[str] | None = None) -> None:
    """Runs the job and prints the table."""
    parser = parsing.Parser("faults endurance", __doc__, examples=("jaxdp faults endurance --ranks=8 --steps=10000",))
    parser.add_argument("--ranks", type=parsing.number, default=8, help="number of ranks")
    parser.add_argument("--steps", type=parsing.number, default=10_000, help="length of the job in training steps")
    parser.add_argument("--json", type=pathlib.Path, help="write the table and all samples to this file")
    parser.add_argument(
        "--workdir", type=pathlib.Path, default="runs/endurance", help="folder of the run; must not exist"
    )
    start.alone(parser, _run, words)


def _run(arguments: argparse.Namespace) -> int:
    parsing.check_writable(arguments.json)
    parsing.program("mpirun")
    if arguments.workdir.exists():
        raise ValueError(f"the workdir {arguments.workdir} already exists: choose another --workdir")
    steps, ranks, workdir = arguments.steps, arguments.ranks, arguments.workdir.absolute()
    workdir.mkdir(parents=True)
    often = (f"--config.eval_every_steps={steps // 20}", f"--config.checkpoint.every_steps={steps // 20}")
    command = ["mpirun", "-n", str(ranks), sys.executable, "-m", "jaxdp.train", f"--config.steps={steps}", *often]
    begin = time.monotonic()
    job = Job(command, ranks=ranks, workdir=workdir, log=workdir / "log", environment=os.environ)
    with contextlib.closing(job):
        samples = watch(job, steps)
        if job.wait(60.0) != 0:
            raise Failure(f"the job failed: {job.error}: see {workdir / 'log'}")
    rows = growth(samples, steps, ranks)
    print(f"{ranks} ranks on {len(os.sched_getaffinity(0))} cores, {steps} steps in {time.monotonic() - begin:.0f} s")
    print("rank  MiB warm  at the end  growth   files  threads  workers")
    for row in rows:
        print(
            f"{row.rank:4} {row.warm.mib:9.1f} {row.last.mib:11.1f} {row.of_memory:+7.2%}  {row.warm.files:g} to "
            f"{row.last.files:g}  {row.warm.threads:g} to {row.last.threads:g}  {row.warm.workers:g} to "
            f"{row.last.workers:g}"
        )
    if arguments.json:
        parsing.write_json(arguments.json, {"rows": [dataclasses.asdict(row) for row in rows], "samples": samples})
    return SUCCESS if all(row.is_flat for row in rows) else INTERNAL_ERROR


if __name__ == "__main__":
    main()
