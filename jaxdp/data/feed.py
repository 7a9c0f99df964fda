"""Batches onto the devices, ahead of the step, on a thread."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import numpy as np

from jaxdp.data.exchange import exchange
from jaxdp.data.order import Deal, Order
from jaxdp.data.source import Split
from jaxdp.step import Batch

if TYPE_CHECKING:
    from mpi4py import MPI


def batches(
    split: Split,
    *,
    order: Order,
    deal: Deal,
    comm: MPI.Intracomm,
    steps: range,
    steps_per_exchange: int,
) -> Iterator[Batch]:
    """This rank's part of the global batches of these steps, as host arrays; every rank must take all of them."""
    rows = deal.rows_of(comm.rank)
    size = deal.devices_per_rank * deal.per_device
    # Windows lie at fixed steps whatever the first step is, so that a resumed run has the same exchanges.
    first = steps.start
    while first < steps.stop:
        end = min(steps.stop, (first // steps_per_exchange + 1) * steps_per_exchange)
        for images, labels in zip(*exchange(split, order.examples(first, end), deal, comm), strict=True):
            yield Batch(
                padded(images, rows, size), padded(labels, rows, size), padded(np.ones(len(rows), bool), rows, size)
            )
        first = end


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


def ahead(host_batches: Iterator[Batch], place: Callable[[Batch], Batch], *, depth: int) -> Iterator[Batch]:
    """Puts batches onto the devices on a thread, so many ahead of their use.

    An exception of the thread comes out of the iterator.

    Args:
      host_batches: consumed on the thread.
      place: host arrays to device arrays.
      depth: batches ahead, 1 or more.
    """
    ready: queue.Queue[Batch | BaseException | None] = queue.Queue(depth)

    def fill() -> None:
        try:
            for batch in host_batches:
                ready.put(place(batch))
            ready.put(None)
        except BaseException as error:
            ready.put(error)

    thread = threading.Thread(target=fill, name="jaxdp-feed", daemon=True)
    thread.start()
    while (batch := ready.get()) is not None:
        if isinstance(batch, BaseException):
            raise batch
        yield batch
    thread.join()
