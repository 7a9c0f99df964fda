"""The oracle: a schedule run on NumPy arrays inside one process."""

from collections.abc import Callable, Sequence

import numpy as np

from jaxdp.collectives.schedule import Schedule, chunk_bounds


def allreduce(
    schedule: Schedule, payloads: Sequence[np.ndarray], *, on_wire: Callable[[np.ndarray], np.ndarray] = lambda x: x
) -> list[np.ndarray]:
    """What each rank holds after the schedule.

    Args:
      schedule: any schedule, right or wrong.
      payloads: the flat array of each rank, all [num_elements] of one dtype.
      on_wire: what sending does to an array, as rounding to bfloat16 and back. Whoever sends a chunk as a copy does
        the same to its own before.

    Returns:
      One array [num_elements] a rank.
    """
    assert len(payloads) == schedule.num_ranks, "one payload a rank"
    bounds = chunk_bounds(payloads[0].size, schedule.num_chunks)
    held = [[payload[a:b].copy() for a, b in zip(bounds, bounds[1:], strict=False)] for payload in payloads]
    for index in range(schedule.num_rounds):
        moves = schedule.round(index)
        for move in moves:
            if not move.reduce:
                held[move.src][move.chunk] = on_wire(held[move.src][move.chunk])
        # Arithmetic below makes new arrays, so these stay what they were before the round.
        sent = [on_wire(held[move.src][move.chunk]) for move in moves]
        for move, values in zip(moves, sent, strict=True):
            there = held[move.dst][move.chunk]
            held[move.dst][move.chunk] = there + values if move.reduce else values
    return [np.concatenate(chunks) for chunks in held]
