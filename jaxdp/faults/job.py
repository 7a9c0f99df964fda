"""A training job as a user starts it, watched from outside."""

from __future__ import annotations

import contextlib
import os
import pathlib
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence

from jaxdp.metrics import read_metrics
from jaxdp.workdir import CHECKPOINTS

_POLL_S = 0.002
_STUCK_S = 300.0


class Job:
    """Has been started.

    Args:
      command: all of its words but for the workdir.
      ranks: how many it will have.
      workdir: of the run.
      log: a file to which both of its streams are appended.
      environment: of its processes.
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
            # In a session of its own: an interrupt is for whoever watches, and ends the job.
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
        """Its process."""
        return self._process.pid

    @property
    def said(self) -> str:
        """What it has written so far."""
        with self._log.open("rb") as file:
            file.seek(self._begin)
            return file.read().decode(errors="replace")

    @property
    def error(self) -> str:
        """Its message, the first line of it."""
        return next((line for line in self.said.splitlines() if "error: " in line), "no message")

    @property
    def last_step(self) -> int:
        """The last one of which its metrics tell, or those of the jobs before it."""
        # A line may be half-written.
        with contextlib.suppress(ValueError):
            return max((line["step"] for line in read_metrics(self.workdir)), default=0)
        return 0

    @property
    def half_saves(self) -> set[str]:
        """Those that are not whole."""
        return {path.name for path in (self.workdir / CHECKPOINTS).glob("*.orbax-checkpoint-tmp*")}

    @property
    def where(self) -> str:
        """What it is at, as far as can be seen from outside."""
        step = self.last_step
        return (f"step {step}" if step else "loading") + (", saving" if self.half_saves else "")

    def processes(self) -> dict[int, int]:
        """Of its ranks that live, see `processes`."""
        return processes(self.workdir)

    def is_complete(self) -> bool:
        """Whether all its ranks are there."""
        return len(self.processes()) == self._ranks

    def wait_until(self, is_so: Callable[[], bool]) -> bool:
        """Whether it came to that before the job was over."""
        deadline = time.monotonic() + _STUCK_S
        while not is_so():
            if self._process.poll() is not None:
                return False
            assert time.monotonic() < deadline, f"a job to which nothing has happened hangs, see {self._log}"
            time.sleep(_POLL_S)
        return True

    def lives_on(self, seconds: float) -> bool:
        """Whether it is not over after so many seconds."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(seconds)
            return False
        return True

    def wait(self, seconds: float) -> int | None:
        """Its code once its launcher and all its ranks are gone; None if they are not within so many seconds."""
        deadline = time.monotonic() + seconds
        while self._process.poll() is None or self.processes():
            if time.monotonic() > deadline:
                return None
            time.sleep(_POLL_S)
        return self._process.returncode

    def close(self) -> None:
        """Leaves nothing of it behind."""
        self._process.kill()
        for pid in self.processes().values():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self._process.wait()


def processes(workdir: pathlib.Path) -> dict[int, int]:
    """The process of each rank of a training job that runs on this machine."""
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
        # A launcher has no rank.
        if rank is not None:
            found[int(rank)] = int(folder.name)
    return found
