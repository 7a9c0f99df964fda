"""Runs a schedule with mpi4py on NumPy arrays: the messages of the mpi4jax executor, without compilation."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from jaxdp.collectives.program import Pieces, of_rank, program
from jaxdp.collectives.schedule import Schedule

if TYPE_CHECKING:
    from mpi4py import MPI


def allreduce(payload: np.ndarray, *, schedule: Schedule, comm: MPI.Intracomm, num_segments: int = 1) -> np.ndarray:
    """Sums a payload over the ranks of a communicator by a schedule, to measure how long it takes.

    Messages and order of additions are those of `run_mpi4jax.allreduce`.

    Args:
      payload: [num_elements], of the same size and dtype on all ranks.
      schedule: a schedule for the number of ranks of the communicator.
      comm: a communicator that only mpi4py uses.
      num_segments: number of segments into which each chunk is cut.

    Returns:
      The sum, [num_elements], with the bits of the oracle.
    """
    assert schedule.num_ranks == comm.size, "schedule and communicator must have the same number of ranks"
    from mpi4py import MPI

    pieces = Pieces.of(payload.size, num_chunks=schedule.num_chunks, num_segments=num_segments)
    held = {piece: payload[part] for piece, part in pieces.slices.items()}
    nothing = np.empty(0, payload.dtype)
    for step in of_rank(program(schedule, num_segments), comm.rank, pieces):
        arrived = []
        for sent, received in step:
            out = nothing if sent is None else np.concatenate([held[chunk, sent.segment] for chunk in sent.chunks])
            into = nothing if received is None else np.empty(sum(pieces.sizes(received)), payload.dtype)
            to = MPI.PROC_NULL if sent is None else sent.dst
            source = MPI.PROC_NULL if received is None else received.src
            comm.Sendrecv(out, to, 0, into, source, 0)
            if received is not None:
                parts = np.split(into, np.cumsum(pieces.sizes(received))[:-1])
                for chunk, place, part in zip(received.chunks, received.moves, parts, strict=True):
                    arrived.append((place, (chunk, received.segment), part, received.reduce))
        for _, where, part, reduce in sorted(arrived, key=lambda entry: entry[0]):
            held[where] = held[where] + part if reduce else part
    return np.concatenate(list(held.values()))
