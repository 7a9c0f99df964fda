import collections
import random

import pytest

from jaxdp.collectives.algorithms import multicolor
from jaxdp.collectives.phases import phases
from jaxdp.collectives.schedule import Move


def check(moves):
    found = phases([(move.src, move.dst) for move in moves])
    sent = collections.Counter(move.src for move in moves)
    received = collections.Counter(move.dst for move in moves)
    assert len(found) == max([*sent.values(), *received.values()], default=0)
    assert sorted(index for phase in found for index in phase) == list(range(len(moves)))
    for phase in found:
        assert len({moves[index].src for index in phase}) == len(phase)
        assert len({moves[index].dst for index in phase}) == len(phase)


@pytest.mark.parametrize("seed", range(20))
def test_random_rounds_use_the_minimum_number_of_phases(seed):
    rng = random.Random(seed)
    for _ in range(50):
        ranks = rng.randrange(2, 9)
        check([Move(*rng.sample(range(ranks), 2), rng.randrange(3), True) for _ in range(rng.randrange(40))])


@pytest.mark.parametrize("num_ranks", [2, 3, 4, 7, 16])
def test_multicolor_rounds_use_the_minimum_number_of_phases(num_ranks):
    schedule = multicolor(num_ranks, colors=min(4, num_ranks), arity=min(4, num_ranks))
    for index in range(schedule.num_rounds):
        check(schedule.round(index))
