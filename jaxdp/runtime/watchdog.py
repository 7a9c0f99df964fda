"""Detects hung jobs, reports where each rank is, and aborts. Uses UDP, since MPI itself may hang."""

from __future__ import annotations

import contextlib
import dataclasses
import faulthandler
import json
import os
import pathlib
import re
import secrets
import socket
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any, NoReturn

from jaxdp.runtime import launcher
from jaxdp.runtime.activity import ALLREDUCE, COMPILE
from jaxdp.runtime.exit_codes import INTERNAL_ERROR
from jaxdp.runtime.world import World

# Factor on the time limit while a rank is in this phase.
_PATIENCE = {COMPILE: 10.0}
# Ranks report this many times within the time limit, and at least once per second.
_REPORTS = 10
_MOST_BYTES = 2048
_DUMP, _ACKNOWLEDGED = b"dump", b"ok"
# Time for stacks to be written, and between the exits of successive ranks if rank 0 is gone.
_GRACE_S = 2.0


@dataclasses.dataclass(frozen=True)
class RankStatus:
    """What rank 0 knows about a rank.

    Attributes:
      host: name of the rank's host.
      phase, step, beats: last report of the rank, as returned by `Activity.now`.
      moved: time of the last report that differed from the one before, by rank 0's time.monotonic.
      heard: time of the last report, by the same clock.
      address: socket address of the last report; None for rank 0, and before the first report.
    """

    host: str
    phase: str
    step: int
    beats: int
    moved: float
    heard: float
    address: Any = None


@contextlib.contextmanager
def watching(world: World, seconds: float | None) -> Iterator[None]:
    """Context in which the watchdog runs; all ranks enter it together, and leave it together if nothing fails.

    Args:
      world: all ranks.
      seconds: time without progress on any rank after which the job is aborted; None for no watchdog.
    """
    if seconds is None:
        yield
        return
    watchdog = Watchdog(world, seconds)
    try:
        yield
    finally:
        watchdog.stop()


class Watchdog:
    """Watchdog with a thread on every rank: all ranks report to rank 0, which acknowledges the reports.

    Args:
      world: all ranks; they must create the watchdog together.
      seconds: time without progress on any rank after which the job is aborted.
    """

    def __init__(self, world: World, seconds: float):
        self._world, self._seconds = world, seconds
        self._every = min(1.0, seconds / _REPORTS)
        now = time.monotonic()
        self._statuses = [RankStatus(host, world.activity.phase, 0, -1, now, now) for host in world.hosts]
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._socket.bind(("", 0))
        port = self._socket.getsockname()[1]
        # Rank 0 may have several addresses; each rank uses the one that answers. The token identifies this job.
        self._roots, self._token = world.bcast(([(address, port) for address in addresses()], secrets.token_hex(8)))
        self._silent_after = 5 * self._every
        self._heard_of_root: float | None = None
        self._awake = now
        self._is_over = threading.Event()
        work = self._watch if world.is_root else self._report
        threading.Thread(target=work, name="jaxdp-watchdog", daemon=True).start()

    def stop(self) -> None:
        """Stops the watchdog."""
        self._is_over.set()

    def _has_slept(self) -> bool:
        """Whether this process itself was suspended for a while, so that missing messages mean nothing."""
        before, self._awake = self._awake, time.monotonic()
        return self._awake - before > self._silent_after + _GRACE_S

    def _state(self) -> bytes:
        return json.dumps([self._token, self._world.rank, *self._world.activity.now()]).encode()

    def _watch(self) -> None:
        """On rank 0: receives the reports, and aborts the job if no rank makes progress for too long."""
        while not self._is_over.is_set():
            if self._has_slept():
                now = time.monotonic()
                self._statuses = [dataclasses.replace(status, moved=now, heard=now) for status in self._statuses]
            self._note(self._state(), None)
            deadline = time.monotonic() + self._every
            while (left := deadline - time.monotonic()) > 0 and not self._is_over.is_set():
                for data, address in self._receive(left):
                    self._note(data, address)
                    self._send(_ACKNOWLEDGED, address)
            now = time.monotonic()
            heard = [status for status in self._statuses if now - status.heard < self._silent_after]
            patience = max((_PATIENCE.get(status.phase, 1.0) for status in heard), default=1.0)
            if now - max(status.moved for status in self._statuses) > patience * self._seconds:
                self._end()

    def _note(self, data: bytes, address: Any) -> None:
        # Any process may send anything to this port.
        with contextlib.suppress(ValueError, TypeError):
            token, rank, phase, step, beats = json.loads(data)
            if token != self._token:
                return
            status, now = self._statuses[rank], time.monotonic()
            has_moved = (phase, step, beats) != (status.phase, status.step, status.beats)
            moved = now if has_moved else status.moved
            self._statuses[rank] = RankStatus(status.host, phase, step, beats, moved, now, address)

    def _end(self) -> None:
        text, late = report(self._statuses, time.monotonic(), silent_after=self._silent_after)
        what = f"no rank has made progress for {self._seconds:g} s, aborting the job"
        print(f"jaxdp: error: {what}:\n{text}", file=sys.stderr, flush=True)
        for rank in late:
            if rank == 0:
                faulthandler.dump_traceback()
            elif self._statuses[rank].address is not None:
                self._send(_DUMP, self._statuses[rank].address)
        time.sleep(_GRACE_S)
        exit_job(self._world.library)

    def _report(self) -> None:
        """On other ranks: reports to rank 0, and aborts the job if rank 0 is gone."""
        while not self._is_over.is_set():
            if self._has_slept():
                self._heard_of_root = None
            for root in self._roots:
                self._send(self._state(), root)
            for data, address in self._receive(self._every):
                self._heard_of_root = time.monotonic()
                self._roots = [address]
                if data == _DUMP:
                    print(f"rank {self._world.rank} on {self._world.host}:", file=sys.stderr)
                    faulthandler.dump_traceback()
            self._is_over.wait(self._every)
            # Each rank has its own time limit, because the exit of one rank already ends the job.
            since = time.monotonic() if self._heard_of_root is None else self._heard_of_root
            if time.monotonic() - since > self._seconds + self._world.rank * _GRACE_S:
                what = f"no message from rank 0 on {self._statuses[0].host} for {self._seconds:g} s, aborting the job"
                where = f"rank {self._world.rank} of {self._world.size} on {self._world.host}"
                print(f"jaxdp: error: {what} ({where})", file=sys.stderr, flush=True)
                exit_job(self._world.library)

    def _receive(self, seconds: float) -> Iterator[tuple[bytes, Any]]:
        self._socket.settimeout(max(0.001, seconds))
        with contextlib.suppress(OSError):
            yield self._socket.recvfrom(_MOST_BYTES)

    def _send(self, data: bytes, address: Any) -> None:
        # A broken network is detected by the messages that are missing.
        with contextlib.suppress(OSError):
            self._socket.sendto(data, address)


