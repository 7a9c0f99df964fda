"""Settings of the update rule and of the learning rate."""

from __future__ import annotations

import dataclasses
from typing import Annotated

from jaxdp.settings.build import setting
from jaxdp.settings.rules import NOT_BELOW_0, BelowOne, Count, NotNegative, Positive, Rule, one_of

_BOUNDARIES = Rule(
    lambda steps: list(steps) == sorted(set(steps)) and all(step > 0 for step in steps),
    "{path} must be increasing numbers above 0, not {value}",
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """The update rule.

    Attributes:
      name: "lars", "sgd" or "adamw".
      momentum: momentum coefficient of the velocity ("lars" and "sgd").
      nesterov: use Nesterov momentum ("sgd" only).
      weight_decay: weight decay coefficient of the kernels; for "adamw" decoupled, and multiplied by the learning rate.
      trust_coefficient: trust coefficient eta of LARS ("lars" only).
      beta1, beta2: decay rates of the first and second moments ("adamw" only).
      epsilon: constant added to the denominator of the update ("adamw" only).
      decay_biases_and_norms: also apply weight decay, and LARS scaling, to biases and normalisation parameters.
      clip_norm: the gradient is scaled down to this norm, over all parameters, if its norm is larger; None disables
        clipping.
    """

    name: Annotated[str, one_of("adamw", "lars", "sgd")] = "sgd"
    momentum: BelowOne = 0.9
    nesterov: bool = False
    weight_decay: NotNegative = 1e-4
    trust_coefficient: Positive = 0.001
    beta1: BelowOne = 0.9
    beta2: BelowOne = 0.999
    epsilon: Positive = 1e-8
    decay_biases_and_norms: bool = setting(False, formerly="vectors_too")
    clip_norm: Positive | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class ScheduleConfig:
    """The learning rate.

    Attributes:
      base_rate: the peak rate at `base_batch_size`; the peak rate is proportional to the global batch size.
      base_batch_size: the batch size at which `base_rate` applies.
      warmup_epochs, warmup_steps: length of the linear warmup.
      warmup_init_rate: the rate at the start of the warmup.
      decay: how the rate falls after the warmup: "cosine" or "polynomial" until the end of the run, "step" at the
        boundaries, or "constant".
      power: exponent of the "polynomial" decay.
      end_rate: final rate of the "cosine" and "polynomial" decay.
      boundaries_epochs, boundaries_steps: where "step" lowers the rate, counted from the start of the run.
      factor: the rate is multiplied by this at each boundary ("step" only).
    """

    base_rate: Positive
    base_batch_size: Count = 256
    warmup_epochs: NotNegative = 0.0
    warmup_steps: Annotated[int, NOT_BELOW_0] | None = None
    warmup_init_rate: NotNegative = 0.0
    decay: Annotated[str, one_of("constant", "cosine", "polynomial", "step")] = "cosine"
    power: Positive = 2.0
    end_rate: NotNegative = 0.0
    boundaries_epochs: Annotated[tuple[float, ...], _BOUNDARIES] = ()
    boundaries_steps: Annotated[tuple[int, ...], _BOUNDARIES] | None = None
    factor: Positive = 0.1
