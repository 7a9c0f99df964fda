"""The verifier itself is tested: its verdict on every mutant is that of brute-force execution."""

import numpy as np
import pytest

from jaxdp.collectives import run_numpy
from jaxdp.collectives.algorithms import multicolor
from jaxdp.collectives.schedule import Move, Schedule
from jaxdp.collectives.verify import verify


def rounds_of(schedule):
    return [schedule.round(index) for index in range(schedule.num_rounds)]


def mutants(schedule):
    """Every schedule in which one move is dropped, doubled, turned round, sent elsewhere, or in another round."""
    for index, moves in enumerate(rounds_of(schedule)):
        for place, move in enumerate(moves):
            others = [
                [],
                [move, move],
                [move._replace(src=move.dst, dst=move.src)],
                [move._replace(reduce=not move.reduce)],
                *([move._replace(dst=dst)] for dst in range(schedule.num_ranks) if dst not in (move.src, move.dst)),
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
    """By execution: rank r contributes the integer 1000^r, so that digits count each contribution."""
    payloads = [np.array([1000**rank] * schedule.num_chunks, dtype=object) for rank in range(schedule.num_ranks)]
    expected = sum(1000**rank for rank in range(schedule.num_ranks))
    return all((result == expected).all() for result in run_numpy.allreduce(schedule, payloads))


def adds_in_one_order(schedule):
    """By execution on text: `(a+b)` spells out the order."""

    class Text(str):
        __slots__ = ()

        def __add__(self, other):
            return Text(f"({self!s}+{other!s})")

    payloads = [np.array([Text(rank)] * schedule.num_chunks, dtype=object) for rank in range(schedule.num_ranks)]
    results = [result.tolist() for result in run_numpy.allreduce(schedule, payloads)]
    return all(result == results[0] for result in results)


@pytest.mark.parametrize(("num_ranks", "colors", "arity"), [(2, 1, 1), (3, 2, 2), (4, 2, 2), (5, 3, 2), (4, 4, 4)])
def test_the_verdict_on_every_mutant_is_that_of_execution(num_ranks, colors, arity):
    verdicts = {True: 0, False: 0}
    for mutant in mutants(multicolor(num_ranks, colors=colors, arity=arity)):
        try:
            verify(mutant)
            accepted = True
        except ValueError:
            accepted = False
        assert accepted == (sums_right(mutant) and adds_in_one_order(mutant))
        verdicts[accepted] += 1
    assert verdicts[False] > 0


def test_a_missing_contribution_is_named():
    with pytest.raises(ValueError, match="rank 0 ends chunk 0 without the contribution of rank 1"):
        verify(Schedule.from_rounds(2, 1, [[Move(0, 1, 0, True)]]))


def test_a_contribution_counted_twice_is_named():
    rounds = [[Move(0, 1, 0, True)], [Move(0, 1, 0, True)], [Move(1, 0, 0, False)]]
    with pytest.raises(ValueError, match="rank 0 ends chunk 0 with the contribution of rank 0 more than once"):
        verify(Schedule.from_rounds(2, 1, rounds))


def test_two_orders_of_additions_are_refused_though_the_sums_are_right():
    exchange = Schedule.from_rounds(2, 1, [[Move(0, 1, 0, True), Move(1, 0, 0, True)]])
    assert sums_right(exchange)
    with pytest.raises(ValueError, match="ranks 0 and 1 add chunk 0 in different orders"):
        verify(exchange)
