"""What follows from a config, its data and its world: steps, batch sizes and rates, derived once."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Collection

from jaxdp.config import Config, ScheduleConfig


@dataclasses.dataclass(frozen=True)
class Plan:
    """What follows from a config and the size of its data.

    Attributes:
      num_examples: in the training split.
      batch_size: the global batch.
      total_steps: of the run; the last batch reaches the end of the last epoch, or just beyond it.
      warmup_steps: of the learning rate.
      boundaries: steps at which the rate falls, if it does so in steps.
      peak_rate: after the linear scaling rule (Goyal et al. 2017, section 2.1).
      eval_steps, save_steps: after which steps to evaluate and to save; the last step is in both.
    """

    num_examples: int
    batch_size: int
    total_steps: int
    warmup_steps: int
    boundaries: tuple[int, ...]
    peak_rate: float
    eval_steps: Collection[int]
    save_steps: Collection[int]

    @classmethod
    def of(cls, config: Config, num_examples: int) -> Plan:
        """The plan for a training split of so many examples.

        Raises:
          ValueError: the warmup takes the whole run, or the rate is to fall in it.
        """
        schedule = config.schedule

        def steps(epochs: float, given: int | None = None) -> int:
            return math.ceil(round(epochs * num_examples / config.batch_size, 6)) if given is None else given

        def every(epochs: float, given: int | None) -> frozenset[int]:
            if given is not None:
                return frozenset({*range(given, total + 1, given), total})
            times = math.floor(round(total * config.batch_size / num_examples / epochs, 6))
            found = {max(1, steps(epochs * (time + 1))) for time in range(times)}
            return frozenset({step for step in found if step < total} | {total})

        total = max(1, steps(config.epochs, config.steps))
        warmup = steps(schedule.warmup_epochs, schedule.warmup_steps)
        if warmup >= total:
            raise ValueError(
                f"the warmup ends before the run: it takes {warmup} steps, the run {total}: shorten "
                "config.schedule.warmup_epochs (or warmup_steps)"
            )
        boundaries = schedule.boundaries_steps
        if boundaries is None:
            boundaries = tuple(map(steps, schedule.boundaries_epochs))
        if schedule.decay == "step" and boundaries and boundaries[0] < warmup:
            raise ValueError(
                f"the rate falls after the warmup: config.schedule.boundaries have step {boundaries[0]}, the warmup "
                f"takes {warmup}"
            )
        return cls(
            num_examples=num_examples,
            batch_size=config.batch_size,
            total_steps=total,
            warmup_steps=warmup,
            boundaries=boundaries,
            peak_rate=peak_rate(config.schedule, config.batch_size),
            eval_steps=every(config.eval_every_epochs, config.eval_every_steps),
            save_steps=every(config.checkpoint.every_epochs, config.checkpoint.every_steps),
        )

    def epoch(self, step: int) -> float:
        """Epochs done after so many steps."""
        return step * self.batch_size / self.num_examples


def peak_rate(schedule: ScheduleConfig, batch_size: int) -> float:
    """The rate after the warmup: in proportion to the batch (Goyal et al. 2017, section 2.1)."""
    return schedule.base_rate * batch_size / schedule.base_batch_size


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
