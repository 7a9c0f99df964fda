"""Evaluation on a whole split."""

from __future__ import annotations

import numpy as np

from jaxdp.data.feed import padded
from jaxdp.data.source import Split
from jaxdp.engines import Engine
from jaxdp.state import TrainState
from jaxdp.step import Batch, Task
from jaxdp.world import World


class Evaluation:
    """Loss and accuracy on the whole test split, each example counted once whatever the number of ranks.

    Args:
      task: the constants of the forward pass.
      engine: to run it.
      split: this rank's share of the test split.
      batch_size: examples that this rank evaluates at once, on all its devices.
      world: all ranks.
    """

    def __init__(self, task: Task, engine: Engine, split: Split, *, batch_size: int, world: World):
        self._split, self._batch_size, self._world = split, batch_size, world
        self._step = engine.evaluate_step(task)

    def __call__(self, state: TrainState) -> dict[str, float]:
        """{"test_loss", "test_accuracy"}; all ranks call it together."""
        split, size = self._split, self._batch_size
        sums = [
            self._step(state.params, state.stats, _host_batch(split, slice(start, start + size), size))
            for start in range(0, len(split.labels_N), size)
        ]
        mine = [sum(float(batch[name]) for batch in sums) for name in ("loss", "hits")]
        # In float64 and in the order of the ranks, so that all have the same value.
        loss, hits = (sum(values) for values in zip(*self._world.allgather(mine), strict=True))
        return {"test_loss": loss / split.num_examples, "test_accuracy": hits / split.num_examples}


def _host_batch(split: Split, part: slice, size: int) -> Batch:
    """Rows of a split as a batch of a fixed size, the last one padded."""
    labels = split.labels_N[part]
    rows = np.arange(len(labels))
    arrays = (split.images_NHWC[part], labels, np.ones(len(labels), bool))
    return Batch(*(padded(values, rows, size) for values in arrays))
