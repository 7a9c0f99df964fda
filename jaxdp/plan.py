"""What follows from a config, its data and its world: steps, batch sizes and rates, derived once."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Collection

from jaxdp.config import Config


@dataclasses.dataclass(frozen=True)
class Plan:
    """What follows from a config and the size of its data.

    Attributes:
      num_examples: in the training split.
      batch_size: the global batch.
      total_steps: of the run; the last batch reaches the end of the last epoch, or just beyond it.
      warmup_steps: of the learning rate.
      peak_rate: after the linear scaling rule (Goyal et al. 2017, section 2.1).
      eval_steps, save_steps: after which steps to evaluate and to save; the last step is in both.
    """

    num_examples: int
    batch_size: int
    total_steps: int
    warmup_steps: int
    peak_rate: float
    eval_steps: Collection[int]
    save_steps: Collection[int]

    @classmethod
    def of(cls, config: Config, num_examples: int) -> Plan:
        """The plan for a training split of so many examples."""

        def steps(epochs: float) -> int:
            return math.ceil(round(epochs * num_examples / config.batch_size, 6))

        def every(epochs: float) -> frozenset[int]:
            times = math.floor(round(config.epochs / epochs, 6))
            return frozenset({max(1, steps(epochs * (time + 1))) for time in range(times)} | {total})

        total = max(1, steps(config.epochs))
        return cls(
            num_examples=num_examples,
            batch_size=config.batch_size,
            total_steps=total,
            warmup_steps=steps(config.schedule.warmup_epochs),
            peak_rate=config.schedule.base_rate * config.batch_size / config.schedule.base_batch_size,
            eval_steps=every(config.eval_every_epochs),
            save_steps=every(config.checkpoint.every_epochs),
        )

    def epoch(self, step: int) -> float:
        """Epochs done after so many steps."""
        return step * self.batch_size / self.num_examples


def check_world(config: Config, size: int) -> None:
    """Checks what the config asks of a world of this size.

    Raises:
      ValueError: fewer examples in the global batch than ranks, or more colors than ranks.
    """
    if config.batch_size < size:
        raise ValueError(
            f"every rank needs an example of each batch: config.batch_size is {config.batch_size}, the world has "
            f"{size} ranks: raise it to {size} or more, or start fewer ranks"
        )
    if config.allreduce.colors is not None and config.allreduce.colors > size:
        raise ValueError(
            f"{config.allreduce.colors} colors need at least {config.allreduce.colors} ranks, this world has {size}: "
            f"set config.allreduce.colors to {size} or less"
        )
