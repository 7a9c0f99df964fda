"""A training job, started as a user would start it and observed from outside."""

from __future__ import annotations

import contextlib
import os
import pathlib
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence

from jaxdp.trainer.metrics import read_metrics
from jaxdp.trainer.workdir import CHECKPOINTS

_POLL_S = 0.002
_STUCK_S = 300.0


class Job:
    """A training job, started on construction.

    Args:
      command: command line without --workdir.
      ranks: number of ranks of the job.
      workdir: workdir of the run.
      log: file to which stdout and stderr are appended.
      environment: environment variables of the job.
    """

    def __init__(
        self,
        command: Sequence[str],
        *,
        ranks: int,
        workdir: pathlib.Path,
        log: pathlib.Path,
        environment: Mapping[str, str],
    ):
        self.workdir, self._ranks, self._log = workdir, ranks, log
        self._begin = log.stat().st_size if log.exists() else 0
        with log.open("ab") as file:
            # In a separate session, so that Ctrl-C reaches only the observer, which then ends the job.
            self._process = subprocess.Popen(
                [*command, f"--workdir={workdir}"],
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=file,
                start_new_session=True,
            )

    @property
    def launcher(self) -> int:
        """Process id of the launcher."""
        return self._process.pid

    @property
    def said(self) -> str:
        """Output of the job so far."""
        with self._log.open("rb") as file:
            file.seek(self._begin)
            return file.read().decode(errors="replace")

    @property
    def error(self) -> str:
        """First line of the output that contains an error message."""
        return next((line for line in self.said.splitlines() if "error: " in line), "no message")

    @property
    def last_step(self) -> int:
        """Last step in the metrics of the run, including earlier jobs; 0 if none."""
        # The last line may be incomplete.
        with contextlib.suppress(ValueError):
            return max((line["step"] for line in read_metrics(self.workdir)), default=0)
        return 0

    @property
    def half_saves(self) -> set[str]:
        """Names of the checkpoints that are incomplete."""
        return {path.name for path in (self.workdir / CHECKPOINTS).glob("*.orbax-checkpoint-tmp*")}

    @property
    def where(self) -> str:
        """What the job is doing, as far as its files show."""
        step = self.last_step
        return (f"step {step}" if step else "loading") + (", saving" if self.half_saves else "")

    def processes(self) -> dict[int, int]:
        """Returns the process id of each running rank."""
        return processes(self.workdir)

    def is_complete(self) -> bool:
        """Returns whether all ranks are running."""
        return len(self.processes()) == self._ranks

    def wait_until(self, is_so: Callable[[], bool]) -> bool:
        """Waits for a condition; returns False if the job exits first."""
        deadline = time.monotonic() + _STUCK_S
        while not is_so():
            if self._process.poll() is not None:
                return False
            assert time.monotonic() < deadline, f"the job hangs although no fault was injected: see {self._log}"
            time.sleep(_POLL_S)
        return True

    def lives_on(self, seconds: float) -> bool:
        """Waits this many seconds; returns False if the job exits first."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(seconds)
            return False
        return True

    def wait(self, seconds: float) -> int | None:
        """Waits until the launcher and all ranks have exited.

        Returns:
          The exit code of the launcher, or None on timeout.
        """
        deadline = time.monotonic() + seconds
        while self._process.poll() is None or self.processes():
            if time.monotonic() > deadline:
                return None
            time.sleep(_POLL_S)
        return self._process.returncode

    def close(self) -> None:
        """Kills the launcher and all ranks that are still running."""
        self._process.kill()
        for pid in self.processes().values():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self._process.wait()


def processes(workdir: pathlib.Path) -> dict[int, int]:
    """Returns the process id of each rank of the job that runs in this workdir on this machine."""
    found = {}
    for folder in pathlib.Path("/proc").glob("[0-9]*"):
        try:
            if f"--workdir={workdir}".encode() not in (folder / "cmdline").read_bytes().split(b"\0"):
                continue
            lines = (folder / "environ").read_bytes().split(b"\0")
        except OSError:
            continue
        environment = dict(line.split(b"=", 1) for line in lines if b"=" in line)
        rank = environment.get(b"PMI_RANK", environment.get(b"OMPI_COMM_WORLD_RANK"))
        # A process without a rank is the launcher.
        if rank is not None:
            found[int(rank)] = int(folder.name)
    return found
