"""The multi-color allreduce of Sreedhar et al. (arXiv 1711.00705): one tree per color, one chunk per tree."""

import dataclasses

import numpy as np

from jaxdp.collectives.cost import Activity, Profile
from jaxdp.collectives.schedule import Schedule, moves, turned_round


def multicolor(num_ranks: int, *, colors: int, arity: int) -> Schedule:
    """Returns a schedule that sums chunk c up tree c, and sends the sum down the same tree.

    With p ranks, k colors and arity a, every tree is the complete a-ary heap over p positions. The children of position
    j are a j + 1 ... a j + a. The internal positions are the first I = ceil((p - 1) / a), the fewest that an a-ary tree
    can have. Color c puts rank (j + c I) mod p at position j.

    The internal positions of all colors together therefore take k I consecutive ranks (mod p). Every rank is internal
    in floor(k I / p) or ceil(k I / p) colors, as evenly as possible. With a = k, every rank is internal in at most one
    color if and only if p mod k is 0 or 1. Two colors of binary trees are those of Sanders, Speck and Traeff (2009).

    Rounds: 2 depth, where depth is the level of position p - 1 (floor(log_a p) or one more; p - 1 for a = 1). Bytes:
    for every color, a rank sends and receives n / k for its parent, if it has one, and n / k for each of its children.
    If a = k, these are about 2 n in total (the lower bound is 2 n (p - 1) / p). Fan-in: a in each color.

    Args:
      num_ranks: number of ranks p, 1 or more.
      colors: number of colors k, from 1 to p.
      arity: arity a of the trees, 1 or more.

    Returns:
      A schedule of p ranks and k chunks.

    Raises:
      ValueError: colors or arity is out of range.
    """
    if not 1 <= colors <= num_ranks:
        raise ValueError(
            f"{colors} colors need at least {max(colors, 1)} ranks, but this job has {num_ranks}: "
            f"set allreduce.colors to a number from 1 to {num_ranks}"
        )
    if arity < 1:
        raise ValueError(f"a tree needs an arity of at least 1, not {arity}: set allreduce.arity to 1 or more")

    color = np.arange(colors)[:, None]
    first = color * _num_internal(num_ranks, arity)

    def up(child: np.ndarray) -> np.ndarray:
        return moves((child + first) % num_ranks, ((child - 1) // arity + first) % num_ranks, color, reduce=True)

    to_root = [up(level) for level in reversed(_levels(num_ranks, arity)[1:])]
    return Schedule.from_rounds(num_ranks, colors, to_root + [turned_round(part) for part in reversed(to_root)])


def multicolor_profile(num_ranks: int, *, colors: int, arity: int) -> Profile:
    """Returns the closed form of the cost of `multicolor`.

    Every rank has its own role, which follows from its level and its number of children in each color.
    """
    levels = _levels(num_ranks, arity)
    level_of = np.repeat(np.arange(len(levels)), [len(level) for level in levels])
    children_of = np.bincount((np.arange(1, num_ranks) - 1) // arity, minlength=num_ranks)
    depth = len(levels) - 1
    up = np.zeros((num_ranks, depth, len(dataclasses.fields(Activity))))
    # Colors with c I equal modulo p have the same tree: they share messages, with several chunks in each.
    places, num_chunks = np.unique(np.arange(colors) * _num_internal(num_ranks, arity) % num_ranks, return_counts=True)
    rank = np.arange(num_ranks)
    for place, size in zip(places, num_chunks / colors, strict=True):
        position = (rank - place) % num_ranks
        level = level_of[position]
        # Going up, a rank receives from its children in one round and sends to its parent in the next.
        parents, others = level < depth, level > 0
        children = children_of[position[parents], None]
        from_children = children * dataclasses.astuple(Activity(messages_in=1, received=size, added=size))
        to_parent = dataclasses.astuple(Activity(messages_out=1, sent=size))
        up[rank[parents], depth - 1 - level[parents]] += from_children
        up[rank[others], depth - level[others]] += to_parent
    # On the way down, in and out are swapped and nothing is added.
    down = up[:, ::-1][..., [2, 3, 0, 1, 4]] * [1, 1, 1, 1, 0]
    return Profile.of_table(np.concatenate([up, down], axis=1))


def _num_internal(num_ranks: int, arity: int) -> int:
    return -(-(num_ranks - 1) // arity)


def _levels(num_positions: int, arity: int) -> list[np.ndarray]:
    """Returns the positions of a complete heap, level by level from the root."""
    levels = []
    first, width = 0, 1
    while first < num_positions:
        levels.append(np.arange(first, min(first + width, num_positions)))
        first, width = first + width, width * arity
    return levels
