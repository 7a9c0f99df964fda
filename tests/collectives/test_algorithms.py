"""Properties that every algorithm in the table has, and those that its docstring claims."""

import collections

import numpy as np
import pytest

from jaxdp.collectives import run_numpy
from jaxdp.collectives.algorithms import multicolor
from jaxdp.collectives.verify import verify

WORLDS = [*range(1, 34), 48, 64, 100, 257]


def settings(num_ranks):
    """Colors and arities for a world, the default among them."""
    for colors in sorted({1, 2, 3, 4, 7, num_ranks} & set(range(1, min(num_ranks, 9) + 1))):
        for arity in sorted({1, 2, colors}):
            yield colors, arity


@pytest.mark.parametrize("num_ranks", WORLDS)
def test_multicolor_is_an_allreduce(num_ranks):
    for colors, arity in settings(num_ranks):
        verify(multicolor(num_ranks, colors=colors, arity=arity))


@pytest.mark.parametrize("num_ranks", [1, 2, 3, 4, 5, 8, 13])
@pytest.mark.parametrize("num_elements", [1, 3, 50])
def test_the_oracle_sums_exactly_and_alike(num_ranks, num_elements):
    payloads = [np.random.default_rng(rank).integers(-99, 99, num_elements) for rank in range(num_ranks)]
    for colors, arity in settings(num_ranks):
        results = run_numpy.allreduce(multicolor(num_ranks, colors=colors, arity=arity), payloads)
        assert all((result == np.sum(payloads, axis=0)).all() for result in results)


def test_replicas_have_equal_bits_where_additions_round():
    payloads = [np.random.default_rng(rank).standard_normal(1000, np.float32) for rank in range(7)]
    results = run_numpy.allreduce(multicolor(7, colors=4, arity=4), payloads)
    assert all(result.tobytes() == results[0].tobytes() for result in results)
    np.testing.assert_allclose(results[0], np.sum(payloads, axis=0), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("num_ranks", WORLDS)
def test_multicolor_has_the_rounds_and_moves_of_its_docstring(num_ranks):
    for colors, arity in settings(num_ranks):
        schedule = multicolor(num_ranks, colors=colors, arity=arity)
        depth, last = 0, num_ranks - 1
        while last > 0:
            depth, last = depth + 1, (last - 1) // arity
        assert schedule.num_rounds == 2 * depth
        assert schedule.num_moves == 2 * (num_ranks - 1) * colors


@pytest.mark.parametrize("num_ranks", WORLDS)
def test_multicolor_spreads_internal_roles_as_evenly_as_can_be(num_ranks):
    for colors, arity in settings(num_ranks):
        schedule = multicolor(num_ranks, colors=colors, arity=arity)
        parents = set(zip(schedule.dst[schedule.reduce], schedule.chunk[schedule.reduce], strict=True))
        roles = collections.Counter(int(rank) for rank, _ in parents)
        internal = -(-(num_ranks - 1) // arity)
        assert len(parents) == internal * colors
        counts = [roles[rank] for rank in range(num_ranks)]
        assert min(counts) == internal * colors // num_ranks
        assert max(counts) == -(-internal * colors // num_ranks)
        if arity == colors and num_ranks > 1:
            assert (max(counts) <= 1) == (num_ranks % colors in (0, 1))


@pytest.mark.parametrize("num_ranks", WORLDS)
def test_multicolor_sends_and_receives_what_its_docstring_says(num_ranks):
    for colors, arity in settings(num_ranks):
        schedule = multicolor(num_ranks, colors=colors, arity=arity)
        adds = schedule.reduce
        for rank in range(num_ranks):
            not_root = np.sum(adds & (schedule.src == rank))
            children = np.sum(adds & (schedule.dst == rank))
            assert np.sum(schedule.src == rank) == np.sum(schedule.dst == rank) == not_root + children


def test_two_colors_of_binary_trees_share_no_internal_rank():
    schedule = multicolor(8, colors=2, arity=2)
    first, second = (set(schedule.dst[schedule.reduce & (schedule.chunk == color)]) for color in (0, 1))
    assert first.isdisjoint(second)


@pytest.mark.parametrize("colors", [0, -1, 5])
def test_colors_that_the_world_does_not_have_are_refused(colors):
    with pytest.raises(ValueError, match=r"set allreduce\.colors to a number from 1 to 4"):
        multicolor(4, colors=colors, arity=2)


def test_an_arity_below_one_is_refused():
    with pytest.raises(ValueError, match=r"set allreduce\.arity to 1 or more"):
        multicolor(4, colors=2, arity=0)
