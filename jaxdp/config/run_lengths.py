"""Numbers derived once from a config and the size of its data: steps, batch sizes and learning rates."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Collection

from jaxdp.config.schema import Config
from jaxdp.optim.config import ScheduleConfig


@dataclasses.dataclass(frozen=True)
class RunLengths:
    """Numbers derived from a config and the size of its data.

    Attributes:
      num_examples: number of examples in the training split.
      batch_size: global batch size.
      total_steps: number of steps of the run; the last batch ends at the end of the last epoch, or just beyond it.
      warmup_steps: number of steps of the learning rate warmup.
      boundaries: steps at which the "step" decay lowers the rate.
      peak_rate: peak learning rate by the linear scaling rule (Goyal et al. 2017, section 2.1).
      eval_steps, save_steps: the steps after which to evaluate and to save; both include the last step.
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
    def of(cls, config: Config, num_examples: int) -> RunLengths:
        """Derives the lengths for a training split of `num_examples` examples.

        Raises:
          ValueError: the warmup does not end before the run, or the first boundary lies in the warmup.
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
                f"the warmup must end before the run: the warmup takes {warmup} steps, the run {total}. Shorten "
                "config.schedule.warmup_epochs (or warmup_steps)"
            )
        boundaries = schedule.boundaries_steps
        if boundaries is None:
            boundaries = tuple(map(steps, schedule.boundaries_epochs))
        if schedule.decay == "step" and boundaries and boundaries[0] < warmup:
            raise ValueError(
                f"config.schedule.boundaries must not lie in the warmup: the first one is at step {boundaries[0]}, but "
                f"the warmup takes {warmup} steps"
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
        """Number of epochs completed after `step` steps."""
        return step * self.batch_size / self.num_examples


def peak_rate(schedule: ScheduleConfig, batch_size: int) -> float:
    """The learning rate after the warmup, proportional to the batch size (Goyal et al. 2017, section 2.1)."""
    return schedule.base_rate * batch_size / schedule.base_batch_size


def check_world(config: Config, size: int) -> None:
    """Checks that a job of `size` ranks can run the config.

    Raises:
      ValueError: the job has more ranks than the global batch has examples, or fewer ranks than colors.
    """
    if config.batch_size < size:
        raise ValueError(
            f"every rank needs an example of each batch, but config.batch_size is {config.batch_size} and the job has "
            f"{size} ranks: raise it to {size} or more, or start fewer ranks"
        )
    if config.allreduce.colors is not None and config.allreduce.colors > size:
        raise ValueError(
            f"{config.allreduce.colors} colors need at least {config.allreduce.colors} ranks, but this job has {size}: "
            f"set config.allreduce.colors to {size} or less"
        )
