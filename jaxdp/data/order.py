"""Who sees which example when: pure functions of the seed, the same for any number of ranks."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable

import numpy as np


def permutation(num_examples: int, *, seed: int, epoch: int) -> np.ndarray:
    """The order of the examples in an epoch.

    Sorts raw words of the Philox generator, whose stream NumPy guarantees not to change; that of
    `Generator.permutation` it does not, and a run may go on under another NumPy.

    Args:
      num_examples: n.
      seed: of the run, 0 or more.
      epoch: 0 or more.

    Returns:
      int64 [n], each of 0..n-1 once.
    """
    words = np.random.Philox(key=np.array([seed, epoch], dtype=np.uint64)).random_raw(num_examples)
    return np.argsort(words, kind="stable")


def even_bounds(num_items: int, num_parts: int) -> np.ndarray:
    """Cuts 0..num_items evenly: part i is bounds[i]..bounds[i + 1], and sizes differ by one at most.

    Returns:
      int64 [num_parts + 1].
    """
    return np.arange(num_parts + 1, dtype=np.int64) * num_items // num_parts


@dataclasses.dataclass(frozen=True)
class Order:
    """The examples of every global batch: epochs follow one another without a gap, so every batch is full.

    Attributes:
      num_examples: in the split.
      batch_size: the global batch.
      seed: of the run.
      of_epoch: an epoch to the order of its examples, int64 [num_examples]; None for a permutation of all of them.
    """

    num_examples: int
    batch_size: int
    seed: int
    of_epoch: Callable[[int], np.ndarray] | None = None

    def examples(self, first_step: int, end_step: int) -> np.ndarray:
        """The ids of the examples of steps first_step..end_step-1.

        Returns:
          int64 [end_step - first_step, batch_size].
        """
        start, stop, size = first_step * self.batch_size, end_step * self.batch_size, self.num_examples
        parts = [
            self.permutation(epoch)[max(0, start - epoch * size) : stop - epoch * size]
            for epoch in range(start // size, -(-stop // size))
        ]
        return np.concatenate(parts).reshape(-1, self.batch_size)

    def epochs(self, first_step: int, end_step: int) -> np.ndarray:
        """The epoch in which each of them is seen, likewise."""
        positions = np.arange(first_step * self.batch_size, end_step * self.batch_size)
        return (positions // self.num_examples).reshape(-1, self.batch_size)

    def permutation(self, epoch: int) -> np.ndarray:
        """int64 [num_examples]: the order of an epoch; not to be written to."""
        return _cached_order(self, epoch)


@functools.lru_cache(maxsize=2)
def _cached_order(order: Order, epoch: int) -> np.ndarray:
    if order.of_epoch is None:
        found = permutation(order.num_examples, seed=order.seed, epoch=epoch)
    else:
        found = order.of_epoch(epoch)
    found.flags.writeable = False
    return found


@dataclasses.dataclass(frozen=True)
class Deal:
    """How a global batch is dealt to all devices of all ranks, as evenly as can be, in order.

    Attributes:
      batch_size: the global batch.
      num_ranks: of the world.
      devices_per_rank: the same number on all ranks.
      parts: of equal size that a device goes through one after the other.
    """

    batch_size: int
    num_ranks: int
    devices_per_rank: int
    parts: int = 1

    @property
    def padded(self) -> bool:
        """Whether some part of some device gets fewer examples than others."""
        return self.batch_size % (self.num_ranks * self.devices_per_rank * self.parts) != 0

    @property
    def per_device(self) -> int:
        """Rows on each device, padding included."""
        return -(-self.batch_size // (self.num_ranks * self.devices_per_rank * self.parts)) * self.parts

    @property
    def rank_bounds(self) -> np.ndarray:
        """int64 [num_ranks + 1]: rank r has the examples bounds[r]..bounds[r + 1] of the batch."""
        return even_bounds(self.batch_size, self.num_ranks * self.devices_per_rank)[:: self.devices_per_rank]

    def rows_of(self, rank: int) -> np.ndarray:
        """Where in this rank's padded batch each of its examples goes: int64 [number of its examples]."""
        bounds = even_bounds(self.batch_size, self.num_ranks * self.devices_per_rank)
        first = rank * self.devices_per_rank
        return np.concatenate(
            [
                np.arange(bounds[first + device + 1] - bounds[first + device]) + device * self.per_device
                for device in range(self.devices_per_rank)
            ]
        )
