"""Batches onto the devices, ahead of the step, on threads."""

from __future__ import annotations

import itertools
import queue
import threading
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import numpy as np

from jaxdp.data.audit import Audit
from jaxdp.data.exchange import Delivery, exchange, rearrange
from jaxdp.data.nodes import Group
from jaxdp.data.order import Deal, Order
from jaxdp.data.partition import Partitions
from jaxdp.data.rows import Buffers
from jaxdp.data.split import Split
from jaxdp.step import Batch

if TYPE_CHECKING:
    from mpi4py import MPI

    from jaxdp.world import World

T = TypeVar("T")


class Gate:
    """Lets a feed go on with its exchanges, or has those of all ranks end with the same one.

    An exchange takes all ranks: one that has begun somewhere must begin everywhere.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._begun = 0
        self._last: int | None = None
        self._is_frozen = False

    def begin(self) -> bool:
        """Whether another exchange may begin, the caller being about to begin it."""
        with self._changed:
            self._changed.wait_for(lambda: not self._is_frozen)
            if self._last is not None and self._begun >= self._last:
                return False
            self._begun += 1
            return True

    def close(self, world: World) -> None:
        """Ends the feeds with the last exchange that has begun on any rank; all ranks call it together."""
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
    deal: Deal,
    rank: int,
    group: Group,
    comm: MPI.Intracomm,
    steps: range,
    steps_per_exchange: int,
    partitions: Partitions | None = None,
    gate: Gate | None = None,
) -> Iterator[Batch]:
    """This rank's part of the global batches of these steps, as host arrays; every rank must take all of them.

    The rows of the next exchange cross, on a thread of their own, while those of the last one are handed out.

    Args:
      split: with the holdings of the first step's period, if there are partitions. Its memory is rearranged when the
        next one begins.
      order: which examples are in which batch.
      deal: which part of a batch is whose.
      rank: of the world, this one.
      group: of ranks, those that hold the split between them; opened.
      comm: one communicator on all ranks, for this alone.
      steps: of the job.
      steps_per_exchange: steps whose rows cross at once.
      partitions: of the data, if that is how it is shuffled.
      gate: that may end it before its last step.
    """
    gate = gate or Gate()
    places = deal.rows_of(rank)
    buffers = Buffers(deal.devices_per_rank * deal.per_device, split.images.shape)
    mine = slice(*deal.rank_bounds[rank : rank + 2])
    # The group's ranks get their parts of the batch, side by side here.
    shares = [np.arange(*deal.rank_bounds[member : member + 2]) for member in group.ranks]
    columns, bounds = np.concatenate(shares), np.cumsum([0, *map(len, shares)])
    assert group.comm is not None
    exchanging = group.comm
    audit = Audit(order, steps.start)

    def windows(split: Split, steps: range) -> Iterator[tuple[np.ndarray, Delivery]]:
        # Windows lie at fixed steps whatever the first step is, so that a resumed run has the same exchanges.
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
        for epochs, delivery in Ahead(windows(split, of_period), lambda window: window, depth=1):
            for step, of_step in enumerate(epochs):
                image_BHWC = empty_images(buffers, places)
                delivery.fill(step, of_step, image_BHWC, places)
                yield make_batch(image_BHWC, delivery.labels[step], delivery.ids[step], of_step, places)


def _periods(steps: range, partitions: Partitions | None) -> Iterator[tuple[int, range]]:
    """The steps of each period; all of them at once without partitions."""
    if partitions is None:
        yield 0, steps
        return
    for period, of_period in itertools.groupby(steps, partitions.period_at):
        first, *others = of_period
        yield period, range(first, first + 1 + len(others))


def empty_images(buffers: Buffers, places: np.ndarray) -> np.ndarray:
    """One of the buffers, to be filled in these places; zeros in the others."""
    image_BHWC = buffers.take()
    if len(places) < len(image_BHWC):
        padding = np.ones(len(image_BHWC), bool)
        padding[places] = False
        image_BHWC[padding] = 0
    return image_BHWC


def make_batch(
    image_BHWC: np.ndarray, labels: np.ndarray, ids: np.ndarray, epochs: np.ndarray, places: np.ndarray
) -> Batch:
    """Examples on their places of a batch, the others masked padding.

    Args:
      image_BHWC: uint8, as `empty_images` gives it, filled.
      labels: int32 [rows].
      ids: int64 [rows], which examples they are.
      epochs: int64 [rows], in which each is seen.
      places: int64 [rows].
    """
    about = np.empty((len(labels), 4), np.int32)
    about[:, 0], about[:, 1], about[:, 2], about[:, 3] = labels, 1, ids, epochs
    return Batch(image_BHWC, padded(about, places, len(image_BHWC)))


def padded(values: np.ndarray, rows: np.ndarray, size: int) -> np.ndarray:
    """Puts each value on its row of an array of so many rows; the others are zeros.

    Args:
      values: [N, ...].
      rows: int64 [N].
      size: rows of the result.

    Returns:
      [size, ...]
    """
    if len(values) == size:
        return values
    result = np.zeros((size, *values.shape[1:]), values.dtype)
    result[rows] = values
    return result


class Ahead(Generic[T]):
    """What an iterator gives, made on a thread ahead of its use; an exception of the thread comes out here.

    Args:
      items: consumed on the thread.
      place: what becomes of each item, on the thread.
      depth: of those that are ready, 1 or more.
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
        """Starts the thread; once."""
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
        """Seconds that the consumer has waited since this was asked last."""
        waited, self._waited = self._waited, 0.0
        return waited
