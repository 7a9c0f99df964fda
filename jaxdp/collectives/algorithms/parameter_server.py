"""The parameter server, the baseline of FireCaffe (Iandola et al., arXiv 1511.00175, section 4.1): a star."""

import numpy as np

from jaxdp.collectives.cost import Activity, Profile
from jaxdp.collectives.schedule import Schedule, moves, turned_round


def parameter_server(num_ranks: int) -> Schedule:
    """Returns a schedule in which rank 0 adds the payloads of all ranks, in the order of ranks, and returns the sum.

    Rounds: 2. Bytes: rank 0 receives and sends n (p - 1), every other rank n (the lower bound is 2 n (p - 1) / p).
    Fan-in: p - 1.

    Args:
      num_ranks: number of ranks p, 1 or more.

    Returns:
      A schedule of p ranks and 1 chunk.
    """
    if num_ranks == 1:
        return Schedule.from_rounds(1, 1, [])
    to_server = moves(np.arange(1, num_ranks), 0, 0, reduce=True)
    return Schedule.from_rounds(num_ranks, 1, [to_server, turned_round(to_server)])


def parameter_server_profile(num_ranks: int) -> Profile:
    """Returns the closed form of the cost of `parameter_server`; the server is the busiest rank in both rounds."""
    others = num_ranks - 1
    up = Activity(messages_in=others, received=others, added=others)
    down = Activity(messages_out=others, sent=others)
    return Profile.of([up, down] if others else [])
