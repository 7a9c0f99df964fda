"""Prepares batches ahead of the step, on background threads."""

from __future__ import annotations

import itertools
import queue
import threading
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import numpy as np

from jaxdp.data.audit import Audit
from jaxdp.data.batch import Batch
from jaxdp.data.exchange import Delivery, exchange, rearrange
from jaxdp.data.nodes import Group
from jaxdp.data.order import BatchSplit, Order
from jaxdp.data.partition import Partitions
from jaxdp.data.rows import Buffers
from jaxdp.data.split import Split

if TYPE_CHECKING:
    from mpi4py import MPI

    from jaxdp.runtime.world import World

T = TypeVar("T")


class ExchangeGate:
    """Gate in front of each exchange: lets it proceed, or makes all ranks stop after the same one.

    An exchange involves all ranks: once it has begun on one rank, it must begin on every rank.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._begun = 0
        self._last: int | None = None
        self._is_frozen = False

    def begin(self) -> bool:
        """Returns whether the caller may begin another exchange, and counts it if so; waits for a running `close`."""
        with self._changed:
            self._changed.wait_for(lambda: not self._is_frozen)
            if self._last is not None and self._begun >= self._last:
                return False
            self._begun += 1
            return True

    def close(self, world: World) -> None:
        """Ends all ranks' feeds after the last exchange that has begun on any rank; all ranks call it together."""
        with self._changed:
            self._is_frozen = True
            begun = self._begun
        last = max(world.allgather(begun))
        with self._changed:
            self._last, self._is_frozen = last, False
            self._changed.notify_all()


