"""A symbolic simulator that proves that a schedule is an allreduce with the same order of additions on all ranks."""

from jaxdp.collectives.schedule import Schedule


def verify(schedule: Schedule, *, wire_rounds: bool = False) -> None:
    """Proves that every rank ends with the sum of all contributions, each exactly once, added in one order.

    Runs the schedule on expression trees, one for each (rank, chunk). Equal trees share one number, so comparing two
    trees costs nothing. Each tree is stored with the set of ranks whose contributions are its leaves. A tree is
    `left + right` in that order, so the proof covers equal bits, not only equal sums.

    Args:
      schedule: the schedule to prove.
      wire_rounds: whether values are rounded when they are sent (16-bit wire formats), which makes `rounded(x)` a
        tree too. A rank that sends a chunk as a copy first rounds its own chunk, as every executor does.

    Raises:
      ValueError: a contribution is missing or counted twice, or two ranks add in different orders. The message names
        the first such chunk and rank.
    """
    sums: dict[tuple[int, int], int] = {}
    rounded: dict[int, int] = {}
    leaves_of = [1 << rank for rank in range(schedule.num_ranks)]
    twice_in = [0] * schedule.num_ranks

    def add(left: int, right: int) -> int:
        if (left, right) not in sums:
            sums[left, right] = len(leaves_of)
            leaves_of.append(leaves_of[left] | leaves_of[right])
            twice_in.append(twice_in[left] | twice_in[right] | (leaves_of[left] & leaves_of[right]))
        return sums[left, right]

    def on_wire(tree: int) -> int:
        if not wire_rounds:
            return tree
        if tree not in rounded:
            rounded[tree] = new = len(leaves_of)
            rounded[new] = new  # Rounding twice is rounding once.
            leaves_of.append(leaves_of[tree])
            twice_in.append(twice_in[tree])
        return rounded[tree]

    held = [[rank] * schedule.num_chunks for rank in range(schedule.num_ranks)]
    for index in range(schedule.num_rounds):
        moves = schedule.round(index)
        for move in moves:
            if not move.reduce:
                held[move.src][move.chunk] = on_wire(held[move.src][move.chunk])
        sent = [on_wire(held[move.src][move.chunk]) for move in moves]
        for move, tree in zip(moves, sent, strict=True):
            there = held[move.dst][move.chunk]
            held[move.dst][move.chunk] = add(there, tree) if move.reduce else tree

    everyone = (1 << schedule.num_ranks) - 1
    for chunk in range(schedule.num_chunks):
        for rank in range(schedule.num_ranks):
            tree = held[rank][chunk]
            if missing := everyone & ~leaves_of[tree]:
                raise ValueError(
                    f"an allreduce must sum the contributions of all ranks: the result of rank {rank} for chunk "
                    f"{chunk} lacks the contribution of rank {_lowest(missing)}"
                )
            if twice_in[tree]:
                raise ValueError(
                    f"an allreduce must add each contribution once: the result of rank {rank} for chunk {chunk} "
                    f"contains the contribution of rank {_lowest(twice_in[tree])} more than once"
                )
            if tree != held[0][chunk]:
                raise ValueError(
                    f"all ranks must add in the same order to get equal bits: ranks 0 and {rank} add chunk "
                    f"{chunk} in different orders{' or round it differently' if wire_rounds else ''}"
                )


def _lowest(ranks: int) -> int:
    return (ranks & -ranks).bit_length() - 1