def exit_job(library: str) -> NoReturn:
    """Exits, so that the launcher ends the job, and kills the launcher in case it waits for a dead host."""
    # Some clusters hide other users' processes, and with them the job's launcher.
    with contextlib.suppress(OSError):
        launcher.end(library)
    os._exit(INTERNAL_ERROR)


def report(ranks: list[RankStatus], now: float, *, silent_after: float) -> tuple[str, list[int]]:
    """Describes where each rank is, and finds the ranks that seem to hold up the job.

    Args:
      ranks: what is known about each rank.
      now: current time, by time.monotonic.
      silent_after: seconds without a report after which a rank counts as silent.

    Returns:
      The description, and the late ranks: the silent ranks or, if there are none, the ranks at the earliest step that
      do not wait in an allreduce (all ranks at that step if all of them wait).
    """
    silent = [rank for rank, status in enumerate(ranks) if now - status.heard > silent_after]
    others = [rank for rank in range(len(ranks)) if rank not in silent]
    least = min((ranks[rank].step for rank in others), default=0)
    behind = [rank for rank in others if ranks[rank].step == least]
    # Ranks in an allreduce wait for the ranks that have not entered it.
    late = silent or [rank for rank in behind if ranks[rank].phase != ALLREDUCE] or behind
    lines = []
    for rank in silent:
        status = ranks[rank]
        lines.append(
            f"  rank {rank} on {status.host}: silent for {now - status.heard:.0f} s, was in {status.phase}, "
            f"step {status.step}"
        )
    groups: dict[tuple[str, int], list[int]] = {}
    for rank in others:
        groups.setdefault((ranks[rank].phase, ranks[rank].step), []).append(rank)
    for (phase, step), members in sorted(groups.items(), key=lambda group: group[0][1]):
        longest = max(now - ranks[rank].moved for rank in members)
        who = f"{len(members)} ranks (first: rank {members[0]})"
        if len(members) == 1:
            who = f"rank {members[0]} on {ranks[members[0]].host}"
        lines.append(f"  {who}: {longest:.0f} s in {phase}, step {step}")
    return "\n".join(lines), late


def addresses() -> list[str]:
    """Returns the IPv4 addresses of this host, the loopback addresses last."""
    table = pathlib.Path("/proc/net/fib_trie").read_text()
    found = dict.fromkeys(re.findall(r"\|-- (\S+)\n\s+/32 host LOCAL", table))
    return sorted(found, key=lambda address: address.startswith("127."))
