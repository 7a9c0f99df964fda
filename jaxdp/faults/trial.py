"""One fault-injection trial: starts the jobs of a run and picks the moment of the fault."""

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

from jaxdp.faults.job import Job
from jaxdp.trainer.checkpoint import Checkpoints
from jaxdp.trainer.workdir import CHECKPOINTS

STEPS, SAVE_EVERY, EVALUATE_EVERY = 240, 8, 24
WATCHDOG_S = 6.0
# The default config with frequent saves and evaluations, so that faults can hit them, and one metrics line per step.
ARGUMENTS = (
    f"--config.steps={STEPS}",
    f"--config.checkpoint.every_steps={SAVE_EVERY}",
    f"--config.eval_every_steps={EVALUATE_EVERY}",
    "--config.log_every_steps=1",
    f"--config.safety.watchdog_seconds={WATCHDOG_S}",
)
# No fault is timed for the last steps, because the job might end before the fault is injected.
_LATEST = STEPS - 24


class Baseline(NamedTuple):
    """Behaviour of a job without a fault.

    Attributes:
      saved: metadata of the final checkpoint, including the hash of all bits of the state.
      trains_s: seconds from when all ranks are running until the first step.
      ends_s: seconds from when all ranks are running until the job ends.
    """

    saved: dict[str, Any]
    trains_s: float
    ends_s: float


class FaultResult(NamedTuple):
    """How a job reacted to a fault.

    Attributes:
      moment: what the job was doing when the fault was injected.
      detected_s: seconds from the fault until the job exited or reported it; None if neither was expected.
      why_not: how the reaction differed from the required one; None if it did not.
    """

    moment: str
    detected_s: float | None
    why_not: str | None


@dataclasses.dataclass(frozen=True)
class Trial:
    """One trial of a campaign.

    Attributes:
      folder: folder of this trial only.
      ranks: number of ranks of each job.
      chance: random generator for all random choices.
      baseline: behaviour of a job without a fault.
      environment: environment variables of the jobs, in addition to those of this process.
      afterwards: callbacks to run at the end of the trial.
      launcher: words of the command line before the number of ranks.
      arguments: arguments of the jobs, in addition to `ARGUMENTS`.
    """

    folder: pathlib.Path
    ranks: int
    chance: random.Random
    baseline: Baseline
    environment: Mapping[str, str]
    afterwards: contextlib.ExitStack
    launcher: tuple[str, ...] = ("mpirun", "-n")
    arguments: tuple[str, ...] = ()

    @property
    def workdir(self) -> pathlib.Path:
        return self.folder / "run"

    @property
    def patience_s(self) -> float:
        """Timeout in seconds for a job to finish the run."""
        return 30.0 + 4 * self.baseline.ends_s

    def saves(self) -> list[int]:
        """Returns the steps of the complete checkpoints."""
        return Checkpoints(self.workdir / CHECKPOINTS).steps()

    def saved(self) -> dict[str, Any]:
        """Returns the metadata of the final checkpoint, including the hash of all bits of the state."""
        return Checkpoints(self.workdir / CHECKPOINTS).noted(STEPS)

    def start(self, *arguments: str) -> Job:
        """Starts a job of this run and closes it at the end of the trial."""
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
        """Returns a job at a random time between the start of its ranks and its end."""
        seconds = self.chance.uniform(0.0, self.baseline.ends_s)
        return self._caught(lambda job: job.wait_until(job.is_complete), then=seconds)

    def while_loading(self) -> Job:
        """Returns a job before its first step."""
        seconds = self.chance.uniform(0.0, self.baseline.trains_s)
        return self._caught(lambda job: job.wait_until(job.is_complete), then=seconds, before_step=1)

    def at_a_step(self) -> Job:
        """Returns a training job at a random step."""
        step = self.chance.randrange(2, _LATEST)
        return self._caught(lambda job: job.wait_until(lambda: job.last_step >= step))

    def while_saving(self) -> Job:
        """Returns a job during a random save, shortly after the incomplete checkpoint has appeared."""
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
        """Returns a job during an evaluation, just after the metrics line that is written before it has appeared."""
        step = EVALUATE_EVERY * self.chance.randrange(1, _LATEST // EVALUATE_EVERY)
        return self._caught(lambda job: job.wait_until(lambda: job.last_step >= step))

    def some_process(self, job: Job) -> int:
        """Returns the process id of a random rank."""
        return self.chance.choice(sorted(job.processes().values()))

    def ends(self, job: Job, strike: Callable[[], object], *, within: float, code: int | None = None) -> FaultResult:
        """Injects a fault that must end the job.

        Args:
          job: a running job.
          strike: injects the fault.
          within: seconds within which the job must exit, with a code other than 0 unless the run is complete.
          code: exit code that is required if the job has done a step before the fault; None for any.
        """
        moment, trains, begin = job.where, job.last_step > 0, time.monotonic()
        strike()
        ended = job.wait(within)
        seconds = time.monotonic() - begin
        why_not = None
        if ended is None:
            why_not = f"the job was still running after {within:g} s"
        elif ended == 0 and STEPS in self.saves():
            pass  # The run was complete before the fault took effect.
        elif ended == 0 or (code is not None and trains and ended != code):
            why_not = f"the job exited with code {ended}"
        return FaultResult(moment, seconds, why_not)

    def goes_on(self, job: Job) -> str | None:
        """Waits for a job to finish the run; returns None if it does, or else what went wrong."""
        ended = job.wait(self.patience_s)
        if ended == 0:
            return None
        return "the job " + ("hung" if ended is None else f"exited with code {ended}: {job.error}")

    def _caught(self, is_there: Callable[[Job], bool], *, then: float = 0.0, before_step: int = STEPS + 1) -> Job:
        while True:
            job = self.start()
            if is_there(job) and job.lives_on(then) and job.last_step < before_step:
                return job
            # The job has passed that moment: try again with a new one.
            job.close()
            shutil.rmtree(self.workdir, ignore_errors=True)
