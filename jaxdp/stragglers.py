"""Which ranks the others wait for: how late each comes to the allreduce, and what it did before."""

from __future__ import annotations

import collections
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from jaxdp.collectives.allreduce import NativeAllreduce
from jaxdp.collectives.run_native import engine_of
from jaxdp.world import World

# Of the durations that are counted: 5 % from one bin to the next, from a microsecond to a quarter of an hour.
_LEAST_S, _RATIO, _BINS = 1e-6, 1.05, 423


class Times(NamedTuple):
    """Seconds that a rank spent in a step.

    Attributes:
      input: that it waited for its batch.
      compute: from when it had all that the step needs until its last bucket of gradients was there.
      waited: from then until all buckets were summed.
    """

    input: float
    compute: float
    waited: float


class Pace:
    """Of this rank: takes the times of its steps, and has rank 0 know those of all.

    Ranks have clocks of their own, which are not compared: an allreduce ends on all of them at about the same moment,
    so that who has waited for it least has come last.

    Args:
      world: all ranks.
      allreduce: of the steps. Only the native engine notes when a bucket was there; with others, or in a world of one,
        there is nothing to take.
    """

    def __init__(self, world: World, allreduce: Any):
        self._world = world
        self._plans: list[int] = []
        if isinstance(allreduce, NativeAllreduce) and allreduce.plans is not None:
            self._engine = engine_of(world)
            self._plans = [plan.number + part for plan in allreduce.plans for part in range(allreduce.num_devices)]
            self._seen = self._engine.counts()[0]
        # Of each plan the sums that are over and belong to no step yet: two by one plan follow one another.
        self._over: dict[int, collections.deque] = {number: collections.deque() for number in self._plans}
        self._last_end: float | None = None
        self._steps: list[Times] = []

    def step_is_done(self, *, dispatched_s: float, input_s: float) -> None:
        """The next step is over.

        Args:
          dispatched_s: when it was given to the devices, by time.perf_counter.
          input_s: that its batch was waited for.
        """
        if not self._plans:
            return
        over = self._engine.counts()[0]
        for event in self._engine.events(self._seen, over - self._seen):
            if event.plan in self._over:
                self._over[event.plan].append(event)
        self._seen = over
        of_step = [sums.popleft() for sums in self._over.values()]
        ready, end = max(event.start_s for event in of_step), max(event.end_s for event in of_step)
        # The first step was compiled.
        if self._last_end is not None:
            begin = max(self._last_end, dispatched_s)
            self._steps.append(Times(input_s, max(0.0, ready - begin), end - ready))
        self._last_end = end

    def take(self) -> np.ndarray | None:
        """The times of the steps since this was asked last, on rank 0; all ranks call it after the same step.

        Returns:
          float64 [ranks, steps, 3], see `Times`; None on other ranks, and where nothing is taken.
        """
        if not self._plans:
            return None
        mine, self._steps = np.array(self._steps).reshape(-1, 3), []
        of_ranks = self._world.host_comm.gather(mine)
        return None if of_ranks is None else np.stack(of_ranks)


class Stragglers:
    """On rank 0: what the times of all ranks come to.

    Args:
      hosts: of each rank.
    """

    def __init__(self, hosts: Sequence[str]):
        self._hosts = hosts
        self._late = np.zeros((len(hosts), _BINS), np.int64)
        self._sums = np.zeros((len(hosts), 2))
        self._steps = 0

    def add(self, times: np.ndarray) -> dict[str, Any]:
        """Counts some more steps, and sums them up.

        Args:
          times: float64 [ranks, steps, 3], see `Times`.

        Returns:
          For a line of metrics: of each rank the seconds by which it came late, of all these steps the median and the
          95th percentile, those that it waited for input and those that it computed; and who came latest. Nothing if
          there was no step.
        """
        if not times.shape[1]:
            return {}
        late = lateness(times)
        bins = np.clip(np.log(np.maximum(late, _LEAST_S) / _LEAST_S) / np.log(_RATIO), 0, _BINS - 1).astype(np.int64)
        for rank, of_rank in enumerate(bins):
            self._late[rank] += np.bincount(of_rank, minlength=_BINS)
        self._sums += times[:, :, :2].sum(axis=1)
        self._steps += times.shape[1]
        p50, p95 = np.percentile(late, [50, 95], axis=1)
        return _summary(p50, p95, times[:, :, :2].mean(axis=1))

    def summary(self) -> dict[str, Any]:
        """The same of all steps that were counted; nothing if there was none."""
        if not self._steps:
            return {}
        shares = np.cumsum(self._late, axis=1) / self._steps
        p50, p95 = (_LEAST_S * _RATIO ** np.argmax(shares >= share, axis=1) for share in (0.5, 0.95))
        return _summary(p50, p95, self._sums / self._steps)

    def sentence(self) -> str | None:
        """Who was the slowest, for a person; None if no step was counted."""
        found = self.summary()
        if not found:
            return None
        rank, of_ranks = found["slowest_rank"], found["ranks"]
        others = [compute for other, compute in enumerate(of_ranks["compute_seconds"]) if other != rank]
        return (
            f"slowest: rank {rank} on {self._hosts[rank]}, {of_ranks['late_p50'][rank] * 1e3:.1f} ms late at the "
            f"allreduce (median), {of_ranks['late_p95'][rank] * 1e3:.1f} ms (95th percentile); a step took it "
            f"{of_ranks['compute_seconds'][rank] * 1e3:.1f} ms of computing, the others "
            f"{np.median(others) * 1e3:.1f} ms, and {of_ranks['input_seconds'][rank] * 1e3:.1f} ms of waiting for input"
        )


def lateness(times: np.ndarray) -> np.ndarray:
    """float64 [ranks, steps]: by how many seconds each rank came later than the first one."""
    waited = times[:, :, 2]
    return waited.max(axis=0) - waited


def _summary(p50: np.ndarray, p95: np.ndarray, means: np.ndarray) -> dict[str, Any]:
    columns = {"late_p50": p50, "late_p95": p95, "input_seconds": means[:, 0], "compute_seconds": means[:, 1]}
    return {
        "slowest_rank": int(np.argmax(p50)),
        "ranks": {name: [float(f"{value:.4g}") for value in column] for name, column in columns.items()},
    }
