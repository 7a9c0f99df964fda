"""A schedule in the native engine's format: the pieces of a payload and the moves of a rank."""

from __future__ import annotations

import numpy as np

from jaxdp.collectives.program import Pieces
from jaxdp.collectives.schedule import Schedule

FEWEST_LANES = 4


def pieces(num_elements: int, num_chunks: int, num_segments: int) -> np.ndarray:
    """Returns the pieces of a payload in the order in which they start, without empty ones.

    The first segments of all chunks come first.

    Returns:
      int64 [num_pieces, 3]: chunk, start, count.
    """
    slices = Pieces.of(num_elements, num_chunks=num_chunks, num_segments=num_segments).slices
    in_order = sorted(slices.items(), key=lambda entry: (entry[0][1], entry[0][0]))
    table = [(chunk, part.start, part.stop - part.start) for (chunk, _), part in in_order if part.stop > part.start]
    return np.array(table, np.int64).reshape(-1, 3)


def lanes(schedule: Schedule) -> int:
    """Returns the number of pieces that move at once.

    It is twice the number that keeps the busiest rank busy while the first pieces are in flight. More pieces would
    queue in the network and delay the pieces that a rank is blocked on.
    """
    busiest = max(int(np.bincount(column, minlength=1).max()) for column in (schedule.src, schedule.dst))
    groups = -(-schedule.num_rounds // max(1, busiest))
    return max(FEWEST_LANES, 2 * schedule.num_chunks * groups)


def transfers(schedule: Schedule, rank: int) -> np.ndarray:
    """Returns the moves of a rank, sorted by chunk and then in the order of the schedule.

    Returns:
      int64 [num_transfers, 5]: chunk, round, peer, sends, reduces.
    """
    mine = schedule.of_rank(rank)
    of_round = np.repeat(np.arange(mine.num_rounds), np.diff(mine.round_starts))
    sends = mine.src == rank
    columns = [mine.chunk, of_round, np.where(sends, mine.dst, mine.src), sends, mine.reduce]
    table = np.stack(columns, axis=1).astype(np.int64)
    return np.ascontiguousarray(table[np.argsort(table[:, 0], kind="stable")])
