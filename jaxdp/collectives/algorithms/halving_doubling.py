"""Recursive halving and doubling, Rabenseifner's algorithm (Thakur et al. 2005): least bytes in about log p rounds."""

import numpy as np

from jaxdp.collectives.cost import Activity, Profile
from jaxdp.collectives.schedule import Schedule, moves, turned_round


def halving_doubling(num_ranks: int) -> Schedule:
    """Pairs of ranks exchange halves of what they hold, at half the distance each time; then all of it backwards.

    With q the largest power of two up to p, the first q ranks do so: at distance d = q / 2, q / 4 ... 1 rank r gives
    rank r xor d the half that holds chunk r xor d, and ends with chunk r. Each of the p - q others first gives all it
    has to the rank q below it, and gets the result from it at last.

    Rounds: 2 log2 q, and 2 more if p is no power of two. Bytes: 2 n (q - 1) / q a rank, the least that there can be
    for p = q; ranks below p - q send and receive n more, and ranks from q on send and receive n only. Fan-in: 1.

    Args:
      num_ranks: p, 1 or more.

    Returns:
      A schedule of p ranks and q chunks.
    """
    q = _largest_power_of_two(num_ranks)
    rank, extra = np.arange(q), np.arange(q, num_ranks)
    inwards = [moves(extra[:, None], extra[:, None] - q, np.arange(q), reduce=True)] if num_ranks > q else []
    distance = q // 2
    while distance:
        peer = (rank ^ distance)[:, None]
        inwards.append(moves(rank[:, None], peer, peer // distance * distance + np.arange(distance), reduce=True))
        distance //= 2
    return Schedule.from_rounds(num_ranks, q, inwards + [turned_round(part) for part in reversed(inwards)])


def halving_doubling_profile(num_ranks: int) -> Profile:
    """Rank 0 is as busy as any: it is among those with a rank above them, if there are such."""
    q = _largest_power_of_two(num_ranks)
    inwards = [Activity(messages_in=1, received=1, added=1)] if num_ranks > q else []
    outwards = [Activity(messages_out=1, sent=1)] if num_ranks > q else []
    part = 1 / 2
    while part >= 1 / q and q > 1:
        inwards.append(Activity(messages_in=1, received=part, messages_out=1, sent=part, added=part))
        outwards.insert(0, Activity(messages_in=1, received=part, messages_out=1, sent=part))
        part /= 2
    return Profile.of(inwards + outwards)


def _largest_power_of_two(limit: int) -> int:
    return 1 << (limit.bit_length() - 1)
