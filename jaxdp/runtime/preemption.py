"""Handles preemption signals: save a checkpoint and exit with code 75."""

from __future__ import annotations

import os
import signal
import sys
import threading
from types import FrameType
from typing import TYPE_CHECKING

import numpy as np

from jaxdp.runtime.exit_codes import REQUEUE
from jaxdp.runtime.world import World

if TYPE_CHECKING:
    from mpi4py import MPI

_SIGNALS = (signal.SIGUSR1, signal.SIGTERM)


class Preemption:
    """Listens for preemption signals on every rank; a signal on any rank stops all ranks after the same step.

    A signal before the first step ends the job at once, and so does a second signal.

    Args:
      world: all ranks.
    """

    def __init__(self, world: World):
        self._world = world
        self._asked = self._has_begun = False
        # Ranks exchange requests in the background of a step, and see the result one step later.
        self._mine, self._any = np.zeros((2, 1), np.uint8)
        self._request: MPI.Request | None = None
        # A thread notices signals even while the main thread compiles; Python's own handlers would have to wait.
        reading, writing = os.pipe()
        os.set_blocking(writing, False)
        signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
        for number in _SIGNALS:
            signal.signal(number, _heard_elsewhere)
        threading.Thread(target=self._listen, args=(reading,), name="jaxdp-signals", daemon=True).start()

    def _listen(self, reading: int) -> None:
        while True:
            for number in os.read(reading, 64):
                if number in _SIGNALS:
                    self._hear(signal.Signals(number).name)

    def _hear(self, name: str) -> None:
        at_once = self._asked or not self._has_begun
        self._asked = True
        what = "ends at once" if at_once else "saves after this step or the next one, and ends"
        if at_once or self._world.is_root:
            where = f"rank {self._world.rank} of {self._world.size}"
            print(f"jaxdp: {name} on {where}: the job {what}", file=sys.stderr, flush=True)
        if at_once:
            # Not MPI_Abort, which tears down state that other threads are using. The launcher ends the other ranks.
            os._exit(REQUEUE)

    def has_begun(self) -> None:
        """Marks the start of training: from now on the job saves a checkpoint before it ends."""
        self._has_begun = True

    def is_agreed(self) -> bool:
        """Whether the job must stop after this step; all ranks ask after every step and get the same answer."""
        from mpi4py import MPI

        if self._world.size == 1:
            return self._asked
        if self._request is not None:
            self._request.Wait()
            if self._any[0]:
                return True
        self._mine[0] = self._asked
        self._request = self._world.control_comm.Iallreduce(self._mine, self._any, MPI.MAX)
        return False

    def finish(self) -> None:
        """Completes the pending exchange of requests; all ranks call it after the last step."""
        if self._request is not None:
            self._request.Wait()

    def close(self) -> None:
        """Ignores signals from now on: everything is saved, and the process is about to exit."""
        for number in _SIGNALS:
            # Python keeps only SIG_IGN until the process ends; it restores other handlers to the default, which kills.
            signal.signal(number, signal.SIG_IGN)


def _heard_elsewhere(number: int, frame: FrameType | None) -> None:
    del number, frame
