"""Tests of the verifier: its verdict on every mutated schedule matches brute-force execution."""

import numpy as np
import pytest

from jaxdp.collectives import run_numpy
from jaxdp.collectives.algorithms import ALGORITHMS
from jaxdp.collectives.schedule import Move, Schedule
from jaxdp.collectives.verify import verify


def rounds_of(schedule):
    return [schedule.round(index) for index in range(schedule.num_rounds)]


def mutants(schedule):
    """Yields every schedule with one changed move.

    The move is dropped, doubled or reversed, copies instead of adding or adds instead of copying, has another source,
    destination or chunk, or is in another round.
    """
    for index, moves in enumerate(rounds_of(schedule)):
        for place, move in enumerate(moves):
            others = [
                [],
                [move, move],
                [move._replace(src=move.dst, dst=move.src)],
                [move._replace(reduce=not move.reduce)],
                *(
                    [move._replace(**{end: rank})]
                    for end in ("src", "dst")
                    for rank in range(schedule.num_ranks)
                    if rank not in (move.src, move.dst)
                ),
                *([move._replace(chunk=chunk)] for chunk in range(schedule.num_chunks) if chunk != move.chunk),
            ]
            for instead in others:
                rounds = rounds_of(schedule)
                rounds[index] = [*moves[:place], *instead, *moves[place + 1 :]]
                yield Schedule.from_rounds(schedule.num_ranks, schedule.num_chunks, rounds)
            for elsewhere in range(schedule.num_rounds):
                if elsewhere != index:
                    rounds = rounds_of(schedule)
                    del rounds[index][place]
                    rounds[elsewhere].append(move)
                    yield Schedule.from_rounds(schedule.num_ranks, schedule.num_chunks, rounds)


def sums_right(schedule):
    """Returns whether executing the schedule gives the right sums.

    Rank r contributes the integer 1000^r, so the digits of a sum count each contribution.
    """
    payloads = [np.array([1000**rank] * schedule.num_chunks, dtype=object) for rank in range(schedule.num_ranks)]
    expected = sum(1000**rank for rank in range(schedule.num_ranks))
    return all((result == expected).all() for result in run_numpy.allreduce(schedule, payloads))


class Text(str):
    """A symbolic sum that records the order of its additions and where it was rounded, as in `(a+<b>)`."""

    __slots__ = ()

    def __add__(self, other):
        return Text(f"({self!s}+{other!s})")

    def rounded(self):
        return self if self.startswith("<") else Text(f"<{self!s}>")


def ends_alike(schedule, wire_rounds):
    """Returns whether executing the schedule on symbolic sums gives all ranks the same ones."""
    payloads = [np.array([Text(rank)] * schedule.num_chunks, dtype=object) for rank in range(schedule.num_ranks)]
    rounded = np.frompyfunc(Text.rounded, 1, 1)
    results = run_numpy.allreduce(schedule, payloads, on_wire=rounded if wire_rounds else lambda x: x)
    return all(result.tolist() == results[0].tolist() for result in results)


def is_accepted(schedule, wire_rounds):
    try:
        verify(schedule, wire_rounds=wire_rounds)
    except ValueError:
        return False
    return True


@pytest.mark.parametrize("wire_rounds", [False, True])
@pytest.mark.parametrize("num_ranks", [2, 3, 4, 5])
@pytest.mark.parametrize("name", ALGORITHMS)
def test_verdict_on_every_mutant_matches_execution(name, num_ranks, wire_rounds):
    algorithm = ALGORITHMS[name]
    several = {
        "multicolor": [{"colors": 1, "arity": 1}, {"colors": 2, "arity": 2}],
        "hierarchical": [{"inner": "direct", "outer": "ring", "ranks_per_node": 2 if num_ranks == 4 else num_ranks}],
    }.get(name, [{}])
    verdicts = []
    for options in several:
        for mutant in mutants(algorithm.schedule(num_ranks, **options)):
            verdicts.append(is_accepted(mutant, wire_rounds))
            assert verdicts[-1] == (sums_right(mutant) and ends_alike(mutant, wire_rounds))
    assert False in verdicts


@pytest.mark.parametrize("name", ALGORITHMS)
def test_verdict_on_every_pair_of_changes_matches_execution(name):
    """On 2 ranks; some pairs leave the sums right but change the order of additions, which no single change does."""
    options = {
        "multicolor": {"colors": 2, "arity": 2},
        "hierarchical": {"inner": "direct", "outer": "ring", "ranks_per_node": 2},
    }.get(name, {})
    verdicts = set()
    for once in mutants(ALGORITHMS[name].schedule(2, **options)):
        for twice in mutants(once):
            right, alike = sums_right(twice), ends_alike(twice, wire_rounds=False)
            assert is_accepted(twice, wire_rounds=False) == (right and alike)
            verdicts.add((right, alike))
    assert verdicts == {(True, True), (True, False), (False, True), (False, False)}


def test_wire_rounding_alone_can_make_replicas_differ():
    """Ranks 0 and 2 compute the same sum, but only rank 0 sends it as a copy and therefore rounds it."""
    rounds = [
        [Move(2, 1, 0, True)],
        [Move(0, 2, 0, False)],
        [Move(1, 0, 0, True), Move(1, 2, 0, True)],
        [Move(0, 1, 0, False)],
    ]
    schedule = Schedule.from_rounds(3, 1, rounds)
    verify(schedule)
    with pytest.raises(ValueError, match="ranks 0 and 2 add chunk 0 in different orders or round it differently"):
        verify(schedule, wire_rounds=True)


def test_missing_contribution_is_reported():
    with pytest.raises(ValueError, match="result of rank 0 for chunk 0 lacks the contribution of rank 1"):
        verify(Schedule.from_rounds(2, 1, [[Move(0, 1, 0, True)]]))


def test_contribution_counted_twice_is_reported():
    rounds = [[Move(0, 1, 0, True)], [Move(0, 1, 0, True)], [Move(1, 0, 0, False)]]
    with pytest.raises(
        ValueError, match="result of rank 0 for chunk 0 contains the contribution of rank 0 more than once"
    ):
        verify(Schedule.from_rounds(2, 1, rounds))


def test_different_orders_of_addition_are_refused_despite_correct_sums():
    exchange = Schedule.from_rounds(2, 1, [[Move(0, 1, 0, True), Move(1, 0, 0, True)]])
    assert sums_right(exchange)
    with pytest.raises(ValueError, match="ranks 0 and 1 add chunk 0 in different orders"):
        verify(exchange)
