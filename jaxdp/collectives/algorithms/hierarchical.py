"""Two-level allreduces, with one algorithm inside nodes and one between nodes."""

from typing import Any

import numpy as np

from jaxdp.collectives.cost import Profile
from jaxdp.collectives.schedule import Schedule, moves


def compose(inner: Schedule, outer: Schedule) -> Schedule:
    """Composes a reduce-scatter inside every node, an allreduce between nodes, and an all-gather inside every node.

    Rank r is rank r mod L of node r // L. The reductions of the inner schedule sum each of its K chunks on one rank of
    the node, the chunk's owner. The owners of a chunk on all N nodes then sum it by the outer schedule, for all chunks
    at once. Finally the copies of the inner schedule distribute the sums inside each node. If the inner schedule
    spreads its chunks over all ranks of the node (ring, direct, and halving_doubling if L is a power of two), each rank
    exchanges its share n / L between nodes.

    Rounds: the sum of both schedules. Bytes: inside a node, those of the inner schedule; between nodes, for a rank that
    owns c chunks, c / K of those of the outer schedule. Fan-in: the larger of the two.

    Args:
      inner: schedule for the L ranks of a node; all reductions must come before all copies.
      outer: schedule for the N nodes.

    Returns:
      A schedule of N L ranks. Its number of chunks is the product of those of the two schedules.
    """
    middle, owner = _middle(inner), _owners(inner)
    node = np.arange(outer.num_ranks)[:, None]

    def inside(index: int) -> np.ndarray:
        src, dst, chunk, reduce = inner.table(index).T[:, :, None, None]
        first, part = node * inner.num_ranks, np.arange(outer.num_chunks)
        return moves(first + src, first + dst, chunk * outer.num_chunks + part, reduce=reduce)

    def between(index: int) -> np.ndarray:
        src, dst, part, reduce = outer.table(index).T[:, :, None]
        chunk = np.arange(inner.num_chunks) * outer.num_chunks + part
        return moves(src * inner.num_ranks + owner, dst * inner.num_ranks + owner, chunk, reduce=reduce)

    return Schedule.from_rounds(
        inner.num_ranks * outer.num_ranks,
        inner.num_chunks * outer.num_chunks,
        [inside(index) for index in range(middle)]
        + [between(index) for index in range(outer.num_rounds)]
        + [inside(index) for index in range(middle, inner.num_rounds)],
    )


def compose_profiles(inner: Schedule, inner_profile: Profile, outer_profile: Profile) -> Profile:
    """Returns the closed form of the cost of `compose`: every role inside a node with every role between nodes."""
    middle = _middle(inner)
    owned = np.bincount(_owners(inner)).max() / inner.num_chunks
    # A rank sends all its chunks to a peer as one message: bytes grow with the number of chunks, messages do not.
    between = outer_profile.table * [1, owned, 1, owned, owned]
    roles: list[Any] = [
        np.concatenate([inside[:middle], outside, inside[middle:]])
        for inside in inner_profile.table
        for outside in between
    ]
    in_a_node = np.ones(inner.num_rounds + between.shape[1], bool)
    in_a_node[middle : middle + between.shape[1]] = False
    return Profile(np.stack(roles), in_a_node)


def _middle(inner: Schedule) -> int:
    """Returns the index of the first round with copies."""
    copies = [not inner.table(index)[:, 3].all() for index in range(inner.num_rounds)]
    middle = copies.index(True) if copies else 0
    reductions_after = any(inner.table(index)[:, 3].any() for index in range(middle, inner.num_rounds))
    assert not reductions_after, "all reductions of an inner schedule must come before its copies"
    return middle


def _owners(inner: Schedule) -> np.ndarray:
    """Returns the rank that holds the whole sum of each chunk when the copies begin, int64 [num_chunks].

    The owner is the first rank to send a copy of the chunk.
    """
    owner = np.zeros(inner.num_chunks, np.int64)
    for index in reversed(range(_middle(inner), inner.num_rounds)):
        src, _, chunk, _ = inner.table(index).T
        owner[chunk] = src
    return owner
