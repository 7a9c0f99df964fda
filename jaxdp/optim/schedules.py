"""Learning-rate schedules."""

from __future__ import annotations

from typing import TYPE_CHECKING

import optax

if TYPE_CHECKING:
    from jaxdp.config import ScheduleConfig
    from jaxdp.plan import Plan


def make_schedule(config: ScheduleConfig, plan: Plan) -> optax.Schedule:
    """Linear warmup to the scaled peak rate (Goyal et al. 2017, sections 2.1 and 2.2), then decay.

    During warmup the rate changes linearly from `warmup_init_rate` at step 0 to the peak at `warmup_steps`. After it,
    "cosine" and "polynomial" decay to `end_rate` at `total_steps`, as half a cosine or as (1 - t)^power with t from 0
    to 1 (power 2 in You et al. 2017). "step" multiplies the rate by a factor at each boundary (Goyal et al. 2017,
    section 5.1), and "constant" keeps it.

    Args:
      config: settings of the schedule.
      plan: peak rate and numbers of steps.
    """
    decay_steps = plan.total_steps - plan.warmup_steps
    if config.decay == "cosine":
        decay = optax.cosine_decay_schedule(plan.peak_rate, decay_steps, alpha=config.end_rate / plan.peak_rate)
    elif config.decay == "polynomial":
        decay = optax.polynomial_schedule(plan.peak_rate, config.end_rate, config.power, decay_steps)
    elif config.decay == "step":
        falls = {boundary - plan.warmup_steps: config.factor for boundary in plan.boundaries}
        decay = optax.piecewise_constant_schedule(plan.peak_rate, falls)
    else:
        decay = optax.constant_schedule(plan.peak_rate)
    if plan.warmup_steps == 0:
        return decay
    warmup = optax.linear_schedule(config.warmup_init_rate, plan.peak_rate, plan.warmup_steps)
    return optax.join_schedules([warmup, decay], [plan.warmup_steps])
