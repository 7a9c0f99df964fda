"""Runs a schedule with mpi4jax inside jit, with one blocking exchange per phase of its program."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
import numpy as np

from jaxdp.collectives.program import Message, Pieces, of_rank, program
from jaxdp.collectives.schedule import Schedule
from jaxdp.runtime import jax_compat

if TYPE_CHECKING:
    from mpi4py import MPI

_Cast = Callable[[jax.Array], jax.Array]


def allreduce(
    payload: jax.Array,
    *,
    schedule: Schedule,
    comm: MPI.Intracomm,
    num_segments: int = 1,
    wire: np.dtype | None = None,
) -> jax.Array:
    """Sums a payload over the ranks of a communicator by a schedule.

    All ranks must call it, inside jit on one device. Every rank walks the phases of every step in the same order, and
    in each phase does its one send and one receive together, so no schedule can deadlock. Additions wait for the end of
    the step and then follow the order of the moves in their round, as in the oracle. The bits therefore do not depend
    on the number of segments.

    Args:
      payload: [num_elements], of the same size and dtype on all ranks.
      schedule: a schedule for the number of ranks of the communicator.
      comm: a communicator that only mpi4jax uses.
      num_segments: number of segments into which each chunk is cut. The number of messages, and with it the time to
        compile, is proportional to it.
      wire: bfloat16 or float16, to which values are rounded when they are sent; None to send them unchanged. Sums stay
        in the payload's dtype.

    Returns:
      The sum, [num_elements], with the same bits on all ranks.
    """
    assert schedule.num_ranks == comm.size, "schedule and communicator must have the same number of ranks"
    encode, decode = _wire_format(payload.dtype, wire)

    pieces = Pieces.of(payload.size, num_chunks=schedule.num_chunks, num_segments=num_segments)
    held = {piece: payload[part] for piece, part in pieces.slices.items()}

    def packed(message: Message) -> jax.Array:
        return encode(_joined([held[chunk, message.segment] for chunk in message.chunks]))

    for step in of_rank(program(schedule, num_segments), comm.rank, pieces):
        for sent, _ in step:
            if sent is not None and not sent.reduce:
                # The copies that are sent are rounded, so the rank's own copy must be rounded too.
                for chunk in sent.chunks:
                    held[chunk, sent.segment] = decode(encode(held[chunk, sent.segment]))
        arrived = []
        for sent, received in step:
            if received is None:
                assert sent is not None, "in every exchange this rank sends or receives"
                jax_compat.send(packed(sent), dest=sent.dst, comm=comm)
                continue
            sizes = pieces.sizes(received)
            like = jnp.empty(sum(sizes), payload.dtype if wire is None else jnp.uint16)
            if sent is None:
                values = jax_compat.recv(like, source=received.src, comm=comm)
            else:
                values = jax_compat.sendrecv(packed(sent), like, source=received.src, dest=sent.dst, comm=comm)
            parts = jnp.split(decode(values), np.cumsum(sizes)[:-1])
            for chunk, place, part in zip(received.chunks, received.moves, parts, strict=True):
                arrived.append((place, (chunk, received.segment), part, received.reduce))
        for _, where, part, reduce in sorted(arrived, key=lambda entry: entry[0]):
            held[where] = held[where] + part if reduce else part
    return _joined(list(held.values()))


def _joined(parts: list[jax.Array]) -> jax.Array:
    return parts[0] if len(parts) == 1 else jnp.concatenate(parts)


def _wire_format(payload: np.dtype, wire: np.dtype | None) -> tuple[_Cast, _Cast]:
    """Returns functions that convert values to what is sent, and back.

    MPI has no 16-bit floats, so their bits are sent as integers.
    """
    if wire is None:
        return lambda x: x, lambda x: x
    return (
        lambda x: jax.lax.bitcast_convert_type(x.astype(wire), jnp.uint16),
        lambda x: jax.lax.bitcast_convert_type(x, wire).astype(payload),
    )
