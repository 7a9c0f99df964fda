"""Pairwise reduce-scatter and all-gather: every rank exchanges with every other rank (Thakur et al. 2005)."""

import numpy as np

from jaxdp.collectives.schedule import Schedule, moves, turned_round


def direct(num_ranks: int) -> Schedule:
    """Returns a schedule in which each rank c sums chunk c of all ranks, and then sends the sum to all other ranks.

    In round t = 1 ... p - 1 rank r sends to rank r + t (mod p); the same rounds follow in the reverse direction. These
    are the trees of multi-color with p colors of arity p, split into rounds in which every rank has a different peer.

    Rounds: 2 (p - 1). Bytes: 2 n (p - 1) / p per rank, the lower bound, as in the ring. Fan-in: 1.

    Args:
      num_ranks: number of ranks p, 1 or more.

    Returns:
      A schedule of p ranks and p chunks.
    """
    rank = np.arange(num_ranks)
    peers = [(rank + distance) % num_ranks for distance in range(1, num_ranks)]
    reduce_scatter = [moves(rank, peer, peer, reduce=True) for peer in peers]
    return Schedule.from_rounds(num_ranks, num_ranks, reduce_scatter + [turned_round(part) for part in reduce_scatter])
