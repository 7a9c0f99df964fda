"""Flat buckets summed over the world, each in the way that was chosen for it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from jaxdp import compat
from jaxdp.collectives import auto, run_mpi4jax, run_native
from jaxdp.collectives.choice import AUTO, Choice
from jaxdp.collectives.choice import MPI as MPI_NAME

if TYPE_CHECKING:
    from mpi4py import MPI

    from jaxdp.collectives.buckets import Buckets
    from jaxdp.config import AllreduceConfig
    from jaxdp.world import World


class BucketSum(Protocol):
    """Sums buckets over all ranks; what that means for where it is called, its engine knows.

    Attributes:
      chosen: what is to be kept of a choice by measurement; None if the config made it.
      description: for a person.
    """

    @property
    def chosen(self) -> dict[str, Any] | None: ...

    @property
    def description(self) -> str: ...

    def __call__(self, buckets: list[jax.Array]) -> list[jax.Array]: ...


@dataclasses.dataclass(frozen=True, eq=False)
class BlockingAllreduce:
    """By mpi4jax, one bucket after the other, inside jit on one device.

    Attributes:
      choices: one a bucket, in their order.
      comm: a communicator that mpi4jax alone uses.
    """

    choices: Sequence[Choice]
    comm: MPI.Intracomm
    chosen: dict[str, Any] | None = None
    description: str = ""

    def __call__(self, buckets: list[jax.Array]) -> list[jax.Array]:
        if self.comm.size == 1:
            return buckets
        return [_blocking_sum(bucket, choice, self.comm) for bucket, choice in zip(buckets, self.choices, strict=True)]


@dataclasses.dataclass(frozen=True, eq=False)
class NativeAllreduce:
    """By the native engine, all buckets at once, inside jit; with several local devices inside shard_map over them.

    Every device then sums a part of a bucket over the local devices, has that part cross, and gathers the others: no
    byte crosses twice.

    Attributes:
      plans: one a bucket, in their order: that of device 0, those of the other devices following it. None in a world of
        one, where nothing crosses.
      axis: of the mesh of local devices.
      num_devices: along it.
    """

    plans: Sequence[run_native.Plan] | None
    axis: str
    num_devices: int
    chosen: dict[str, Any] | None = None
    description: str = ""

    @property
    def is_nothing(self) -> bool:
        """Whether the sum is that over one device."""
        return self.plans is None and self.num_devices == 1

    def __call__(self, buckets: list[jax.Array]) -> list[jax.Array]:
        if self.plans is None:
            return buckets if self.num_devices == 1 else [jax.lax.psum(bucket, self.axis) for bucket in buckets]
        if self.num_devices == 1:
            return run_native.allreduce_all(buckets, self.plans)
        parts = scattered(buckets, self.axis, self.num_devices)
        sums = run_native.allreduce_all(parts, self.plans, device=jax.lax.axis_index(self.axis))
        return gathered(sums, [bucket.size for bucket in buckets], self.axis)


def scattered(buckets: Sequence[jax.Array], axis: str, num_devices: int) -> list[jax.Array]:
    """Inside shard_map: this device's part of each bucket, summed over the devices along the axis.

    Parts are equal: the last one ends with zeros where a bucket cannot be divided so.
    """
    padded = [jnp.pad(bucket, (0, -bucket.size % num_devices)) for bucket in buckets]
    return [jax.lax.psum_scatter(bucket, axis, tiled=True) for bucket in padded]


def gathered(parts: Sequence[jax.Array], sizes: Sequence[int], axis: str) -> list[jax.Array]:
    """Inside shard_map: the buckets of so many elements of which every device along the axis has its part."""
    return [
        jax.lax.all_gather(part, axis, tiled=True, to="invarying")[:size]
        for part, size in zip(parts, sizes, strict=True)
    ]


def make_sum(
    engine: str, choice: Choice, num_elements: int, dtype: np.dtype, world: World
) -> Callable[[jax.Array], jax.Array]:
    """The sum over all ranks of payloads of this size, inside jit on one CPU device; all ranks call it together.

    Args:
      engine: "native" or "mpi4jax".
      choice: of the algorithm.
      num_elements: of the payload.
      dtype: float32 or float64.
      world: all ranks.
    """
    if engine == "mpi4jax":
        return lambda payload: _blocking_sum(payload, choice, world.device_comm)
    plan = run_native.plan_of(choice, num_elements, dtype, world)
    return lambda payload: run_native.allreduce(payload, plan)


def make_allreduce(
    config: AllreduceConfig,
    world: World,
    layout: Buckets,
    chosen: dict[str, Any] | None = None,
    *,
    axis: str = "",
    parts: int = 1,
) -> BlockingAllreduce | NativeAllreduce:
    """The allreduce that the config asks for, for buckets of this layout; all ranks call it together.

    A world that does not have as many ranks, or not on as many nodes, as the algorithm needs ends the job with one
    message.

    Args:
      config: of the allreduce, with the engine "native" or "mpi4jax".
      world: all ranks.
      layout: of the buckets.
      chosen: what "auto" chose when the run was here last. It is kept if world and buckets are still the same.
      axis: of the mesh of local devices; "native" only, as are
      parts: into which each bucket is cut, one a local device.
    """
    choices: Sequence[Choice] = []
    if world.size == 1:
        chosen, description = None, "none: a world of one"
    elif config.algorithm == AUTO:
        choices, chosen, description = _measured(config, world, layout, chosen)
    else:
        choice, count, chosen = _configured(config, world), len(layout.members), None
        choices, description = [choice] * count, f"{choice}; {count} bucket{'s' * (count > 1)}, by {config.engine}"
    if config.engine == "mpi4jax":
        return BlockingAllreduce(choices, world.device_comm, chosen, description)
    if world.size == 1:
        return NativeAllreduce(None, axis, parts, chosen, description)
    plans = [
        run_native.plan_of_parts(choice, bucket.size, bucket.dtype, world, parts=parts, name=f"bucket {index}")
        for index, (choice, bucket) in enumerate(zip(choices, layout.buckets, strict=True))
    ]
    return NativeAllreduce(plans, axis, parts, chosen, description)


def _configured(config: AllreduceConfig, world: World) -> Choice:
    with world.together():
        if config.algorithm == "hierarchical" and config.ranks_per_node is None and world.ranks_per_node is None:
            raise ValueError(
                "a hierarchical allreduce needs as many ranks on every node, and ranks that follow one another on it: "
                f"rank r of this world is on the node of rank {', '.join(map(str, world.leaders))} (r = 0, 1, ...): "
                "start the job so, or choose another config.allreduce.algorithm"
            )
        choice = Choice.of_config(config, num_ranks=world.size, ranks_per_node=world.ranks_per_node or 1)
        if choice.algorithm != MPI_NAME:
            choice.schedule(world.size)
    return choice


def _measured(
    config: AllreduceConfig, world: World, layout: Buckets, chosen: dict[str, Any] | None
) -> tuple[Sequence[Choice], dict[str, Any], str]:
    here = {"engine": config.engine, "num_ranks": world.size, "sizes": layout.sizes, "wire": config.wire}
    if chosen is not None and {name: chosen.get(name) for name in here} == here:
        choices = [Choice(**choice) for choice in chosen["choices"]]
        lines = [f"{choice} for {size:,} bytes" for choice, size in zip(choices, layout.sizes, strict=True)]
        origin = "as chosen when the run began"
    else:
        decisions = auto.choose(layout.sizes, config.wire, world, engine=config.engine)
        choices = [decision.choice for decision in decisions]
        chosen = here | {"choices": [dataclasses.asdict(choice) for choice in choices]}
        lines = [str(decision) for decision in decisions]
        origin = "chosen from measurements"
    # Buckets of one size are of one kind.
    kinds = [f"{lines.count(line)} x {line}" for line in dict.fromkeys(lines)]
    return choices, chosen, f"{'; '.join(kinds)}; {origin}, by {config.engine}"


def _blocking_sum(payload: jax.Array, choice: Choice, comm: MPI.Intracomm) -> jax.Array:
    if choice.algorithm == MPI_NAME:
        return compat.allreduce(payload, comm=comm)
    return run_mpi4jax.allreduce(
        payload,
        schedule=choice.schedule(comm.size),
        comm=comm,
        num_segments=choice.num_segments(comm.size, payload.nbytes),
        wire=None if (wire := choice.wire_of(payload.dtype)) is None else jnp.dtype(wire),
    )
