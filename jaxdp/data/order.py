"""The order of examples, and how batches are divided: pure functions, with one order for any number of ranks."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable

import numpy as np


def permutation(num_examples: int, *, seed: int, epoch: int) -> np.ndarray:
    """Random order of the examples in an epoch.

    Sorts raw words of the Philox generator, because NumPy guarantees that their stream does not change. There is no
    such guarantee for `Generator.permutation`, and a run may be resumed with another version of NumPy.

    Args:
      num_examples: number of examples n.
      seed: seed of the run, 0 or more.
      epoch: number of the epoch, 0 or more.

    Returns:
      int64 [n], each of 0..n-1 once.
    """
    words = np.random.Philox(key=np.array([seed, epoch], dtype=np.uint64)).random_raw(num_examples)
    return np.argsort(words, kind="stable")


def even_bounds(num_items: int, num_parts: int) -> np.ndarray:
    """Divides 0..num_items evenly: part i is bounds[i]..bounds[i + 1], and sizes differ by at most one.

    Returns:
      int64 [num_parts + 1].
    """
    return np.arange(num_parts + 1, dtype=np.int64) * num_items // num_parts


@dataclasses.dataclass(frozen=True)
class Order:
    """The examples of every global batch; epochs follow each other without a gap, so every batch is full.

    Attributes:
      num_examples: number of examples in the split.
      batch_size: global batch size.
      seed: seed of the run.
      of_epoch: function of an epoch that returns the order of its examples, int64 [num_examples]; None for a random
        permutation of all examples.
    """

    num_examples: int
    batch_size: int
    seed: int
    of_epoch: Callable[[int], np.ndarray] | None = None

    def examples(self, first_step: int, end_step: int) -> np.ndarray:
        """Ids of the examples in steps first_step..end_step - 1.

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
        """The epoch of each example in these steps: int64 [end_step - first_step, batch_size]."""
        positions = np.arange(first_step * self.batch_size, end_step * self.batch_size)
        return (positions // self.num_examples).reshape(-1, self.batch_size)

    def permutation(self, epoch: int) -> np.ndarray:
        """Order of the examples in an epoch: int64 [num_examples], read-only."""
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
class BatchSplit:
    """How a global batch is divided among all devices of all ranks: in order and as evenly as possible.

    Attributes:
      batch_size: global batch size.
      num_ranks: number of ranks in the world.
      devices_per_rank: number of devices of each rank.
      parts: number of microbatches of equal size that a device processes one after the other.
    """

    batch_size: int
    num_ranks: int
    devices_per_rank: int
    parts: int = 1

    @property
    def padded(self) -> bool:
        """Whether any microbatch of any device holds fewer examples than others, and so is padded."""
        return self.batch_size % (self.num_ranks * self.devices_per_rank * self.parts) != 0

    @property
    def per_device(self) -> int:
        """Number of rows on each device, including padding."""
        return -(-self.batch_size // (self.num_ranks * self.devices_per_rank * self.parts)) * self.parts

    @property
    def rank_bounds(self) -> np.ndarray:
        """Bounds of the shares of the ranks: int64 [num_ranks + 1].

        Rank r has examples bounds[r]..bounds[r + 1] of the batch.
        """
        return even_bounds(self.batch_size, self.num_ranks * self.devices_per_rank)[:: self.devices_per_rank]

    def rows_of(self, rank: int) -> np.ndarray:
        """Row of each example of a rank in its padded batch: int64 [number of the rank's examples]."""
        bounds = even_bounds(self.batch_size, self.num_ranks * self.devices_per_rank)
        first = rank * self.devices_per_rank
        return np.concatenate(
            [
                np.arange(bounds[first + device + 1] - bounds[first + device]) + device * self.per_device
                for device in range(self.devices_per_rank)
            ]
        )
