"""The multi-color allreduce of Sreedhar et al. (arXiv 1711.00705): one tree a color, one chunk a tree."""

from jaxdp.collectives.schedule import Move, Schedule


def multicolor(num_ranks: int, *, colors: int, arity: int) -> Schedule:
    """Sums chunk c up tree c, and sends the sum down it again.

    With p ranks, k colors and arity a, every tree is the complete a-ary heap over p positions: the children
    of position j are a j + 1 ... a j + a, and the internal positions are the first I = ceil((p - 1) / a),
    the fewest that an a-ary tree can have. Color c puts rank (j + c I) mod p on position j. The internal
    roles of all colors together are then k I ranks in a row, around the world: every rank is internal in
    floor(k I / p) or ceil(k I / p) colors, as evenly as can be, and with a = k in at most one if and only if
    p mod k is 0 or 1. Two colors of binary trees are those of Sanders, Speck and Traeff (2009).

    Rounds: 2 depth, the depth being the level of position p - 1 (floor(log_a p) or one more; p - 1 for a = 1).
    Moves: 2 (p - 1) a chunk. Rank r sends, and receives, n / k elements for every color of which it is not the
    root, and once more for each of its children there: about 2 n in all if a = k.

    Args:
      num_ranks: p, 1 or more.
      colors: k, from 1 to p.
      arity: a, 1 or more.

    Returns:
      A schedule of p ranks and k chunks.

    Raises:
      ValueError: colors or arity out of range.
    """
    if not 1 <= colors <= num_ranks:
        raise ValueError(
            f"{colors} colors need from {max(colors, 1)} ranks up, this world has {num_ranks}: "
            f"set allreduce.colors to a number from 1 to {num_ranks}"
        )
    if arity < 1:
        raise ValueError(f"a tree needs an arity of at least 1, not {arity}: set allreduce.arity to 1 or more")

    num_internal = -(-(num_ranks - 1) // arity)
    levels = _levels(num_ranks, arity)

    def rank_at(position: int, color: int) -> int:
        return (position + color * num_internal) % num_ranks

    def up(level: list[int]) -> list[Move]:
        return [
            Move(rank_at(child, color), rank_at((child - 1) // arity, color), color, True)
            for color in range(colors)
            for child in level
        ]

    to_root = [up(level) for level in reversed(levels[1:])]
    from_root = [[Move(move.dst, move.src, move.chunk, False) for move in moves] for moves in reversed(to_root)]
    return Schedule.from_rounds(num_ranks, colors, to_root + from_root)


def _levels(num_positions: int, arity: int) -> list[list[int]]:
    """The positions of a complete heap, level by level from the root."""
    levels: list[list[int]] = []
    first, width = 0, 1
    while first < num_positions:
        levels.append(list(range(first, min(first + width, num_positions))))
        first, width = first + width, width * arity
    return levels
