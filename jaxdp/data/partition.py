"""Partitioned shuffling (Sreedhar et al. 2017, arXiv 1711.00705): local permutations and periodic exchanges.

A partition is a contiguous range of slots, which hold one example each. Every few epochs the partitions exchange
examples, which changes the example in each slot. Everything is derived from the seed. The number of partitions is a
property of the data and does not depend on the number of ranks. Where partitions coincide with nodes, rows cross only
in these exchanges.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator

import numpy as np

from jaxdp.data.order import even_bounds, permutation

# Keys of the permutations of examples over slots begin here, apart from those of the epochs.
_PERIODS = 2**63


@dataclasses.dataclass(frozen=True)
class Partitions:
    """The partitions of a split, and the order in which their examples are used.

    Attributes:
      num_examples: number of examples N in the split.
      count: number of partitions P.
      exchange_every: number of epochs from one exchange to the next, which is one period.
      batch_size: global batch size; every partition contributes its share of each batch.
      seed: seed of the run.
    """

    num_examples: int
    count: int
    exchange_every: int
    batch_size: int
    seed: int

    def period(self, epoch: int) -> int:
        """The period that contains an epoch."""
        return epoch // self.exchange_every

    def period_at(self, step: int) -> int:
        """The period that contains the first example of a step."""
        return self.period(step * self.batch_size // self.num_examples)

    def holdings(self, period: int) -> np.ndarray:
        """The example in each slot during a period: int64 [N]. In period 0, examples lie as in the files."""
        return _holdings(self.num_examples, self.seed, period)

    def order(self, epoch: int) -> np.ndarray:
        """Order of the examples in an epoch: int64 [N].

        All partitions are traversed at the same relative pace, each in its own random order. The examples of a global
        batch are sorted by partition, so that each part of the batch goes to the node that holds its partition.
        """
        bounds = even_bounds(self.num_examples, self.count)
        partition = np.repeat(np.arange(self.count), np.diff(bounds))
        shuffled = permutation(self.num_examples, seed=self.seed, epoch=epoch)
        # Sort the slots by partition, and keep them shuffled within each one.
        slots = shuffled[np.argsort(partition[shuffled], kind="stable")]
        pace = (np.arange(self.num_examples) - bounds[partition] + 0.5) / np.diff(bounds)[partition]
        by_pace = np.lexsort((partition, pace))
        batch = (np.arange(self.num_examples) + epoch * self.num_examples) // self.batch_size
        in_batches = by_pace[np.lexsort((partition[by_pace], batch))]
        return self.holdings(self.period(epoch))[slots[in_batches]]


@functools.lru_cache(maxsize=2)
def _holdings(num_examples: int, seed: int, period: int) -> np.ndarray:
    in_files = np.arange(num_examples)
    found = in_files if period == 0 else permutation(num_examples, seed=seed, epoch=_PERIODS + period)
    found.flags.writeable = False
    return found


def moves(before: np.ndarray, after: np.ndarray, *, at_once: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Plan for permuting slots in place, in pieces of bounded size.

    Args:
      before: int64 [N], example in each slot before the permutation.
      after: int64 [N], example in each slot after the permutation.
      at_once: number of slots that receive their example in one piece. The slots of a piece are spread over all slots.

    Yields:
      Source slots and target slots: int64 [n] each, with n up to twice `at_once`. All sources must be read before any
      target is written.
    """
    contents, slot_of = before.copy(), np.argsort(before)
    parts = -(-len(before) // at_once)
    for part in range(parts):
        targets = np.arange(part, len(before), parts)
        sources = slot_of[after[targets]]
        # Examples in the way move to the slots that become free.
        in_the_way, free = np.setdiff1d(targets, sources), np.setdiff1d(sources, targets)
        sources, targets = np.concatenate([sources, in_the_way]), np.concatenate([targets, free])
        changes = sources != targets
        sources, targets = sources[changes], targets[changes]
        moved = contents[sources]
        contents[targets] = moved
        slot_of[moved] = targets
        yield sources, targets
