"""The oracle: runs a schedule on NumPy arrays in a single process."""

from collections.abc import Callable, Sequence

import numpy as np

from jaxdp.collectives.schedule import Schedule, chunk_bounds


def allreduce(
    schedule: Schedule, payloads: Sequence[np.ndarray], *, on_wire: Callable[[np.ndarray], np.ndarray] = lambda x: x
) -> list[np.ndarray]:
    """Returns what each rank holds after the schedule.

    Args:
      schedule: any schedule, correct or not.
      payloads: the flat array of each rank, [num_elements], all of the same dtype.
      on_wire: the effect of sending on an array, e.g. rounding to bfloat16 and back. A rank that sends a chunk as a
        copy first applies it to its own chunk.

    Returns:
      One array [num_elements] per rank.
    """
    assert len(payloads) == schedule.num_ranks, "the number of payloads must equal the number of ranks"
    bounds = chunk_bounds(payloads[0].size, schedule.num_chunks)
    held = [[payload[a:b].copy() for a, b in zip(bounds, bounds[1:], strict=False)] for payload in payloads]
    for index in range(schedule.num_rounds):
        moves = schedule.round(index)
        for move in moves:
            if not move.reduce:
                held[move.src][move.chunk] = on_wire(held[move.src][move.chunk])
        # The arithmetic below makes new arrays, so these keep their values from before the round.
        sent = [on_wire(held[move.src][move.chunk]) for move in moves]
        for move, values in zip(moves, sent, strict=True):
            there = held[move.dst][move.chunk]
            held[move.dst][move.chunk] = there + values if move.reduce else values
    return [np.concatenate(chunks) for chunks in held]
