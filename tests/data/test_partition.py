import numpy as np
import pytest

from jaxdp.data.order import Order, even_bounds
from jaxdp.data.partition import Partitions, moves

CASES = [(100, 4, 10), (101, 3, 7), (23, 5, 5), (8, 8, 8), (50, 1, 9)]


@pytest.mark.parametrize(("num_examples", "count", "batch_size"), CASES)
def test_epochs_are_permutations_and_partitions_share_batches_evenly(num_examples, count, batch_size):
    partitions = Partitions(num_examples, count, 2, batch_size, seed=3)
    bounds = even_bounds(num_examples, count)
    for epoch in range(5):
        examples = partitions.order(epoch)
        assert sorted(examples.tolist()) == list(range(num_examples))
        slots = np.argsort(partitions.holdings(partitions.period(epoch)))[examples]
        partition = np.searchsorted(bounds, slots, side="right") - 1
        # Skip the examples that complete the last batch of the previous epoch.
        first = -epoch * num_examples % batch_size
        for start in range(first, num_examples - batch_size + 1, batch_size):
            of_batch = partition[start : start + batch_size]
            assert (np.diff(of_batch) >= 0).all()
            assert np.abs(np.bincount(of_batch, minlength=count) - batch_size / count).max() < 2


def test_partitions_reshuffle_each_epoch_and_exchange_each_period():
    partitions = Partitions(60, 3, 2, 6, seed=0)
    of_first = [set(partitions.holdings(period)[:20].tolist()) for period in range(3)]
    assert of_first[0] == set(range(20))
    assert len(set(map(frozenset, of_first))) == 3
    orders = [tuple(partitions.order(epoch).tolist()) for epoch in range(4)]
    assert len(set(orders)) == 4
    assert [partitions.period(epoch) for epoch in range(5)] == [0, 0, 1, 1, 2]
    assert orders != [tuple(Partitions(60, 3, 2, 6, seed=1).order(epoch).tolist()) for epoch in range(4)]


def test_order_follows_its_partitions():
    partitions = Partitions(20, 2, 1, 6, seed=0)
    flat = Order(20, 6, 0, partitions.order).examples(0, 10).ravel()
    np.testing.assert_array_equal(flat[:20], partitions.order(0))
    np.testing.assert_array_equal(flat[20:40], partitions.order(1))


@pytest.mark.parametrize("at_once", [1, 3, 10, 1000])
@pytest.mark.parametrize("num_slots", [1, 2, 37])
def test_moves_permute_slots_in_place(num_slots, at_once):
    rng = np.random.default_rng(num_slots)
    for _ in range(5):
        before, after = rng.permutation(num_slots), rng.permutation(num_slots)
        memory = before.copy()
        for sources, targets in moves(before, after, at_once=at_once):
            assert len(set(targets.tolist())) == len(targets) <= 2 * at_once
            memory[targets] = memory[sources]
        np.testing.assert_array_equal(memory, after)


def test_equal_arrangements_need_no_moves():
    for sources, _ in moves(np.arange(9), np.arange(9), at_once=2):
        assert sources.size == 0
