"""Runs fault-injection trials one after another and tabulates their results."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import pathlib
import random
import shutil
import statistics
import time
from collections.abc import Iterable, Iterator, Sequence

from jaxdp.bench import netcluster
from jaxdp.faults.kinds import FAULTS
from jaxdp.faults.trial import SAVE_EVERY, STEPS, Baseline, Trial

_RANKS = (2, 3, 4)


@dataclasses.dataclass(frozen=True)
class TrialRow:
    """The result of one trial, stored as one line of the file.

    Attributes:
      trial: number of the trial; together with the seed of the campaign it determines all random choices.
      fault: kind of the fault, a name in `FAULTS`.
      ranks: number of ranks of each job.
      moment: what the job was doing when the fault was injected.
      detected_s: seconds from the fault until the job exited or reported it; None if neither was expected.
      lost_steps: number of steps done before the fault and repeated after it; None if no second job was needed.
      recovered: whether the job reacted as it must and the run was then finished.
      bit_identical: whether the final checkpoint equals that of a run without a fault on the same number of ranks,
        including the hash of all bits of the state.
      why_not: why the run did not recover; None if it did.
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
    """A series of trials in one folder, with its own data set and compilation cache.

    Args:
      folder: folder for the trials, the data and the cache.
      seed: seed of all random choices.
    """

    def __init__(self, folder: pathlib.Path, seed: int):
        self._folder, self._seed = folder.absolute(), seed
        self._environment = {
            "TFDS_DATA_DIR": str(self._folder / "data"),
            "JAXDP_CACHE_DIR": str(self._folder / "cache"),
        }
        # Keyed by the number of ranks and whether they run on netcluster hosts: a rank has more threads there, and with
        # a different number of threads XLA rounds sums differently.
        self._baselines: dict[tuple[int, bool], Baseline] = {}

    def carry_out_all(self, numbers: Iterable[int], faults: Sequence[str]) -> Iterator[TrialRow]:
        """Runs trials, injecting the faults in turn; prints and yields the row of each."""
        for number in numbers:
            row = self.carry_out(number, faults[number % len(faults)])
            seconds = "" if row.detected_s is None else f", {row.detected_s:.1f} s"
            outcome = "recovered, bit-identical" if row.is_good else f"FAILED: {row.why_not or 'not bit-identical'}"
            print(f"trial {number}: {row.fault} on {row.ranks} ranks, {row.moment}{seconds}: {outcome}", flush=True)
            yield row

    def carry_out(self, number: int, fault: str) -> TrialRow:
        """Runs one trial.

        Args:
          number: number of the trial.
          fault: kind of the fault, a name in `FAULTS`.

        Raises:
          RuntimeError: a run without a fault fails, or two such runs differ.
        """
        chance = random.Random(f"{self._seed} {number}")
        ranks = chance.choice(_RANKS)
        kind = FAULTS[fault]
        baseline = self._baseline_on(ranks, on_hosts=kind.on_hosts)
        with contextlib.ExitStack() as afterwards:
            trial = self._trial(f"trial-{number}", ranks, chance, baseline, afterwards, on_hosts=kind.on_hosts)
            result = kind.inject(trial)
            why_not, lost = result.why_not, None
            saves = trial.saves()
            if STEPS not in saves:
                job = trial.start()
                lost = max(0, job.last_step - max(saves, default=0))
                then = trial.goes_on(job)
                why_not = why_not or then
                # Saving is asynchronous: the newest checkpoint may still be incomplete when the next one is due.
                if lost > 2 * SAVE_EVERY:
                    why_not = why_not or f"{lost} steps lost, with a checkpoint every {SAVE_EVERY} steps"
            is_identical = STEPS in trial.saves() and trial.saved() == baseline.saved
            row = TrialRow(
                number, fault, ranks, result.moment, result.detected_s, lost, why_not is None, is_identical, why_not
            )
        if row.is_good:
            shutil.rmtree(trial.folder)
        return row

    def _trial(
        self,
        name: str,
        ranks: int,
        chance: random.Random,
        baseline: Baseline,
        afterwards: contextlib.ExitStack,
        *,
        on_hosts: bool,
    ) -> Trial:
        folder = self._folder / name
        shutil.rmtree(folder, ignore_errors=True)  # left by an earlier campaign
        trial = Trial(folder, ranks, chance, baseline, self._environment, afterwards)
        if not on_hosts:
            return trial
        afterwards.enter_context(netcluster.hosts(2))
        return dataclasses.replace(trial, launcher=(str(netcluster.PROGRAM), "run"))

    def _baseline_on(self, ranks: int, *, on_hosts: bool) -> Baseline:
        if (ranks, on_hosts) not in self._baselines:
            # The first run compiles and so takes longer. The times of the second are used.
            first, second = (self._without_fault(ranks, attempt, on_hosts=on_hosts) for attempt in range(2))
            if first.saved != second.saved:
                raise RuntimeError(f"two runs without a fault on {ranks} ranks differ: see {self._folder}")
            self._baselines[ranks, on_hosts] = second
        return self._baselines[ranks, on_hosts]

    def _without_fault(self, ranks: int, attempt: int, *, on_hosts: bool) -> Baseline:
        name = f"undisturbed-{ranks}{'-on-hosts' * on_hosts}-{attempt}"
        with contextlib.ExitStack() as afterwards:
            patient = Baseline({}, 0.0, 120.0)
            trial = self._trial(name, ranks, random.Random(), patient, afterwards, on_hosts=on_hosts)
            job = trial.start()
            job.wait_until(job.is_complete)
            begin = time.monotonic()
            job.wait_until(lambda: job.last_step > 0)
            trains_s = time.monotonic() - begin
            if why_not := trial.goes_on(job):
                raise RuntimeError(f"without a fault {why_not}: see {trial.folder}")
            return Baseline(trial.saved(), trains_s, time.monotonic() - begin)


def read_rows(path: pathlib.Path) -> list[TrialRow]:
    """Reads the rows of earlier trials; returns an empty list if the file does not exist.

    Raises:
      ValueError: the file cannot be read or contains anything other than rows.
    """
    if not path.exists():
        return []
    try:
        return [TrialRow(**json.loads(line)) for line in path.read_text().splitlines()]
    except (OSError, TypeError, ValueError) as error:
        raise ValueError(f"cannot read {path} as rows of trials, one JSON object per line: {error}") from None


def append_row(path: pathlib.Path, row: TrialRow) -> None:
    """Appends a row to the file as one line of JSON."""
    with path.open("a") as file:
        file.write(json.dumps(dataclasses.asdict(row)) + "\n")


def table(rows: Sequence[TrialRow]) -> str:
    """Returns a Markdown table with one line per kind of fault."""
    columns = (
        "fault",
        "expected",
        "trials",
        "seconds until exit or report: median, max",
        "steps repeated, max",
        "recovered",
        "bit-identical",
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
