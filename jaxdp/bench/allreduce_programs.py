"""The programs that `jaxdp.bench allreduce` compares, and their payloads."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from jaxdp.collectives.choice import Choice
from jaxdp.collectives.config import MPI
from jaxdp.runtime.world import World

# All integers up to this one are exact in bfloat16, which has an 8-bit significand.
LARGEST_EXACT = 256


class Contender(NamedTuple):
    """An allreduce to compare: its name, the engine that runs it, and its options, or None for JAX's own allreduce."""

    name: str
    engine: str
    choice: Choice | None

    @property
    def ours(self) -> Choice | None:
        """The choice if it has a schedule, else None."""
        return None if self.choice is None or self.choice.algorithm == MPI else self.choice


class Program(NamedTuple):
    """An allreduce of flat arrays, as three blocking functions.

    Attributes:
      place: moves an array of this rank from host memory to where it is summed.
      run: sums the placed arrays of all ranks.
      fetch: returns the sum as an array in host memory.
    """

    place: Callable[[np.ndarray], Any]
    run: Callable[[Any], Any]
    fetch: Callable[[Any], np.ndarray]


def make_program(contender: Contender, num_elements: int, world: World) -> Program:
    if contender.choice is None:
        return _psum()
    if contender.engine == "mpi4py":
        return _preallocated(num_elements, world)
    return _in_jit(contender.engine, contender.choice, num_elements, world)


def _preallocated(num_elements: int, world: World) -> Program:
    into = np.zeros(num_elements, np.float32)

    def run(mine: np.ndarray) -> np.ndarray:
        world.host_comm.Allreduce(mine, into)
        return into

    return Program(lambda mine: mine, run, lambda result: result)


def _in_jit(engine: str, choice: Choice, num_elements: int, world: World) -> Program:
    import jax

    from jaxdp.collectives.allreduce import make_sum

    summed = jax.jit(make_sum(engine, choice, num_elements, np.dtype(np.float32), world))
    cpu = jax.local_devices(backend="cpu")[0]
    return Program(
        lambda mine: jax.block_until_ready(jax.device_put(mine, cpu)),
        lambda there: summed(there).block_until_ready(),
        np.asarray,
    )


def _psum() -> Program:
    """Returns JAX's own allreduce over the first device of every rank."""
    import jax
    from jax.sharding import AxisType, NamedSharding, PartitionSpec

    first = list({device.process_index: device for device in reversed(jax.devices())}.values())[::-1]
    mesh = jax.make_mesh((len(first),), ("rank",), axis_types=(AxisType.Auto,), devices=first)
    split = NamedSharding(mesh, PartitionSpec("rank"))
    summed = jax.shard_map(
        lambda mine: jax.lax.psum(mine, "rank"), mesh=mesh, in_specs=PartitionSpec("rank"), out_specs=PartitionSpec()
    )
    program = jax.jit(summed)
    return Program(
        lambda mine: jax.block_until_ready(jax.make_array_from_process_local_data(split, mine[None])),
        lambda there: program(there).block_until_ready(),
        lambda result: np.asarray(result.addressable_data(0))[0],
    )


def make_payload(num_elements: int, world: World, repetition: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns the integers of this rank and their sums over all ranks, as float32; they differ in every repetition."""
    values = LARGEST_EXACT // world.size
    place = np.arange(num_elements) + repetition
    sums = np.array([sum((first + rank) % values for rank in range(world.size)) for first in range(values)])
    return ((place + world.rank) % values).astype(np.float32), sums[place % values].astype(np.float32)
