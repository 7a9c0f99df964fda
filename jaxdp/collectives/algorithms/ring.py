"""The ring: least bytes, most rounds (Patarasu and Yuan 2009)."""

import numpy as np

from jaxdp.collectives.schedule import Schedule, moves


def ring(num_ranks: int) -> Schedule:
    """Every rank sends to the next one only: partial sums first, then finished chunks.

    Chunk c sets out at rank c and is complete at rank c - 1 after p - 1 rounds; from there it goes round once more.

    Rounds: 2 (p - 1). Bytes: every rank sends and receives a chunk of n / p a round, in all 2 n (p - 1) / p, the least
    that there can be. Fan-in: 1.

    Args:
      num_ranks: p, 1 or more.

    Returns:
      A schedule of p ranks and p chunks.
    """
    rank = np.arange(num_ranks)
    following = (rank + 1) % num_ranks
    steps = range(num_ranks - 1)
    reduce_scatter = [moves(rank, following, (rank - step) % num_ranks, reduce=True) for step in steps]
    all_gather = [moves(rank, following, (rank + 1 - step) % num_ranks, reduce=False) for step in steps]
    return Schedule.from_rounds(num_ranks, num_ranks, reduce_scatter + all_gather)
