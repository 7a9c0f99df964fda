"""Trials, one after the other, what came of each, and the table of them all."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import pathlib
import random
import shutil
import statistics
import time
from collections.abc import Sequence

from jaxdp import netcluster
from jaxdp.faults.kinds import FAULTS
from jaxdp.faults.trial import SAVE_EVERY, STEPS, Trial, Usual

_RANKS = (2, 3, 4)


@dataclasses.dataclass(frozen=True)
class Row:
    """A trial, as a line of the file.

    Attributes:
      trial: its number, which decides all that is left to chance.
      fault: its kind, a name in `FAULTS`.
      ranks: of its jobs.
      moment: what the job was at.
      detected_s: see `Struck`.
      lost_steps: done before the fault and done again; None if the job went on without another.
      recovered: the job did what it must, and the one that was started after it went on to the end of the run.
      bit_identical: what was saved at the end has the bits of the run to which nothing happened, on as many ranks.
      why_not: if one of them is not so.
    """

    trial: int
    fault: str
    ranks: int
    moment: str
    detected_s: float | None
    lost_steps: int | None
    recovered: bool
    bit_identical: bool
    why_not: str | None = None

    @property
    def is_good(self) -> bool:
        return self.recovered and self.bit_identical


class Campaign:
    """Trials in a folder, with data and compiled programs of their own.

    Args:
      folder: for all of it.
      seed: of what is left to chance.
    """

    def __init__(self, folder: pathlib.Path, seed: int):
        self._folder, self._seed = folder.absolute(), seed
        self._environment = {
            "TFDS_DATA_DIR": str(self._folder / "data"),
            "JAXDP_CACHE_DIR": str(self._folder / "cache"),
        }
        # By the number of ranks, and whether they are on hosts of their own: these have more threads a rank, with which
        # XLA rounds sums in another way.
        self._usual: dict[tuple[int, bool], Usual] = {}

    def carry_out(self, number: int, fault: str) -> Row:
        """The trial of this number.

        Raises:
          RuntimeError: a run fails, or differs from another one, to which nothing has happened.
        """
        chance = random.Random(f"{self._seed} {number}")
        ranks = chance.choice(_RANKS)
        kind = FAULTS[fault]
        usual = self._usual_on(ranks, on_hosts=kind.on_hosts)
        with contextlib.ExitStack() as afterwards:
            trial = self._trial(f"trial-{number}", ranks, chance, usual, afterwards, on_hosts=kind.on_hosts)
            struck = kind.befall(trial)
            why_not, lost = struck.why_not, None
            saves = trial.saves()
            if STEPS not in saves:
                job = trial.start()
                lost = max(0, job.last_step - max(saves, default=0))
                then = trial.goes_on(job)
                why_not = why_not or then
                # A save is under way while the steps up to the next one are done.
                if lost > 2 * SAVE_EVERY:
                    why_not = why_not or f"{lost} steps were lost, with a save every {SAVE_EVERY}"
            is_identical = STEPS in trial.saves() and trial.saved() == usual.saved
            row = Row(
                number, fault, ranks, struck.moment, struck.detected_s, lost, why_not is None, is_identical, why_not
            )
        if row.is_good:
            shutil.rmtree(trial.folder)
        return row

    def _trial(
        self,
        name: str,
        ranks: int,
        chance: random.Random,
        usual: Usual,
        afterwards: contextlib.ExitStack,
        *,
        on_hosts: bool,
    ) -> Trial:
        folder = self._folder / name
        shutil.rmtree(folder, ignore_errors=True)  # of a campaign before
        trial = Trial(folder, ranks, chance, usual, self._environment, afterwards)
        if not on_hosts:
            return trial
        afterwards.enter_context(netcluster.hosts(2))
        return dataclasses.replace(trial, launcher=(str(netcluster.PROGRAM), "run"))

    def _usual_on(self, ranks: int, *, on_hosts: bool) -> Usual:
        if (ranks, on_hosts) not in self._usual:
            # The first one compiles, and so takes longer.
            first, second = (self._without_fault(ranks, attempt, on_hosts=on_hosts) for attempt in range(2))
            if first.saved != second.saved:
                raise RuntimeError(f"without a fault two runs on {ranks} ranks differ, see {self._folder}")
            self._usual[ranks, on_hosts] = second
        return self._usual[ranks, on_hosts]

    def _without_fault(self, ranks: int, attempt: int, *, on_hosts: bool) -> Usual:
        name = f"undisturbed-{ranks}{'-on-hosts' * on_hosts}-{attempt}"
        with contextlib.ExitStack() as afterwards:
            patient = Usual({}, 0.0, 120.0)
            trial = self._trial(name, ranks, random.Random(), patient, afterwards, on_hosts=on_hosts)
            job = trial.start()
            job.wait_until(job.is_complete)
            begin = time.monotonic()
            job.wait_until(lambda: job.last_step > 0)
            trains_s = time.monotonic() - begin
            if why_not := trial.goes_on(job):
                raise RuntimeError(f"without a fault {why_not}, see {trial.folder}")
            return Usual(trial.saved(), trains_s, time.monotonic() - begin)


def read_rows(path: pathlib.Path) -> list[Row]:
    """The rows of the trials before; none if there is no file.

    Raises:
      ValueError: it holds something else.
    """
    if not path.exists():
        return []
    try:
        return [Row(**json.loads(line)) for line in path.read_text().splitlines()]
    except (OSError, TypeError, ValueError) as error:
        raise ValueError(f"{path} cannot be read as rows of trials, one JSON object a line: {error}") from None


def append_row(path: pathlib.Path, row: Row) -> None:
    """Adds a line."""
    with path.open("a") as file:
        file.write(json.dumps(dataclasses.asdict(row)) + "\n")


def table(rows: Sequence[Row]) -> str:
    """In Markdown: a line a kind of fault."""
    columns = (
        "fault",
        "the job",
        "trials",
        "seconds until it was over or had told of it: median, most",
        "steps done again, at most",
        "recovered",
        "same bits",
    )
    lines = [" | ".join(("", *columns, "")).strip(), "|" + "---|" * len(columns)]
    for name, fault in FAULTS.items():
        of_kind = [row for row in rows if row.fault == name]
        if not of_kind:
            continue
        seconds = [row.detected_s for row in of_kind if row.detected_s is not None]
        lost = [row.lost_steps for row in of_kind if row.lost_steps is not None]
        lines.append(
            f"| {fault.what} | {fault.must} | {len(of_kind)} "
            f"| {f'{statistics.median(seconds):.1f}, {max(seconds):.1f}' if seconds else ''} "
            f"| {max(lost) if lost else ''} "
            f"| {sum(row.recovered for row in of_kind)} | {sum(row.bit_identical for row in of_kind)} |"
        )
    return "\n".join(lines)
