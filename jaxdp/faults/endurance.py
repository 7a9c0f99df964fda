"""Has a job go on for long, more ranks than cores, and looks whether it grows.

  python -m jaxdp.faults.endurance --ranks=8 --steps=10000

Prints resident memory, open files and threads of every rank, once it has warmed up and at the end. Ends with code 1 if
memory has grown by more than 2 %, or anything else at all.

TensorStore's workers are counted apart and not compared: they come with a save and go after 20 s without work (its
internal/thread/pool_impl.cc), so that how many there are says how long ago a save was.
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

from jaxdp import parse
from jaxdp.faults.job import Job
from jaxdp.world import INTERNAL_ERROR, USER_ERROR

_EVERY_S = 1.0
# Parts of the steps: what is measured in each is compared.
_WARM, _LAST = (0.1, 0.2), (0.9, 1.0)
_MOST_GROWTH = 0.02
_WORKER = "ts_pool_worker"


class Use(NamedTuple):
    """What a process takes.

    Attributes:
      mib: of resident memory.
      files, threads: how many, without TensorStore's workers.
      workers: these.
    """

    mib: float
    files: int
    threads: int
    workers: int

    @classmethod
    def of(cls, pid: int) -> Use:
        """Of a process that lives."""
        folder = pathlib.Path("/proc", str(pid))
        pages = int((folder / "statm").read_text().split()[1])
        mib = pages * os.sysconf("SC_PAGE_SIZE") / 2**20
        names = [path.read_text().strip() for path in folder.glob("task/*/comm")]
        workers = names.count(_WORKER)
        return cls(mib, len(list((folder / "fd").iterdir())), len(names) - workers, workers)

    @classmethod
    def middle(cls, uses: Sequence[Use]) -> Use:
        """The median of each."""
        return cls(*(statistics.median(column) for column in zip(*uses, strict=True)))


@dataclasses.dataclass(frozen=True)
class Growth:
    """Of a rank: what it took once it had warmed up, and at the end."""

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
    """What all ranks take, about every second until the job is over: the step, and what each takes."""
    samples = []
    while job.lives_on(_EVERY_S):
        with contextlib.suppress(OSError):
            uses = {rank: Use.of(pid) for rank, pid in job.processes().items()}
            if (step := job.last_step) < steps:
                samples.append((step, uses))
    return samples


def growth(samples: Sequence[tuple[int, dict[int, Use]]], steps: int, ranks: int) -> list[Growth]:
    """Of each rank, see `_WARM` and `_LAST`."""

    def between(part: tuple[float, float], rank: int) -> Use:
        return Use.middle([uses[rank] for step, uses in samples if part[0] <= step / steps <= part[1]])

    return [Growth(rank, between(_WARM, rank), between(_LAST, rank)) for rank in range(ranks)]


def main(words: Sequence[str]) -> int:
    """The command; the code to exit with."""
    parser = parse.Parser("jaxdp.faults.endurance", description=__doc__, allow_abbrev=False)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--ranks", type=parse.number, default=8, help="default %(default)s")
    parser.add_argument("--steps", type=parse.number, default=10_000, help="default %(default)s")
    parser.add_argument("--json", type=pathlib.Path, help="a file for the table, and for what it is made of")
    parser.add_argument(
        "--workdir", type=pathlib.Path, default=pathlib.Path("runs/endurance"), help="default %(default)s"
    )
    try:
        arguments = parser.parse_args(words)
        parse.check_writable(arguments.json)
        parse.program("mpirun")
        if arguments.workdir.exists():
            raise ValueError(f"the workdir {arguments.workdir} is there already: choose another --workdir")
    except ValueError as error:
        print(f"jaxdp: error: {error}", file=sys.stderr)
        return USER_ERROR
    steps, ranks, workdir = arguments.steps, arguments.ranks, arguments.workdir.absolute()
    workdir.mkdir(parents=True)
    often = (f"--config.eval_every_steps={steps // 20}", f"--config.checkpoint.every_steps={steps // 20}")
    command = ["mpirun", "-n", str(ranks), sys.executable, "-m", "jaxdp.train", f"--config.steps={steps}", *often]
    begin = time.monotonic()
    job = Job(command, ranks=ranks, workdir=workdir, log=workdir / "log", environment=os.environ)
    with contextlib.closing(job):
        samples = watch(job, steps)
        if job.wait(60.0) != 0:
            print(f"jaxdp: error: the job did not end well: {job.error}, see {workdir / 'log'}", file=sys.stderr)
            return INTERNAL_ERROR
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
        parse.write_json(arguments.json, {"rows": [dataclasses.asdict(row) for row in rows], "samples": samples})
    return 0 if all(row.is_flat for row in rows) else INTERNAL_ERROR


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
