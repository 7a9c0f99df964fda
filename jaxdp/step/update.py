"""The update of the state from the summed gradient, as a pure function."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import optax

from jaxdp.step.state import TrainState
from jaxdp.step.task import PyTree, Task


def apply_gradients(
    task: Task, optimizer: optax.GradientTransformation, state: TrainState, reduced: PyTree
) -> tuple[TrainState, dict[str, jax.Array]]:
    """Applies one update, or skips it if a summed gradient or batch statistic, or its norm, is not finite.

    A skipped step changes only `step` and `skipped` of the state.

    Args:
      task: the constants.
      optimizer: an optax chain.
      state: state before the step.
      reduced: sum of `forward_backward` over all devices and ranks.

    Returns:
      The new state, and the metrics of the global batch. The metrics include "skipped", as in the state, and "culprit",
      the index of the first leaf of {"gradient", "stats"} that is not finite (-1 if all are finite). If
      `task.norms_every` is set, they also include "norms", see `layer_norms`; these are zeros in steps where none are
      due.
    """
    step, skipped = state.step + 1, state.skipped + 1

    def updated() -> TrainState:
        updates, opt_state = optimizer.update(reduced["gradient"], state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        average = state.average
        if task.average_decay is not None:
            # A smaller decay at first; otherwise the mean would remember the initial parameters for long.
            decay = jnp.minimum(task.average_decay, (1 + state.step) / (10 + state.step))
            average = jax.tree.map(lambda mean, now: decay * mean + (1 - decay) * now, average, params)
        return TrainState(step, params, reduced["stats"], opt_state, average, jnp.zeros_like(skipped))

    def kept() -> TrainState:
        return TrainState(step, state.params, state.stats, state.opt_state, state.average, skipped)

    # The sum of squares is the fastest test on a CPU, and also infinite if the norm overflows. The maximum does not
    # work: XLA's maximum on CPUs ignores NaN in arrays of more than a few thousand elements.
    finite = jnp.stack([jnp.isfinite(jnp.vdot(leaf, leaf)) for _, leaf in checked_leaves(reduced)])
    is_good = jnp.all(finite)
    # On a CPU a select on every value would take several times as long as the update.
    after = jax.lax.cond(is_good, updated, kept)
    culprit = jnp.where(is_good, -1, jnp.argmin(finite))
    metrics = reduced["metrics"] | {"skipped": after.skipped, "culprit": culprit}
    if task.norms_every is not None:
        norms = functools.partial(layer_norms, state.params, reduced["gradient"], after.opt_state)
        like = jax.eval_shape(norms)
        metrics["norms"] = jax.lax.cond(
            step % task.norms_every == 0,
            norms,
            lambda: jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), like),
        )
    return after, metrics


def layer_norms(params: PyTree, gradient: PyTree, opt_state: PyTree) -> dict[str, jax.Array]:
    """Norms of each parameter array and of its gradient and, with LARS, the trust ratios.

    Args:
      params: parameters before the step.
      gradient: gradient of the global batch, before clipping.
      opt_state: state of the optimizer after the step.

    Returns:
      {"parameter_norm", "gradient_norm"}, each float32 [number of parameter arrays]; with LARS also "trust_ratio", of
      the same shape.
    """

    def norms(tree: PyTree) -> jax.Array:
        return jnp.stack([jnp.linalg.norm(leaf.ravel()) for leaf in jax.tree.leaves(tree)])

    found = {"parameter_norm": norms(params), "gradient_norm": norms(gradient)}
    ratios = optax.tree_utils.tree_get(opt_state, "trust_ratio")
    return found if ratios is None else found | {"trust_ratio": jnp.stack(jax.tree.leaves(ratios))}


def checked_leaves(reduced: PyTree) -> list[tuple[Any, Any]]:
    """Paths and leaves of the values that must be finite; otherwise the step is skipped."""
    return jax.tree_util.tree_leaves_with_path({name: reduced[name] for name in ("gradient", "stats")})
