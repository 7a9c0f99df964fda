"""One run that a fault befalls: its jobs, and the moment at which it does."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import pathlib
import random
import shutil
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from jaxdp.checkpoint import Checkpoints
from jaxdp.faults.job import Job
from jaxdp.workdir import CHECKPOINTS

STEPS, SAVE_EVERY, EVALUATE_EVERY = 240, 8, 24
WATCHDOG_S = 6.0
# The default config, with many moments of every kind: saves and evaluations often, and a line of metrics a step.
ARGUMENTS = (
    f"--config.steps={STEPS}",
    f"--config.checkpoint.every_steps={SAVE_EVERY}",
    f"--config.eval_every_steps={EVALUATE_EVERY}",
    "--config.log_every_steps=1",
    f"--config.safety.watchdog_seconds={WATCHDOG_S}",
)
# No fault waits for one of the last steps: the job may be over before it comes.
_LATEST = STEPS - 24


class Usual(NamedTuple):
    """What a job does to which nothing happens.

    Attributes:
      saved: what it saves beside the last state: among it the hash of all its bits.
      trains_s: from when all its ranks are there to its first step.
      ends_s: from then to its end.
    """

    saved: dict[str, Any]
    trains_s: float
    ends_s: float


class Struck(NamedTuple):
    """What came of a fault.

    Attributes:
      moment: what the job was at.
      detected_s: from the fault until the job was over or had told of it; None if it was to go on without a word.
      why_not: how the job did not do what it must; None if it did.
    """

    moment: str
    detected_s: float | None
    why_not: str | None


@dataclasses.dataclass(frozen=True)
class Trial:
    """Of a campaign.

    Attributes:
      folder: for this trial alone.
      ranks: of its jobs.
      chance: decides what is left to it.
      usual: what a job does to which nothing happens.
      environment: of its jobs, beside that of this process.
      afterwards: what is to be done once the trial is over.
      launcher: of its jobs: words before the number of ranks.
      arguments: of its jobs, beside those that all have.
    """

    folder: pathlib.Path
    ranks: int
    chance: random.Random
    usual: Usual
    environment: Mapping[str, str]
    afterwards: contextlib.ExitStack
    launcher: tuple[str, ...] = ("mpirun", "-n")
    arguments: tuple[str, ...] = ()

    @property
    def workdir(self) -> pathlib.Path:
        return self.folder / "run"

    @property
    def patience_s(self) -> float:
        """For a job to go on to the end of the run."""
        return 30.0 + 4 * self.usual.ends_s

    def saves(self) -> list[int]:
        """The steps of those that are whole."""
        return Checkpoints(self.workdir / CHECKPOINTS).steps()

    def saved(self) -> dict[str, Any]:
        """What was saved beside the last state of the run: among it the hash of all its bits."""
        return Checkpoints(self.workdir / CHECKPOINTS).noted(STEPS)

    def start(self, *arguments: str) -> Job:
        """Starts a job of this run."""
        self.folder.mkdir(parents=True, exist_ok=True)
        command = [*self.launcher, str(self.ranks), sys.executable, "-m", "jaxdp.train"]
        job = Job(
            [*command, *ARGUMENTS, *self.arguments, *arguments],
            ranks=self.ranks,
            workdir=self.workdir,
            log=self.folder / "log",
            environment={**os.environ, **self.environment},
        )
        self.afterwards.callback(job.close)
        return job

    def at_any_moment(self) -> Job:
        """A job at a random moment between the start of its ranks and its end."""
        seconds = self.chance.uniform(0.0, self.usual.ends_s)
        return self._caught(lambda job: job.wait_until(job.is_complete), then=seconds)

    def while_loading(self) -> Job:
        """A job before its first step."""
        seconds = self.chance.uniform(0.0, self.usual.trains_s)
        return self._caught(lambda job: job.wait_until(job.is_complete), then=seconds, before_step=1)

    def at_a_step(self) -> Job:
        """A job that trains, at a random step."""
        step = self.chance.randrange(2, _LATEST)
        return self._caught(lambda job: job.wait_until(lambda: job.last_step >= step))

    def while_saving(self) -> Job:
        """A job at one of its saves, half-written when it was looked for."""
        number = self.chance.randrange(1, _LATEST // SAVE_EVERY)
        seconds = self.chance.uniform(0.0, 0.02)

        def is_there(job: Job) -> bool:
            seen: set[str] = set()

            def is_saving() -> bool:
                seen.update(job.half_saves)
                return len(seen) >= number

            return job.wait_until(is_saving)

        return self._caught(is_there, then=seconds)

    def while_evaluating(self) -> Job:
        """A job at an evaluation: the line of its step, which comes before it, has just been written."""
        step = EVALUATE_EVERY * self.chance.randrange(1, _LATEST // EVALUATE_EVERY)
        return self._caught(lambda job: job.wait_until(lambda: job.last_step >= step))

    def some_process(self, job: Job) -> int:
        """That of a random rank."""
        return self.chance.choice(sorted(job.processes().values()))

    def ends(self, job: Job, strike: Callable[[], object], *, within: float, code: int | None = None) -> Struck:
        """Strikes a job, which must be over by that and not with code 0; with this code, if it trains already."""
        moment, trains, begin = job.where, job.last_step > 0, time.monotonic()
        strike()
        ended = job.wait(within)
        seconds = time.monotonic() - begin
        why_not = None
        if ended is None:
            why_not = f"not over after {within:g} s"
        elif ended == 0 and STEPS in self.saves():
            pass  # It had nothing more to lose.
        elif ended == 0 or (code is not None and trains and ended != code):
            why_not = f"over with code {ended}"
        return Struck(moment, seconds, why_not)

    def goes_on(self, job: Job) -> str | None:
        """Waits for a job to come to the end of the run; how it did not, if so."""
        ended = job.wait(self.patience_s)
        if ended == 0:
            return None
        return "the job that went on " + ("hangs" if ended is None else f"was over with code {ended}: {job.error}")

    def _caught(self, is_there: Callable[[Job], bool], *, then: float = 0.0, before_step: int = STEPS + 1) -> Job:
        while True:
            job = self.start()
            if is_there(job) and job.lives_on(then) and job.last_step < before_step:
                return job
            # It was faster: another one.
            job.close()
            shutil.rmtree(self.workdir, ignore_errors=True)
