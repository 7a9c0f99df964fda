"""The ring: fewest bytes, most rounds (Patarasu and Yuan 2009)."""

import numpy as np

from jaxdp.collectives.schedule import Schedule, moves


def ring(num_ranks: int) -> Schedule:
    """Returns a schedule in which every rank sends only to the next rank: first partial sums, then finished chunks.

    Chunk c starts at rank c and is complete at rank c - 1 after p - 1 rounds. It then travels around the ring again.

    Rounds: 2 (p - 1). Bytes: every rank sends and receives one chunk of n / p per round, 2 n (p - 1) / p in total, the
    lower bound. Fan-in: 1.

    Args:
      num_ranks: number of ranks p, 1 or more.

    Returns:
      A schedule of p ranks and p chunks.
    """
    rank = np.arange(num_ranks)
    following = (rank + 1) % num_ranks
    steps = range(num_ranks - 1)
    reduce_scatter = [moves(rank, following, (rank - step) % num_ranks, reduce=True) for step in steps]
    all_gather = [moves(rank, following, (rank + 1 - step) % num_ranks, reduce=False) for step in steps]
    return Schedule.from_rounds(num_ranks, num_ranks, reduce_scatter + all_gather)
