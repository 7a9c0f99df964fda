"""The public door: from the config to a function that sums flat buckets over the world."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import jax

from jaxdp.collectives import run_mpi4jax
from jaxdp.collectives.algorithms import ALGORITHMS
from jaxdp.collectives.schedule import Schedule

if TYPE_CHECKING:
    from mpi4py import MPI

    from jaxdp.config import AllreduceConfig

DEFAULT_COLORS = 4


@dataclasses.dataclass(frozen=True, eq=False)
class Allreduce:
    """Sums flat buckets over all ranks, inside jit on one device; a world of one needs no message.

    Attributes:
      schedule: who sends what to whom.
      comm: a communicator that mpi4jax alone uses.
      description: for a person.
    """

    schedule: Schedule
    comm: MPI.Intracomm
    description: str

    def __call__(self, buckets: list[jax.Array]) -> list[jax.Array]:
        return [run_mpi4jax.allreduce(bucket, schedule=self.schedule, comm=self.comm) for bucket in buckets]


def make_allreduce(config: AllreduceConfig, comm: MPI.Intracomm) -> Allreduce:
    """The allreduce that the config asks for, over the ranks of a communicator.

    Args:
      config: algorithm, colors and arity. Without colors: 4, or as many as there are ranks if fewer. Without
        arity: as many as colors, as in the paper.
      comm: a communicator that mpi4jax alone uses.

    Raises:
      ValueError: more colors than ranks.
    """
    colors = min(DEFAULT_COLORS, comm.size) if config.colors is None else config.colors
    arity = colors if config.arity is None else config.arity
    algorithm = ALGORITHMS[config.algorithm]
    settings = {"colors": colors, "arity": arity}
    schedule = algorithm.schedule(comm.size, **{name: settings[name] for name in algorithm.options})
    description = f"{config.algorithm}, {colors} colors of arity {arity}, {schedule.num_rounds} rounds, by mpi4jax"
    return Allreduce(schedule, comm, description)
