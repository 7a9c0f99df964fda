"""Checks, epoch by epoch, that every example was delivered exactly once."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from jaxdp.data.order import Order

if TYPE_CHECKING:
    from mpi4py import MPI


class Audit:
    """Sums up the examples that this rank receives in each epoch, and compares the total of all ranks with the order.

    Args:
      order: order of the examples in the run.
      first_step: first step of this job. Examples of earlier steps were delivered to an earlier job; they are not
        checked here.
    """

    def __init__(self, order: Order, first_step: int):
        self._order = order
        self._first = first_step * order.batch_size
        # For each epoch that is not settled yet: number of examples delivered, and the sum of their hashes.
        self._given: dict[int, np.ndarray] = {}
        self._settled = self._first // order.num_examples

    def add(self, ids: np.ndarray, epochs: np.ndarray) -> None:
        """Records the ids of examples that were delivered, and their epochs: int64 [n] each."""
        first, last = int(epochs.min()), int(epochs.max())
        for epoch in range(first, last + 1):
            of_epoch = ids if first == last else ids[epochs == epoch]
            self._given[epoch] = self._given.get(epoch, _summary(ids[:0])) + _summary(of_epoch)

    def settle(self, end_step: int, comm: MPI.Intracomm) -> None:
        """Checks all epochs that are complete before `end_step`; all ranks call it together.

        Raises:
          RuntimeError: an example was left out of one of these epochs, or delivered twice.
        """
        size = self._order.num_examples
        for epoch in range(self._settled, end_step * self._order.batch_size // size):
            total = np.empty(2, np.uint64)
            comm.Allreduce(self._given.pop(epoch, _summary(np.empty(0, np.int64))), total)
            expected = _summary(self._order.permutation(epoch)[max(0, self._first - epoch * size) :])
            if (total != expected).any():
                raise RuntimeError(
                    f"every example must be delivered once per epoch, but in epoch {epoch} the ranks received "
                    f"{total[0]} examples with checksum {total[1]:016x} instead of {expected[0]} with checksum "
                    f"{expected[1]:016x}. This is a bug in jaxdp or a memory error of the machine"
                )
            self._settled = epoch + 1


def _summary(ids: np.ndarray) -> np.ndarray:
    """Number of examples, and the sum of their hashes (SplitMix64; Steele, Lea and Flood 2014): uint64 [2]."""
    z = ids.astype(np.uint64) + np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return np.array([ids.size, np.sum(z ^ (z >> np.uint64(31)), dtype=np.uint64)], np.uint64)
