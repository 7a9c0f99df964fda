"""A schedule run by mpi4jax inside jit: rounds as phases, one blocking exchange a phase."""

from __future__ import annotations

from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp

from jaxdp import compat
from jaxdp.collectives.phases import phases
from jaxdp.collectives.schedule import Schedule, chunk_bounds

if TYPE_CHECKING:
    from mpi4py import MPI


def allreduce(payload: jax.Array, *, schedule: Schedule, comm: MPI.Intracomm) -> jax.Array:
    """The sum over the ranks of a communicator, by a schedule; call it on all of them, inside jit on one device.

    Every rank walks the phases of every round in the same order, and in each does its one send and its one
    receive together, so no schedule can deadlock. Additions wait for the end of the round and then
    follow the order of its moves, as in the oracle.

    Args:
      payload: [num_elements], of the same size and dtype on all ranks.
      schedule: for as many ranks as the communicator has.
      comm: a communicator that mpi4jax alone uses.

    Returns:
      [num_elements], the same bits on all ranks.
    """
    assert schedule.num_ranks == comm.size, "the schedule is for this communicator"
    rank = comm.rank
    bounds = chunk_bounds(payload.size, schedule.num_chunks)
    chunks = [payload[start:end] for start, end in zip(bounds, bounds[1:], strict=False)]
    for index in range(schedule.num_rounds):
        # Every rank leaves out an empty chunk (a payload of fewer elements than chunks): nothing crosses for it.
        moves = [move for move in schedule.round(index) if chunks[move.chunk].size]
        arrived = {}
        for phase in phases(moves):
            sends = next((moves[i] for i in phase if moves[i].src == rank), None)
            incoming = next((i for i in phase if moves[i].dst == rank), None)
            if incoming is None:
                if sends is not None:
                    compat.send(chunks[sends.chunk], dest=sends.dst, comm=comm)
                continue
            source, like = moves[incoming].src, chunks[moves[incoming].chunk]
            if sends is None:
                arrived[incoming] = compat.recv(like, source=source, comm=comm)
            else:
                arrived[incoming] = compat.sendrecv(chunks[sends.chunk], like, source=source, dest=sends.dst, comm=comm)
        for i in sorted(arrived):
            chunk = moves[i].chunk
            chunks[chunk] = chunks[chunk] + arrived[i] if moves[i].reduce else arrived[i]
    return jnp.concatenate(chunks)
