"""Measures alpha, beta and gamma of the links between the ranks of a job."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from jaxdp.collectives.cost import Link, NetworkModel

if TYPE_CHECKING:
    from jaxdp.runtime.world import World

_SMALL, _LARGE = 1024, 2**18
_SHORT, _LONG = 0.05, 0.1


def measure_network(world: World) -> NetworkModel:
    """Measures the links between and inside nodes while all ranks use them; all ranks must call it together.

    Takes about half a second for each kind of link. Every rank sends to the next rank and receives from the previous
    one, as in most schedules. Small messages give alpha. Series of segments give beta, after a first series to warm up
    the network.

    Args:
      world: a world of 2 ranks or more.

    Returns:
      The network model, the same on all ranks.
    """
    gamma = _measure_gamma(world)
    per_node = world.ranks_per_node or 1
    several_nodes = per_node < world.size
    between = _measure_link(world, per_node if several_nodes else 1, gamma)
    if not several_nodes or per_node == 1:
        return NetworkModel.flat(between)
    return NetworkModel(between, _measure_link(world, 1, gamma), per_node)


def _measure_link(world: World, distance: int, gamma: float) -> Link:
    comm = world.host_comm
    to, source = (world.rank + distance) % world.size, (world.rank - distance) % world.size

    def train(num_bytes: int) -> Callable[[], None]:
        out, into = np.ones(num_bytes, np.uint8), np.empty(num_bytes, np.uint8)
        return lambda: comm.Sendrecv(out, to, 0, into, source, 0)

    small, large = train(_SMALL), train(_LARGE)
    _seconds_each(world, large, at_least=_SHORT)
    # Measure both in turn, so that a load on the network affects both; medians of three exclude a single hiccup.
    turns = [
        (_seconds_each(world, small, at_least=_SHORT / 2), _seconds_each(world, large, at_least=_LONG))
        for _ in range(3)
    ]
    alpha, seconds = (statistics.median(column) for column in zip(*turns, strict=True))
    beta = max(0.0, seconds - alpha) / _LARGE
    return Link(alpha, beta, gamma)


def _measure_gamma(world: World) -> float:
    one, other = np.ones((2, _LARGE // 4), np.float32)
    return _seconds_each(world, lambda: one + other, at_least=_SHORT) / _LARGE


def _seconds_each(world: World, work: Callable[[], object], *, at_least: float) -> float:
    """Returns the seconds per call on the slowest rank, over enough calls to take `at_least` seconds."""
    times = 1
    while True:
        world.barrier()
        start = time.perf_counter()
        for _ in range(times):
            work()
        seconds = max(world.allgather(time.perf_counter() - start))
        if seconds >= at_least:
            return seconds / times
        times = min(10 * times, int(1.2 * times * at_least / seconds) + 1)
