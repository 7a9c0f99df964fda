"""Ends a job in which nothing moves any more, and says who is where: by datagrams, as MPI may be what is stuck."""

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

from jaxdp import launcher
from jaxdp.progress import ALLREDUCE, COMPILE, MINE
from jaxdp.world import INTERNAL_ERROR, World

# A compiler is given so many times the patience.
_PATIENCE = {COMPILE: 10.0}
# Of the time after which it ends a job: how often ranks report.
_REPORTS = 10
_MOST_BYTES = 2048
_DUMP, _ACKNOWLEDGED = b"dump", b"ok"
# For stacks to be written, and for ranks to end one after the other if rank 0 is gone.
_GRACE_S = 2.0


@dataclasses.dataclass
class Seen:
    """What rank 0 knows of a rank.

    Attributes:
      host: of the rank.
      phase, step, beats: see `Progress`.
      moved: when that was other than before, by this process's time.monotonic.
      heard: when it reported last.
      address: from which it did.
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
    """A block that all ranks enter together, and leave together if nothing goes wrong: watched, unless seconds is None.

    Args:
      world: all ranks.
      seconds: see `Watchdog`.
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
    """Watches from a thread on every rank: all report to rank 0, and it to them.

    Args:
      world: all ranks, which make it together.
      seconds: in which something must move on some rank.
    """

    def __init__(self, world: World, seconds: float):
        self._world, self._seconds = world, seconds
        self._every = min(1.0, seconds / _REPORTS)
        now = time.monotonic()
        self._seen = [Seen(host, MINE.phase, 0, -1, now, now) for host in world.hosts]
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._socket.bind(("", 0))
        port = self._socket.getsockname()[1]
        # Rank 0 may have several addresses; each rank takes the one that answers. The token tells this job from others.
        self._roots, self._token = world.bcast(([(address, port) for address in addresses()], secrets.token_hex(8)))
        self._silent_after = 5 * self._every
        self._heard_of_root: float | None = None
        self._awake = now
        self._is_over = threading.Event()
        work = self._watch if world.is_root else self._report
        threading.Thread(target=work, name="jaxdp-watchdog", daemon=True).start()

    def stop(self) -> None:
        """Watches no longer."""
        self._is_over.set()

    def _has_slept(self) -> bool:
        """Whether this process itself was stopped for a while: what it has not heard in that time means nothing."""
        before, self._awake = self._awake, time.monotonic()
        return self._awake - before > self._silent_after + _GRACE_S

    def _state(self) -> bytes:
        return json.dumps([self._token, self._world.rank, *MINE.now()]).encode()

    def _watch(self) -> None:
        """Rank 0: hears all, and ends the job when nothing has moved for too long."""
        while not self._is_over.is_set():
            if self._has_slept():
                now = time.monotonic()
                self._seen = [dataclasses.replace(seen, moved=now, heard=now) for seen in self._seen]
            self._note(self._state(), None)
            deadline = time.monotonic() + self._every
            while (left := deadline - time.monotonic()) > 0 and not self._is_over.is_set():
                for data, address in self._receive(left):
                    self._note(data, address)
                    self._send(_ACKNOWLEDGED, address)
            now = time.monotonic()
            heard = [seen for seen in self._seen if now - seen.heard < self._silent_after]
            patience = max((_PATIENCE.get(seen.phase, 1.0) for seen in heard), default=1.0)
            if now - max(seen.moved for seen in self._seen) > patience * self._seconds:
                self._end()

    def _note(self, data: bytes, address: Any) -> None:
        # Anybody may send anything to a port.
        with contextlib.suppress(ValueError, TypeError):
            token, rank, phase, step, beats = json.loads(data)
            if token != self._token:
                return
            seen, now = self._seen[rank], time.monotonic()
            if (phase, step, beats) != (seen.phase, seen.step, seen.beats):
                seen.phase, seen.step, seen.beats, seen.moved = phase, step, beats, now
            seen.heard, seen.address = now, address

    def _end(self) -> None:
        text, late = report(self._seen, time.monotonic(), silent_after=self._silent_after)
        what = f"nothing has moved for {self._seconds:g} s, the job ends"
        print(f"jaxdp: error: {what}:\n{text}", file=sys.stderr, flush=True)
        for rank in late:
            if rank == 0:
                faulthandler.dump_traceback()
            elif self._seen[rank].address is not None:
                self._send(_DUMP, self._seen[rank].address)
        time.sleep(_GRACE_S)
        _exit(self._world.library)

    def _report(self) -> None:
        """Other ranks: report, and end the job if rank 0 is gone."""
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
            # One after the other: the first one ends all.
            since = time.monotonic() if self._heard_of_root is None else self._heard_of_root
            if time.monotonic() - since > self._seconds + self._world.rank * _GRACE_S:
                what = f"rank 0 on {self._seen[0].host} has been silent for {self._seconds:g} s, the job ends"
                where = f"rank {self._world.rank} of {self._world.size} on {self._world.host}"
                print(f"jaxdp: error: {what} ({where})", file=sys.stderr, flush=True)
                _exit(self._world.library)

    def _receive(self, seconds: float) -> Iterator[tuple[bytes, Any]]:
        self._socket.settimeout(max(0.001, seconds))
        with contextlib.suppress(OSError):
            yield self._socket.recvfrom(_MOST_BYTES)

    def _send(self, data: bytes, address: Any) -> None:
        # A network that is cut is seen by what does not come.
        with contextlib.suppress(OSError):
            self._socket.sendto(data, address)


