"""The binomial reduction tree of FireCaffe (Iandola et al., arXiv 1511.00175, section 4.2)."""

import numpy as np

from jaxdp.collectives.cost import Activity, Profile
from jaxdp.collectives.schedule import Schedule, moves, turned_round


def binomial(num_ranks: int) -> Schedule:
    """Returns a schedule that sums up a binomial tree to rank 0, and sends the sum down the same tree.

    In round i every rank r that is 2^i more than a multiple of 2^(i + 1) sends its whole payload to rank r - 2^i. After
    L = ceil(log2 p) rounds rank 0 has the sum.

    Rounds: 2 L. Bytes: rank 0 receives and sends n L (the lower bound is 2 n (p - 1) / p). Every other rank r receives
    and sends n for its parent and n for each child; its children are the ranks r + 2^i < p for which r is a multiple of
    2^(i + 1). Fan-in: 1.

    Args:
      num_ranks: number of ranks p, 1 or more.

    Returns:
      A schedule of p ranks and 1 chunk.
    """
    upwards = []
    distance = 1
    while distance < num_ranks:
        child = np.arange(distance, num_ranks, 2 * distance)
        upwards.append(moves(child, child - distance, 0, reduce=True))
        distance *= 2
    return Schedule.from_rounds(num_ranks, 1, upwards + [turned_round(part) for part in reversed(upwards)])


def binomial_profile(num_ranks: int) -> Profile:
    """Returns the closed form of the cost of `binomial`; rank 0 is the busiest rank in every round."""
    levels = (num_ranks - 1).bit_length()
    up, down = Activity(messages_in=1, received=1, added=1), Activity(messages_out=1, sent=1)
    return Profile.of([up] * levels + [down] * levels)
