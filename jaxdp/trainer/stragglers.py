"""Finds stragglers: how late each rank enters the allreduce, and what it did before."""

from __future__ import annotations

import collections
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from jaxdp.collectives.allreduce import BucketSum
from jaxdp.collectives.run_native import Event, engine_of
from jaxdp.runtime.world import World

# Histogram bins of lateness: each is 5 % larger than the one before, from a microsecond to a quarter of an hour.
_LEAST_S, _RATIO, _BINS = 1e-6, 1.05, 423


class Times(NamedTuple):
    """Seconds that a rank spent in a step.

    Attributes:
      input: time waited for the batch.
      compute: time from when all inputs of the step were available until the last gradient bucket was ready.
      waited: time from then until all buckets were summed.
    """

    input: float
    compute: float
    waited: float


class Pace:
    """Records the times of this rank's steps, and gathers the times of all ranks on rank 0.

    The clocks of ranks are not compared. An allreduce ends on all ranks at about the same moment, so the rank that
    waited least in it arrived last.

    Args:
      world: all ranks.
      allreduce: allreduce of the steps. Only the native engine records when a bucket was ready; with other engines, or
        with a single rank, no times are recorded.
    """

    def __init__(self, world: World, allreduce: BucketSum):
        self._world = world
        self._plans = allreduce.recorded_plans
        if self._plans:
            self._engine = engine_of(world)
            self._seen = self._engine.counts()[0]
        # For each plan, finished allreduces that belong to no step yet. Allreduces of one plan run one after another.
        self._over: dict[int, collections.deque[Event]] = {number: collections.deque() for number in self._plans}
        self._last_end: float | None = None
        self._steps: list[Times] = []

    def step_is_done(self, *, dispatched_s: float, input_s: float) -> None:
        """Records the times of the step that has just finished.

        Args:
          dispatched_s: time at which the step was dispatched to the devices, by time.perf_counter.
          input_s: seconds that the step waited for its batch.
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
        # The first step is left out, because it includes compilation.
        if self._last_end is not None:
            begin = max(self._last_end, dispatched_s)
            self._steps.append(Times(input_s, max(0.0, ready - begin), end - ready))
        self._last_end = end

    def take(self) -> np.ndarray | None:
        """Gathers the times of the steps since the last call on rank 0; all ranks call it after the same step.

        Returns:
          float64 [ranks, steps, 3], with the fields of `Times` on the last axis; None on other ranks, and if no times
          are recorded.
        """
        if not self._plans:
            return None
        mine, self._steps = np.array(self._steps).reshape(-1, 3), []
        of_ranks = self._world.host_comm.gather(mine)
        return None if of_ranks is None else np.stack(of_ranks)


class Stragglers:
    """Statistics of the step times of all ranks, kept on rank 0.

    Args:
      hosts: for each rank, the name of its host.
    """

    def __init__(self, hosts: Sequence[str]):
        self._hosts = hosts
        self._late = np.zeros((len(hosts), _BINS), np.int64)
        self._sums = np.zeros((len(hosts), 2))
        self._steps = 0

    def add(self, times: np.ndarray) -> dict[str, Any]:
        """Adds the times of further steps, and returns their statistics.

        Args:
          times: float64 [ranks, steps, 3], with the fields of `Times` on the last axis.

        Returns:
          Values for a metrics line: for each rank the median and the 95th percentile of its lateness in these steps,
          and the means of its input and compute times, all in seconds; and the rank with the largest median lateness.
          Empty if there are no steps.
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
        """Returns the same statistics over all steps added so far; empty if there are none."""
        if not self._steps:
            return {}
        shares = np.cumsum(self._late, axis=1) / self._steps
        p50, p95 = (_LEAST_S * _RATIO ** np.argmax(shares >= share, axis=1) for share in (0.5, 0.95))
        return _summary(p50, p95, self._sums / self._steps)

    def sentence(self) -> str | None:
        """Describes the slowest rank in a sentence; None if no steps were added."""
        found = self.summary()
        if not found:
            return None
        rank, of_ranks = found["slowest_rank"], found["ranks"]
        others = [compute for other, compute in enumerate(of_ranks["compute_seconds"]) if other != rank]
        return (
            f"slowest: rank {rank} on {self._hosts[rank]}, {of_ranks['late_p50'][rank] * 1e3:.1f} ms late at the "
            f"allreduce (p50), {of_ranks['late_p95'][rank] * 1e3:.1f} ms (p95); a step took it "
            f"{of_ranks['compute_seconds'][rank] * 1e3:.1f} ms of compute (median of the other ranks: "
            f"{np.median(others) * 1e3:.1f} ms) and {of_ranks['input_seconds'][rank] * 1e3:.1f} ms of waiting for input"
        )


def lateness(times: np.ndarray) -> np.ndarray:
    """Seconds by which each rank entered the allreduce after the first rank: float64 [ranks, steps]."""
    waited = times[:, :, 2]
    return waited.max(axis=0) - waited


def _summary(p50: np.ndarray, p95: np.ndarray, means: np.ndarray) -> dict[str, Any]:
    columns = {"late_p50": p50, "late_p95": p95, "input_seconds": means[:, 0], "compute_seconds": means[:, 1]}
    return {
        "slowest_rank": int(np.argmax(p50)),
        "ranks": {name: [float(f"{value:.4g}") for value in column] for name, column in columns.items()},
    }
