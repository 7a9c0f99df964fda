"""The shuffle of Sreedhar et al. 2017 (arXiv 1711.00705): partitions permuted in themselves and exchanged now and then.

A partition is a stretch of slots, one an example; which example lies in which slot changes every few epochs, when the
partitions exchange. All of it follows from the seed: the number of partitions belongs to the data, whatever the number
of ranks. Where partitions and nodes fall together, rows cross in those exchanges only.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator

import numpy as np

from jaxdp.data.order import even_bounds, permutation

# Permutations of the examples over the slots, beside those of the epochs.
_PERIODS = 2**63


@dataclasses.dataclass(frozen=True)
class Partitions:
    """How a split is partitioned.

    Attributes:
      num_examples: N, in the split.
      count: P, partitions.
      exchange_every: epochs from one exchange to the next, a period.
      batch_size: the global batch, of which every partition gives its part.
      seed: of the run.
    """

    num_examples: int
    count: int
    exchange_every: int
    batch_size: int
    seed: int

    def period(self, epoch: int) -> int:
        """In which period an epoch lies."""
        return epoch // self.exchange_every

    def period_at(self, step: int) -> int:
        """In which period the first example of a step lies."""
        return self.period(step * self.batch_size // self.num_examples)

    def holdings(self, period: int) -> np.ndarray:
        """int64 [N]: the example in each slot; at first they lie as in the files."""
        return _holdings(self.num_examples, self.seed, period)

    def order(self, epoch: int) -> np.ndarray:
        """int64 [N]: the examples of an epoch.

        Partitions are gone through at one pace, each in an order of its own; the examples of a global batch are sorted
        by partition, so that each part of the batch is dealt to where its partition lies.
        """
        bounds = even_bounds(self.num_examples, self.count)
        partition = np.repeat(np.arange(self.count), np.diff(bounds))
        shuffled = permutation(self.num_examples, seed=self.seed, epoch=epoch)
        # Slots by partition, in each one as shuffled.
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
    """How the contents of slots get to where they are to lie, a part at a time, with nothing but the slots to put them.

    Args:
      before: int64 [N], the example in each slot.
      after: likewise, as it is to be.
      at_once: slots that get their example in one part, spread over all of them.

    Yields:
      From which slots, and to which: int64 [n] each, n up to twice `at_once`. All are read before one is written.
    """
    contents, slot_of = before.copy(), np.argsort(before)
    parts = -(-len(before) // at_once)
    for part in range(parts):
        targets = np.arange(part, len(before), parts)
        sources = slot_of[after[targets]]
        # What lies in the way goes to the slots that become free.
        in_the_way, free = np.setdiff1d(targets, sources), np.setdiff1d(sources, targets)
        sources, targets = np.concatenate([sources, in_the_way]), np.concatenate([targets, free])
        changes = sources != targets
        sources, targets = sources[changes], targets[changes]
        moved = contents[sources]
        contents[targets] = moved
        slot_of[moved] = targets
        yield sources, targets
