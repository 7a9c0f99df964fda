"""Pairwise reduce-scatter and all-gather: every rank speaks with every other (Thakur et al. 2005)."""

import numpy as np

from jaxdp.collectives.schedule import Schedule, moves, turned_round


def direct(num_ranks: int) -> Schedule:
    """Rank c gets its chunk c from all others and adds them up; then it gives the sum to all.

    In round t = 1 ... p - 1 rank r sends to rank r + t; then come the same rounds turned round. These are the trees of
    multi-color with p colors of arity p, taken apart into rounds in which all ranks have a different peer.

    Rounds: 2 (p - 1). Bytes: as in the ring, 2 n (p - 1) / p a rank, the least that there can be. Fan-in: 1.

    Args:
      num_ranks: p, 1 or more.

    Returns:
      A schedule of p ranks and p chunks.
    """
    rank = np.arange(num_ranks)
    peers = [(rank + distance) % num_ranks for distance in range(1, num_ranks)]
    reduce_scatter = [moves(rank, peer, peer, reduce=True) for peer in peers]
    return Schedule.from_rounds(num_ranks, num_ranks, reduce_scatter + [turned_round(part) for part in reduce_scatter])
