"""Flat buckets summed over the world, each in the way that was chosen for it."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp

from jaxdp import compat
from jaxdp.collectives import run_mpi4jax
from jaxdp.collectives.choice import MPI as MPI_NAME
from jaxdp.collectives.choice import Choice

if TYPE_CHECKING:
    from mpi4py import MPI

    from jaxdp.collectives.buckets import Buckets
    from jaxdp.config import AllreduceConfig
    from jaxdp.world import World


@dataclasses.dataclass(frozen=True, eq=False)
class Allreduce:
    """Sums flat buckets over all ranks, inside jit on one device; a world of one needs no message.

    Attributes:
      choices: one a bucket, in their order.
      comm: a communicator that mpi4jax alone uses.
    """

    choices: Sequence[Choice]
    comm: MPI.Intracomm

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

    @property
    def description(self) -> str:
        """For a person."""
        kinds = list(dict.fromkeys(map(str, self.choices)))
        return f"{'; '.join(kinds)}; {len(self.choices)} bucket{'s' * (len(self.choices) > 1)}, by mpi4jax"


def make_allreduce(config: AllreduceConfig, world: World, layout: Buckets) -> Allreduce:
    """The allreduce that the config asks for, for buckets of this layout.

    Raises:
      ValueError: the world does not have as many ranks, or not on as many nodes, as the algorithm needs.
    """
    if config.algorithm == "hierarchical" and config.ranks_per_node is None and world.ranks_per_node is None:
        raise ValueError(
            "a hierarchical allreduce needs as many ranks on every node, and ranks that follow one another on it: "
            f"rank r of this world is on the node of rank {', '.join(map(str, world.leaders))} (r = 0, 1, ...): start "
            "the job so, or choose another config.allreduce.algorithm"
        )
    choice = Choice.of_config(config, num_ranks=world.size, ranks_per_node=world.ranks_per_node or 1)
    if choice.algorithm != MPI_NAME:
        choice.schedule(world.size)
    return Allreduce([choice] * len(layout.members), world.device_comm)