def batches(
    split: Split,
    *,
    order: Order,
    batch_split: BatchSplit,
    rank: int,
    group: Group,
    comm: MPI.Intracomm,
    steps: range,
    steps_per_exchange: int,
    partitions: Partitions | None = None,
    gate: ExchangeGate | None = None,
) -> Iterator[Batch]:
    """Yields this rank's part of the global batch of each step, as host arrays; every rank must take all of them.

    A background thread exchanges the rows of the next steps while the batches of the previous exchange are handed out.

    Args:
      split: the part of the split that this rank's node holds. With partitions it must have the holdings of the first
        step's period; its memory is rearranged when the next period begins.
      order: order of the examples.
      batch_split: how a batch is divided among ranks and devices.
      rank: this rank's number in the world.
      group: the ranks that share the split, with an open communicator (`Group.opened`).
      comm: communicator of all ranks of the world, not used by anything else.
      steps: steps of the job.
      steps_per_exchange: number of steps whose rows cross in one exchange.
      partitions: partitions of the data; None if the data is not shuffled by partition.
      gate: gate that may end the feed before its last step.
    """
    gate = gate or ExchangeGate()
    places = batch_split.rows_of(rank)
    buffers = Buffers(batch_split.devices_per_rank * batch_split.per_device, split.images.shape)
    mine = slice(*batch_split.rank_bounds[rank : rank + 2])
    # Columns of the global batch that go to the group's ranks, rank by rank.
    shares = [np.arange(*batch_split.rank_bounds[member : member + 2]) for member in group.ranks]
    columns, bounds = np.concatenate(shares), np.cumsum([0, *map(len, shares)])
    assert group.comm is not None, "the group must be opened before batches are made"
    exchanging = group.comm
    audit = Audit(order, steps.start)

    def windows(split: Split, steps: range) -> Iterator[tuple[np.ndarray, Delivery]]:
        # Windows end at the same steps whatever the first step is, so that a resumed run has the same exchanges.
        first = steps.start
        while first < steps.stop and gate.begin():
            end = min(steps.stop, (first // steps_per_exchange + 1) * steps_per_exchange)
            epochs = order.epochs(first, end)[:, mine]
            ids = np.ascontiguousarray(order.examples(first, end)[:, columns])
            delivery = exchange(split, ids, bounds, group.nodes, exchanging)
            audit.add(delivery.ids.ravel(), epochs.ravel())
            audit.settle(end, comm)
            yield epochs, delivery
            first = end

    for period, of_period in _periods(steps, partitions):
        if partitions is not None and of_period.start > steps.start:
            if not gate.begin():
                return
            at_once = steps_per_exchange * order.batch_size
            split = rearrange(split, partitions.holdings(period), group.nodes, exchanging, at_once=at_once)
        for epochs, delivery in Prefetcher(windows(split, of_period), lambda window: window, depth=1):
            for step, of_step in enumerate(epochs):
                image_BHWC = empty_images(buffers, places)
                delivery.fill(step, of_step, image_BHWC, places)
                yield make_batch(image_BHWC, delivery.labels[step], delivery.ids[step], of_step, places)


def _periods(steps: range, partitions: Partitions | None) -> Iterator[tuple[int, range]]:
    """Yields each period with its steps; without partitions, a single period with all steps."""
    if partitions is None:
        yield 0, steps
        return
    for period, of_period in itertools.groupby(steps, partitions.period_at):
        first, *others = of_period
        yield period, range(first, first + 1 + len(others))


def empty_images(buffers: Buffers, places: np.ndarray) -> np.ndarray:
    """Takes a buffer for images, to be filled at `places`; all other rows are zeros."""
    image_BHWC = buffers.take()
    if len(places) < len(image_BHWC):
        padding = np.ones(len(image_BHWC), bool)
        padding[places] = False
        image_BHWC[padding] = 0
    return image_BHWC


def make_batch(
    image_BHWC: np.ndarray, labels: np.ndarray, ids: np.ndarray, epochs: np.ndarray, places: np.ndarray
) -> Batch:
    """Makes a batch with examples at `places`; all other rows are masked padding.

    Args:
      image_BHWC: uint8, a filled array from `empty_images`.
      labels: int32 [rows], labels of the examples.
      ids: int64 [rows], ids of the examples.
      epochs: int64 [rows], epoch in which each example is seen.
      places: int64 [rows], row of each example in the batch.
    """
    about = np.empty((len(labels), 4), np.int32)
    about[:, 0], about[:, 1], about[:, 2], about[:, 3] = labels, 1, ids, epochs
    return Batch(image_BHWC, padded(about, places, len(image_BHWC)))


def padded(values: np.ndarray, rows: np.ndarray, size: int) -> np.ndarray:
    """Puts each value on its row of an array of `size` rows; all other rows are zeros.

    Args:
      values: [N, ...], values to place.
      rows: int64 [N], row of each value.
      size: number of rows of the result.

    Returns:
      [size, ...]
    """
    if len(values) == size:
        return values
    result = np.zeros((size, *values.shape[1:]), values.dtype)
    result[rows] = values
    return result


class Prefetcher(Generic[T]):
    """Runs an iterator on a thread, ahead of its consumer; an exception on the thread is raised in the consumer.

    Args:
      items: iterator to consume on the thread.
      place: function that the thread applies to each item.
      depth: maximum number of finished items that wait for the consumer, 1 or more.
    """

    def __init__(self, items: Iterator[Any], place: Callable[[Any], T], *, depth: int):
        self._ready: queue.Queue[tuple[bool, Any]] = queue.Queue(depth)
        self._thread = threading.Thread(target=self._fill, args=(items, place), name="jaxdp-feed", daemon=True)
        self._waited = 0.0

    def _fill(self, items: Iterator[Any], place: Callable[[Any], T]) -> None:
        try:
            for item in items:
                self._ready.put((True, place(item)))
            self._ready.put((False, None))
        except BaseException as error:
            self._ready.put((False, error))

    def __iter__(self) -> Iterator[T]:
        """Starts the thread and yields the items; may be called only once."""
        self._thread.start()
        while True:
            start = time.perf_counter()
            more, item = self._ready.get()
            self._waited += time.perf_counter() - start
            if not more:
                break
            yield item
        self._thread.join()
        if item is not None:
            raise item

    def take_waited(self) -> float:
        """Seconds that the consumer has waited for items since the last call."""
        waited, self._waited = self._waited, 0.0
        return waited
