"""The parameter server, FireCaffe's base line (Iandola et al., arXiv 1511.00175, section 4.1): a star."""

import numpy as np

from jaxdp.collectives.cost import Activity, Profile
from jaxdp.collectives.schedule import Schedule, moves, turned_round


def parameter_server(num_ranks: int) -> Schedule:
    """All ranks send what they have to rank 0, which adds it up in their order and sends the sum to each.

    Rounds: 2. Bytes: rank 0 receives and sends n (p - 1), all others n, against 2 n (p - 1) / p at least. Fan-in:
    p - 1.

    Args:
      num_ranks: p, 1 or more.

    Returns:
      A schedule of p ranks and 1 chunk.
    """
    if num_ranks == 1:
        return Schedule.from_rounds(1, 1, [])
    to_server = moves(np.arange(1, num_ranks), 0, 0, reduce=True)
    return Schedule.from_rounds(num_ranks, 1, [to_server, turned_round(to_server)])


def parameter_server_profile(num_ranks: int) -> Profile:
    """The server is the busiest in both rounds."""
    others = num_ranks - 1
    up = Activity(messages_in=others, received=others, added=others)
    down = Activity(messages_out=others, sent=others)
    return Profile.of([up, down] if others else [])
