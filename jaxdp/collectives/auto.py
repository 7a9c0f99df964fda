"""Chooses the allreduce for each bucket from measurements at the start of a job."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from jaxdp.collectives import run_mpi4py, run_native
from jaxdp.collectives.choice import Choice
from jaxdp.collectives.config import MPI, WIRES
from jaxdp.collectives.cost import NetworkModel
from jaxdp.collectives.measure import measure_network

if TYPE_CHECKING:
    from jaxdp.runtime.world import World

_SEGMENTS = (2**16, 2**18, 2**20)
# Ring and direct send 2 (p - 1) messages per rank, which are too many to compile with more ranks than this.
_LARGEST_RING = 100
# Choosing takes about two seconds; the rest is spent on measuring the network.
_TRIAL_SECONDS = 0.8
_FINALISTS = 3


@dataclasses.dataclass(frozen=True)
class Decision:
    """The allreduce chosen for a bucket, and the times that decided.

    Attributes:
      choice: the fastest allreduce in a trial over all ranks.
      num_bytes: size of the bucket.
      ours: the fastest of jaxdp's own algorithms in the trial.
      predicted_s, tried_s: seconds that `ours` takes, as predicted by the network model and as measured in the trial.
      mpi_s: seconds that MPI's own allreduce takes in the trial; None if it cannot be used (16-bit wire formats).
    """

    choice: Choice
    num_bytes: int
    ours: Choice
    predicted_s: float
    tried_s: float
    mpi_s: float | None

    def __str__(self) -> str:
        """Returns a human-readable description."""
        ours = f"{self.predicted_s * 1e3:.3g} ms predicted, {self.tried_s * 1e3:.3g} ms measured"
        if self.mpi_s is None:
            return f"{self.choice} for {self.num_bytes:,} bytes ({ours})"
        rival = f"{self.ours}: {ours}, mpi: {self.mpi_s * 1e3:.3g} ms"
        return f"{self.choice} for {self.num_bytes:,} bytes ({rival})"


def choose(sizes: Sequence[int], wire: str, world: World, *, engine: str) -> list[Decision]:
    """Chooses the fastest allreduce for each bucket; all ranks must call it together.

    Measures the network, predicts the time of all candidates, and runs the best ones (one per algorithm) in a trial
    over all ranks, together with MPI's own allreduce. The trial decides, because no model captures everything about a
    machine. It uses the bucket's size, or part of it if that would take too long. In total this takes about two
    seconds.

    Args:
      sizes: bytes of each bucket.
      wire: wire format of float32 values, a key of `WIRES`.
      world: a world of 2 ranks or more.
      engine: the engine that will run the allreduce, "native" or "mpi4jax".

    Returns:
      One decision per bucket, the same on all ranks.
    """
    network = measure_network(world)
    different = list(dict.fromkeys(sizes))
    decided = {size: _decide(size, wire, network, world, engine, _TRIAL_SECONDS / len(different)) for size in different}
    return [decided[size] for size in sizes]


def candidates(num_ranks: int, ranks_per_node: int | None, wire: str) -> list[Choice]:
    """Returns all choices whose time is worth predicting."""
    trees: list[dict[str, Any]] = [
        {"colors": colors, "arity": arity}
        for colors in (1, 2, 3, 4, 8, 16)
        for arity in sorted({2, 4, colors})
        if colors <= num_ranks
    ]
    kinds = [Choice("halving_doubling"), Choice("binomial"), *(Choice("multicolor", **tree) for tree in trees)]
    if num_ranks <= _LARGEST_RING:
        kinds += [Choice("ring"), Choice("direct")]
    if ranks_per_node is not None and 1 < ranks_per_node < num_ranks:
        nodes = num_ranks // ranks_per_node
        levels = (
            [Choice("ring"), Choice("halving_doubling")] if nodes <= _LARGEST_RING else [Choice("halving_doubling")]
        )
        levels += [Choice("multicolor", **tree) for tree in trees if tree["colors"] <= nodes]
        kinds += [
            dataclasses.replace(
                outer, algorithm="hierarchical", inner="direct", outer=outer.algorithm, ranks_per_node=ranks_per_node
            )
            for outer in levels
        ]
    return [dataclasses.replace(kind, segment_bytes=segment, wire=wire) for kind in kinds for segment in _SEGMENTS]


def finalists(
    size: int, wire: str, num_ranks: int, ranks_per_node: int | None, network: NetworkModel
) -> list[tuple[float, Choice]]:
    """Returns the choices to try for a bucket of `size` bytes, with their predicted seconds; the fastest comes first.

    They are the best choices of the three best algorithms; of equally good ones the first candidate.
    """
    everything = candidates(num_ranks, ranks_per_node, wire)
    ranked = sorted(
        ((choice.predict(num_ranks, size, network), choice) for choice in everything), key=lambda entry: entry[0]
    )
    best: dict[str, tuple[float, Choice]] = {}
    for predicted, choice in ranked:
        best.setdefault(choice.algorithm, (predicted, choice))
    return list(best.values())[:_FINALISTS]


def trial(runs: Sequence[Callable[[], object]], world: World) -> list[float]:
    """Returns the seconds of each run on the slowest rank: the better of two interleaved runs after a warm-up."""
    timed = []
    for _ in range(3):
        row = []
        for run in runs:
            world.barrier()
            start = time.perf_counter()
            run()
            row.append(time.perf_counter() - start)
        timed.append(row)
    of_all = np.max(world.allgather(timed), axis=0)
    return of_all[1:].min(axis=0).tolist()


def _decide(size: int, wire: str, network: NetworkModel, world: World, engine: str, seconds: float) -> Decision:
    entrants: list[tuple[float, Choice]] = world.bcast(
        finalists(size, wire, world.size, world.ranks_per_node, network) if world.is_root else None
    )
    # Each runs three times. The time of MPI's own allreduce is unknown; assume that of the slowest finalist.
    expected = 3 * sum(predicted for predicted, _ in entrants) + 3 * entrants[-1][0]
    part = max(1, int(size // 4 * min(1.0, seconds / expected)))
    # The trial of the blocking executor sends float32: half the values take as long as all values in 16 bits.
    narrower = WIRES[wire] / WIRES["float32"] if engine == "mpi4jax" else 1
    payload = np.ones(max(1, int(part * narrower)), np.float32)
    runs: list[Callable[[], object]] = [_runner(choice, payload, world, engine) for _, choice in entrants]
    if wire == "float32":
        runs.append(_runner(Choice(MPI), payload, world, engine))
    timed = trial(runs, world)
    scale = size / 4 / part
    fastest = int(np.argmin(timed[: len(entrants)]))
    predicted, ours = entrants[fastest]
    tried, mpi = timed[fastest] * scale, timed[-1] * scale if wire == "float32" else None
    choice = Choice(MPI) if mpi is not None and mpi < tried else ours
    return Decision(choice, size, ours, predicted, tried, mpi)


def _runner(choice: Choice, payload: np.ndarray, world: World, engine: str) -> Callable[[], object]:
    if engine == "native":
        native, plan = run_native.engine_of(world), run_native.plan_of(choice, payload.size, payload.dtype, world)
        return lambda: native.allreduce(payload, plan)
    if choice.algorithm == MPI:
        return lambda: world.host_comm.Allreduce(payload, np.empty_like(payload))
    schedule, segments = choice.schedule(world.size), choice.num_segments(world.size, payload.nbytes)
    return lambda: run_mpi4py.allreduce(payload, schedule=schedule, comm=world.host_comm, num_segments=segments)