def _exit(library: str) -> NoReturn:
    """Ends this process, whose launcher ends the job; and the launcher, should it wait for a host that is gone."""
    # Some clusters hide the processes of others, a job's launcher among them.
    with contextlib.suppress(OSError):
        launcher.end(library)
    os._exit(INTERNAL_ERROR)


def report(ranks: list[Seen], now: float, *, silent_after: float) -> tuple[str, list[int]]:
    """Who is where, in lines; and the ranks that the others seem to wait for.

    Args:
      ranks: what is known of each.
      now: by time.monotonic.
      silent_after: seconds after which a rank should have reported again.
    """
    silent = [rank for rank, seen in enumerate(ranks) if now - seen.heard > silent_after]
    others = [rank for rank in range(len(ranks)) if rank not in silent]
    least = min((ranks[rank].step for rank in others), default=0)
    behind = [rank for rank in others if ranks[rank].step == least]
    # Who waits in an allreduce waits for those that have not come to it.
    late = silent or [rank for rank in behind if ranks[rank].phase != ALLREDUCE] or behind
    lines = []
    for rank in silent:
        seen = ranks[rank]
        lines.append(
            f"  rank {rank} on {seen.host}: silent for {now - seen.heard:.0f} s, was in {seen.phase}, step {seen.step}"
        )
    groups: dict[tuple[str, int], list[int]] = {}
    for rank in others:
        groups.setdefault((ranks[rank].phase, ranks[rank].step), []).append(rank)
    for (phase, step), members in sorted(groups.items(), key=lambda group: group[0][1]):
        longest = max(now - ranks[rank].moved for rank in members)
        who = f"{len(members)} ranks, from rank {members[0]} on"
        if len(members) == 1:
            who = f"rank {members[0]} on {ranks[members[0]].host}"
        lines.append(f"  {who}: {longest:.0f} s in {phase}, step {step}")
    return "\n".join(lines), late


def addresses() -> list[str]:
    """Those at which this host may be reached: all of its own, the loopback last."""
    table = pathlib.Path("/proc/net/fib_trie").read_text()
    found = dict.fromkeys(re.findall(r"\|-- (\S+)\n\s+/32 host LOCAL", table))
    return sorted(found, key=lambda address: address.startswith("127."))
