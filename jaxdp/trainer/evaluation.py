"""Evaluation on a whole split."""

from __future__ import annotations

import numpy as np

from jaxdp.data.batch import Batch
from jaxdp.data.feed import empty_images, make_batch
from jaxdp.data.rows import Buffers
from jaxdp.data.split import Split
from jaxdp.placement import Placement
from jaxdp.runtime.world import World
from jaxdp.step.state import TrainState
from jaxdp.step.task import Task


class Evaluation:
    """Loss and accuracy on the whole test split. Each example counts once, whatever the number of ranks.

    Args:
      task: the constants of the forward pass.
      placement: placement of the arrays that runs the forward pass.
      split: the test split; this rank evaluates its own part.
      batch_size: number of examples that this rank evaluates at once, on all its devices.
      world: all ranks.
    """

    def __init__(self, task: Task, placement: Placement, split: Split, *, batch_size: int, world: World):
        self._split, self._batch_size, self._world = split, batch_size, world
        self._step = placement.evaluate_step(task)

    def __call__(self, state: TrainState) -> dict[str, float]:
        """Returns {"test_loss", "test_accuracy", "test_top5_accuracy"}; all ranks call it together."""
        split, size = self._split, self._batch_size
        buffers = Buffers(size, split.images.shape)
        sums = []
        for start in range(split.mine.start, split.mine.stop, size):
            batch = _host_batch(split, start, min(start + size, split.mine.stop), buffers)
            sums.append(self._step(state.evaluated, state.stats, batch))
            self._world.activity.beat()
        names = {"test_loss": "loss", "test_accuracy": "hits", "test_top5_accuracy": "top5_hits"}
        mine = [sum(float(batch[name]) for batch in sums) for name in names.values()]
        # Summed in float64 and in rank order, so that all ranks get the same value.
        totals = (sum(values) for values in zip(*self._world.allgather(mine), strict=True))
        return {name: total / split.num_examples for name, total in zip(names, totals, strict=True)}


def _host_batch(split: Split, start: int, stop: int, buffers: Buffers) -> Batch:
    """Rows of a split as a batch of fixed size; the last batch is padded."""
    rows, epochs = np.arange(start, stop), np.zeros(stop - start, np.int64)
    ids, places = split.examples_at(rows), rows - start
    image_BHWC = empty_images(buffers, places)
    split.images.fill(rows, ids, epochs, image_BHWC, places)
    return make_batch(image_BHWC, split.labels_N[start:stop], ids, epochs, places)
