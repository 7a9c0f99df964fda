"""Two levels: the ranks of a node among themselves, and nodes with one another."""

from typing import Any

import numpy as np

from jaxdp.collectives.cost import Profile
from jaxdp.collectives.schedule import Schedule, moves


def compose(inner: Schedule, outer: Schedule) -> Schedule:
    """Reduce-scatter inside every node, allreduce between nodes, all-gather inside.

    Rank r is rank r mod L of node r // L. The inner schedule's reductions bring each of its K chunks together on one
    rank of the node, its owner. The owners of a chunk on all N nodes sum it up by the outer schedule, all chunks at
    once; then the inner schedule's copies hand it out. An inner schedule that spreads its chunks over all ranks of the
    node, as ring, direct and halving_doubling do, lets each of them take its part n / L between nodes.

    Rounds: those of both. Bytes: those of the inner schedule, inside a node; and between nodes, for a rank that owns c
    chunks, c / K of those of the outer schedule. Fan-in: the larger of the two.

    Args:
      inner: for the L ranks of a node; first reductions only, then copies only.
      outer: for the N nodes.

    Returns:
      A schedule of N L ranks, with as many chunks as the product of both.
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
    """The closed form of `compose`: every role inside a node with every role between nodes."""
    middle = _middle(inner)
    owned = np.bincount(_owners(inner)).max() / inner.num_chunks
    # A rank sends all its chunks to a peer as one message: bytes are in proportion to them, messages are not.
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
    """The first round with copies."""
    copies = [not inner.table(index)[:, 3].all() for index in range(inner.num_rounds)]
    middle = copies.index(True) if copies else 0
    reductions_after = any(inner.table(index)[:, 3].any() for index in range(middle, inner.num_rounds))
    assert not reductions_after, "an inner schedule first reduces, then copies"
    return middle


def _owners(inner: Schedule) -> np.ndarray:
    """int64 [num_chunks], which rank has the whole sum of each chunk when the copies begin: the first to send it."""
    owner = np.zeros(inner.num_chunks, np.int64)
    for index in reversed(range(_middle(inner), inner.num_rounds)):
        src, _, chunk, _ = inner.table(index).T
        owner[chunk] = src
    return owner
