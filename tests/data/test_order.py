import numpy as np
import pytest

from jaxdp.data.order import BatchSplit, Order, even_bounds, permutation


def test_permutation_has_each_example_once():
    assert sorted(permutation(1000, seed=1, epoch=2).tolist()) == list(range(1000))


def test_permutation_depends_only_on_seed_and_epoch():
    orders = {(seed, epoch): tuple(permutation(50, seed=seed, epoch=epoch)) for seed in (0, 1) for epoch in (0, 1)}
    assert len(set(orders.values())) == 4
    assert orders[0, 1] == tuple(permutation(50, seed=0, epoch=1))


def test_permutation_never_changes():
    """A run may be resumed with another version of NumPy."""
    assert permutation(8, seed=0, epoch=0).tolist() == [0, 2, 1, 5, 4, 3, 6, 7]
    assert permutation(8, seed=7, epoch=3).tolist() == [2, 5, 7, 3, 0, 6, 4, 1]


@pytest.mark.parametrize(("num_examples", "batch_size"), [(10, 3), (7, 7), (3, 10), (100, 64)])
def test_batches_are_full_and_straddle_epochs(num_examples, batch_size):
    order = Order(num_examples, batch_size, seed=5)
    steps = 3 * num_examples
    flat = order.examples(0, steps).ravel()
    for epoch in range(3 * batch_size):
        expected = permutation(num_examples, seed=5, epoch=epoch)
        np.testing.assert_array_equal(flat[epoch * num_examples : (epoch + 1) * num_examples], expected)


def test_window_of_steps_is_a_slice_of_the_order():
    order = Order(11, 4, seed=0)
    np.testing.assert_array_equal(order.examples(5, 9), order.examples(0, 20)[5:9])


@pytest.mark.parametrize("batch_size", [1, 5, 12, 13, 64])
@pytest.mark.parametrize(("num_ranks", "devices"), [(1, 1), (1, 4), (3, 1), (2, 3), (5, 2)])
def test_batch_is_dealt_in_order_evenly_and_padded(batch_size, num_ranks, devices):
    batch_split = BatchSplit(batch_size, num_ranks, devices)
    dealt = []
    for rank in range(num_ranks):
        rows = batch_split.rows_of(rank)
        assert len(rows) == batch_split.rank_bounds[rank + 1] - batch_split.rank_bounds[rank]
        padded = np.full(devices * batch_split.per_device, -1)
        padded[rows] = np.arange(batch_split.rank_bounds[rank], batch_split.rank_bounds[rank + 1])
        counts = (padded.reshape(devices, -1) >= 0).sum(axis=1)
        dealt.append((padded[padded >= 0], counts))
    np.testing.assert_array_equal(np.concatenate([rows for rows, _ in dealt]), np.arange(batch_size))
    counts = np.concatenate([counts for _, counts in dealt])
    assert counts.max() - counts.min() <= 1
    assert batch_split.per_device == counts.max()
    assert batch_split.padded == (counts.max() != counts.min())


def test_even_bounds_differ_by_at_most_one():
    assert even_bounds(10, 4).tolist() == [0, 2, 5, 7, 10]
    assert even_bounds(2, 4).tolist() == [0, 0, 1, 1, 2]
