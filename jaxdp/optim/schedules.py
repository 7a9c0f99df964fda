"""Learning-rate schedules."""

from __future__ import annotations

from typing import Protocol

import optax

from jaxdp.optim.config import ScheduleConfig


class ScheduleLengths(Protocol):
    """What a schedule needs to know of a run, see `config.run_lengths.RunLengths`."""

    @property
    def total_steps(self) -> int: ...

    @property
    def warmup_steps(self) -> int: ...

    @property
    def boundaries(self) -> tuple[int, ...]: ...

    @property
    def peak_rate(self) -> float: ...


def make_schedule(config: ScheduleConfig, lengths: ScheduleLengths) -> optax.Schedule:
    """Linear warmup to the scaled peak rate (Goyal et al. 2017, sections 2.1 and 2.2), then decay.

    During warmup the rate changes linearly from `warmup_init_rate` at step 0 to the peak at `warmup_steps`. After it,
    "cosine" and "polynomial" decay to `end_rate` at `total_steps`, as half a cosine or as (1 - t)^power with t from 0
    to 1 (power 2 in You et al. 2017). "step" multiplies the rate by a factor at each boundary (Goyal et al. 2017,
    section 5.1), and "constant" keeps it.

    Args:
      config: settings of the schedule.
      lengths: peak rate and numbers of steps.
    """
    decay_steps = lengths.total_steps - lengths.warmup_steps
    if config.decay == "cosine":
        decay = optax.cosine_decay_schedule(lengths.peak_rate, decay_steps, alpha=config.end_rate / lengths.peak_rate)
    elif config.decay == "polynomial":
        decay = optax.polynomial_schedule(lengths.peak_rate, config.end_rate, config.power, decay_steps)
    elif config.decay == "step":
        falls = {boundary - lengths.warmup_steps: config.factor for boundary in lengths.boundaries}
        decay = optax.piecewise_constant_schedule(lengths.peak_rate, falls)
    else:
        decay = optax.constant_schedule(lengths.peak_rate)
    if lengths.warmup_steps == 0:
        return decay
    warmup = optax.linear_schedule(config.warmup_init_rate, lengths.peak_rate, lengths.warmup_steps)
    return optax.join_schedules([warmup, decay], [lengths.warmup_steps])
