"""Recursive halving and doubling, Rabenseifner's algorithm (Thakur et al. 2005): fewest bytes in O(log p) rounds."""

import numpy as np

from jaxdp.collectives.cost import Activity, Profile
from jaxdp.collectives.schedule import Schedule, moves, turned_round


def halving_doubling(num_ranks: int) -> Schedule:
    """Returns the schedule of recursive halving (reduce-scatter) and then recursive doubling (all-gather).

    Let q be the largest power of two up to p. At distances d = q / 2, q / 4 ... 1, each of the first q ranks r sends to
    rank r xor d the half of what it holds that contains chunk r xor d, and so ends with chunk r. The same rounds then
    run backwards as copies. Each of the other p - q ranks first sends its whole payload to the rank q below it, and
    receives the result from that rank at the end.

    Rounds: 2 log2 q, and 2 more if p is not a power of two. Bytes: 2 n (q - 1) / q per rank, the lower bound for p = q.
    Ranks below p - q send and receive n more; ranks from q on send and receive only n. Fan-in: 1.

    Args:
      num_ranks: number of ranks p, 1 or more.

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
    """Returns the closed form of the cost of `halving_doubling`.

    No rank is busier than rank 0, which serves one of the p - q additional ranks if there are any.
    """
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
