"""A schedule as the native engine reads it: the pieces of a payload, and the moves of a rank."""

from __future__ import annotations

import numpy as np

from jaxdp.collectives.program import Pieces
from jaxdp.collectives.schedule import Schedule

FEWEST_LANES = 4


def pieces(num_elements: int, num_chunks: int, num_segments: int) -> np.ndarray:
    """int64 [num_pieces, 3]: chunk, start, count; the first segments of all chunks first, none of them empty."""
    slices = Pieces.of(num_elements, num_chunks=num_chunks, num_segments=num_segments).slices
    in_order = sorted(slices.items(), key=lambda entry: (entry[0][1], entry[0][0]))
    table = [(chunk, part.start, part.stop - part.start) for (chunk, _), part in in_order if part.stop > part.start]
    return np.array(table, np.int64).reshape(-1, 3)


def lanes(schedule: Schedule) -> int:
    """Pieces that move at once: twice as many as keep the busiest rank busy while the first ones are on their way.

    More of them wait in line in the network, where they hold up those that somebody waits for.
    """
    busiest = max(int(np.bincount(column, minlength=1).max()) for column in (schedule.src, schedule.dst))
    groups = -(-schedule.num_rounds // max(1, busiest))
    return max(FEWEST_LANES, 2 * schedule.num_chunks * groups)


def transfers(schedule: Schedule, rank: int) -> np.ndarray:
    """int64 [num_transfers, 5]: chunk, round, peer, sends, reduces of this rank's moves; by chunk, then in order."""
    mine = schedule.of_rank(rank)
    of_round = np.repeat(np.arange(mine.num_rounds), np.diff(mine.round_starts))
    sends = mine.src == rank
    columns = [mine.chunk, of_round, np.where(sends, mine.dst, mine.src), sends, mine.reduce]
    table = np.stack(columns, axis=1).astype(np.int64)
    return np.ascontiguousarray(table[np.argsort(table[:, 0], kind="stable")])
