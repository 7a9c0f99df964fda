import time

import numpy as np
import pytest

from jaxdp.data.feed import Prefetcher, padded


def test_padded_places_rows_and_zeros_the_rest():
    result = padded(np.array([[1, 2], [3, 4]], np.uint8), np.array([0, 2]), 4)
    assert result.tolist() == [[1, 2], [0, 0], [3, 4], [0, 0]]
    assert result.dtype == np.uint8


def test_batches_arrive_in_order():
    assert list(Prefetcher(iter(range(20)), lambda batch: batch * 2, depth=3)) == [2 * batch for batch in range(20)]


def test_feed_prefetches_at_most_depth_batches():
    placed = []
    batches = iter(Prefetcher(iter(range(100)), lambda batch: placed.append(batch) or batch, depth=2))
    next(batches)
    deadline = time.monotonic() + 10
    # The consumer has one, two wait for it, and the thread holds the next one.
    while len(placed) < 1 + 2 + 1 and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(0.1)
    assert placed == [0, 1, 2, 3]
    list(batches)


def test_exception_in_the_thread_reaches_the_consumer():
    def fails():
        yield 1
        raise RuntimeError("in the thread")

    batches = iter(Prefetcher(fails(), lambda batch: batch, depth=2))
    assert next(batches) == 1
    with pytest.raises(RuntimeError, match="in the thread"):
        next(batches)


def test_consumer_wait_time_is_reported_once():
    def slow():
        for item in range(3):
            time.sleep(0.05)
            yield item

    fed = Prefetcher(slow(), lambda item: item, depth=1)
    list(fed)
    assert fed.take_waited() > 0.1
    assert fed.take_waited() == 0
