"""Builds the optax optimizer that the config asks for."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import jax
import optax

from jaxdp.optim.lars import lars

if TYPE_CHECKING:
    from jaxdp.optim.config import OptimizerConfig

PyTree = Any


def kernels(params: PyTree) -> PyTree:
    """A tree of bools, True for the arrays to which weight decay and trust scaling apply by default.

    They do not apply to biases and normalisation parameters, the arrays of at most one dimension: decaying or scaling
    these costs accuracy at large batch sizes.
    """
    return jax.tree.map(lambda leaf: leaf.ndim > 1, params)


def make_optimizer(
    config: OptimizerConfig, learning_rate: optax.Schedule, params: PyTree
) -> optax.GradientTransformation:
    """Builds the optimizer that the config asks for.

    "sgd" is v <- m v + g + beta w, w <- w - gamma v. The rate is outside the momentum buffer, so that a change of the
    rate needs no correction (Goyal et al. 2017, section 3). "lars" has the rate inside the buffer, as in its paper.
    "adamw" follows Loshchilov and Hutter (2017, algorithm 2).

    Args:
      config: name and settings of the optimizer.
      learning_rate: learning rate as a function of the step.
      params: parameters of the model, to distinguish kernels from other arrays.
    """
    chosen = jax.tree.map(lambda _: True, params) if config.decay_biases_and_norms else kernels(params)
    if config.name == "lars":
        rule = lars(
            learning_rate,
            momentum=config.momentum,
            weight_decay=config.weight_decay,
            trust_coefficient=config.trust_coefficient,
            scaled=chosen,
        )
    elif config.name == "adamw":
        rule = optax.adamw(
            learning_rate, config.beta1, config.beta2, config.epsilon, weight_decay=config.weight_decay, mask=chosen
        )
    else:
        rule = optax.chain(
            optax.add_decayed_weights(config.weight_decay, mask=chosen),
            optax.trace(decay=config.momentum, nesterov=config.nesterov),
            optax.scale_by_learning_rate(learning_rate),
        )
    return rule if config.clip_norm is None else optax.chain(optax.clip_by_global_norm(config.clip_norm), rule)
