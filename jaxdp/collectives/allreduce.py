"""Flat buckets summed over the world, each in the way that was chosen for it."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol

import jax
import jax.numpy as jnp

from jaxdp import compat
from jaxdp.collectives import auto, run_mpi4jax
from jaxdp.collectives.choice import AUTO, Choice
from jaxdp.collectives.choice import MPI as MPI_NAME

if TYPE_CHECKING:
    from mpi4py import MPI

    from jaxdp.collectives.buckets import Buckets
    from jaxdp.config import AllreduceConfig
    from jaxdp.world import World


class BucketSum(Protocol):
    """Sums buckets over all ranks; what that means for where it is called, its engine knows."""

    @property
    def chosen(self) -> dict[str, Any] | None: ...

    @property
    def description(self) -> str: ...

    def __call__(self, buckets: list[jax.Array]) -> list[jax.Array]: ...


@dataclasses.dataclass(frozen=True, eq=False)
class Allreduce:
    """Sums flat buckets over all ranks, inside jit on one device; a world of one needs no message.

    Attributes:
      choices: one a bucket, in their order.
      comm: a communicator that mpi4jax alone uses.
      chosen: what is to be kept of a choice by measurement; None if the config made it.
      description: for a person.
    """

    choices: Sequence[Choice]
    comm: MPI.Intracomm
    chosen: dict[str, Any] | None = None
    description: str = ""

    def __call__(self, buckets: list[jax.Array]) -> list[jax.Array]:
        if self.comm.size == 1:
            return buckets
        return [self._sum(bucket, choice) for bucket, choice in zip(buckets, self.choices, strict=True)]

    def _sum(self, bucket: jax.Array, choice: Choice) -> jax.Array:
        if choice.algorithm == MPI_NAME:
            return compat.allreduce(bucket, comm=self.comm)
        rounded = choice.wire != "float32" and bucket.dtype == jnp.float32
        return run_mpi4jax.allreduce(
            bucket,
            schedule=choice.schedule(self.comm.size),
            comm=self.comm,
            num_segments=choice.num_segments(self.comm.size, bucket.nbytes),
            wire=jnp.dtype(choice.wire) if rounded else None,
        )


def make_allreduce(
    config: AllreduceConfig, world: World, layout: Buckets, chosen: dict[str, Any] | None = None
) -> Allreduce:
    """The allreduce that the config asks for, for buckets of this layout; all ranks call it together.

    A world that does not have as many ranks, or not on as many nodes, as the algorithm needs ends the job with one
    message.

    Args:
      config: of the allreduce.
      world: all ranks.
      layout: of the buckets.
      chosen: what "auto" chose when the run was here last. It is kept if world and buckets are still the same.
    """
    if world.size == 1:
        return Allreduce([], world.device_comm, description="none: a world of one")
    if config.algorithm == AUTO:
        return _measured_allreduce(config, world, layout, chosen)
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
    count = len(layout.members)
    description = f"{choice}; {count} bucket{'s' * (count > 1)}, by mpi4jax"
    return Allreduce([choice] * count, world.device_comm, description=description)


def _measured_allreduce(
    config: AllreduceConfig, world: World, layout: Buckets, chosen: dict[str, Any] | None
) -> Allreduce:
    here = {"num_ranks": world.size, "sizes": layout.sizes, "wire": config.wire}
    if chosen is not None and {name: chosen[name] for name in here} == here:
        choices = [Choice(**choice) for choice in chosen["choices"]]
        lines = [f"{choice} for {size:,} bytes" for choice, size in zip(choices, layout.sizes, strict=True)]
        origin = "as chosen when the run began"
    else:
        decisions = auto.choose(layout.sizes, config.wire, world)
        choices = [decision.choice for decision in decisions]
        chosen = here | {"choices": [dataclasses.asdict(choice) for choice in choices]}
        lines = [str(decision) for decision in decisions]
        origin = "chosen from measurements"
    # Buckets of one size are of one kind.
    kinds = [f"{lines.count(line)} x {line}" for line in dict.fromkeys(lines)]
    return Allreduce(choices, world.device_comm, chosen, f"{'; '.join(kinds)}; {origin}, by mpi4jax")
