"""LARS as in You, Gitman and Ginsburg (2017, arXiv 1708.03888, algorithm 1)."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

PyTree = Any


class LocalRates(NamedTuple):
    """Per-step values exposed for logging.

    Attributes:
      trust_ratio: a tree like the parameters, with the local rate of each array in the dtype of that array; 1 for
        arrays that are not scaled.
    """

    trust_ratio: PyTree


def scale_by_local_rate(
    *, trust_coefficient: float, weight_decay: float, scaled: PyTree
) -> optax.GradientTransformation:
    r"""Multiplies each array's decayed gradient by its local rate.

    .. math::
        u = \lambda (g + \beta w), \quad \lambda = \eta \frac{\|w\|}{\|g\| + \beta \|w\|}

    with the gradient g, the weights w of one array, the trust coefficient eta and the weight decay beta. The local
    rate is 1 if either norm is 0. Arrays that are not scaled (biases and normalisation) keep u = g. `optax.lars` is a
    different rule: its ratio divides by the norm of g + beta w.

    Args:
      trust_coefficient: eta, above 0.
      weight_decay: beta, 0 or more.
      scaled: a tree of bools like the parameters, True for arrays that are decayed and scaled.
    """

    def ratio_of(gradient: jax.Array, weight: jax.Array, is_scaled: bool) -> jax.Array:
        if not is_scaled:
            return jnp.ones((), weight.dtype)
        weight_norm, gradient_norm = jnp.linalg.norm(weight.ravel()), jnp.linalg.norm(gradient.ravel())
        denominator = gradient_norm + weight_decay * weight_norm
        applies = (weight_norm > 0) & (gradient_norm > 0)
        ratio = trust_coefficient * weight_norm / jnp.where(applies, denominator, 1.0)
        return jnp.where(applies, ratio, 1.0)

    def local(gradient: jax.Array, weight: jax.Array, ratio: jax.Array, is_scaled: bool) -> jax.Array:
        return ratio * (gradient + weight_decay * weight) if is_scaled else gradient

    def init(params: PyTree) -> LocalRates:
        return LocalRates(jax.tree.map(lambda leaf: jnp.ones((), leaf.dtype), params))

    def update(updates: PyTree, state: LocalRates, params: PyTree = None) -> tuple[PyTree, LocalRates]:
        assert params is not None, "LARS needs the parameters"
        del state
        ratios = jax.tree.map(ratio_of, updates, params, scaled)
        return jax.tree.map(local, updates, params, ratios, scaled), LocalRates(ratios)

    return optax.GradientTransformation(init, update)


def lars(
    learning_rate: optax.Schedule,
    *,
    momentum: float,
    weight_decay: float,
    trust_coefficient: float,
    scaled: PyTree,
) -> optax.GradientTransformation:
    r"""The LARS optimizer, with the rate inside the momentum buffer as in the paper.

    .. math::
        v \leftarrow m v + \gamma \lambda (g + \beta w), \quad w \leftarrow w - v

    Args:
      learning_rate: gamma, the learning rate as a function of the step.
      momentum: m, the momentum coefficient of the velocity v.
      weight_decay: beta.
      trust_coefficient: eta.
      scaled: a tree of bools like the parameters, True for arrays that are decayed and scaled.
    """
    return optax.chain(
        scale_by_local_rate(trust_coefficient=trust_coefficient, weight_decay=weight_decay, scaled=scaled),
        optax.scale_by_learning_rate(learning_rate),
        optax.trace(decay=momentum),
    )
