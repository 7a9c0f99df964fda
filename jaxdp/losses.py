"""Losses and hits of single examples.

Shape suffixes: B batch, K classes.
"""

import jax
import jax.numpy as jnp
import optax


def cross_entropy(logits_BK: jax.Array, label_B: jax.Array, *, smoothing: float = 0.0) -> jax.Array:
    """Softmax cross entropy of each example in nats, [B], in float32 or better.

    Args:
      logits_BK: of any float type.
      label_B: int32.
      smoothing: the share of the target that is spread evenly over all classes (Szegedy et al. 2015, section 7).
    """
    precise_BK = logits_BK.astype(jnp.promote_types(logits_BK.dtype, jnp.float32))
    of_label_B = optax.softmax_cross_entropy_with_integer_labels(precise_BK, label_B)
    if smoothing == 0:
        return of_label_B
    of_all_B = jax.nn.logsumexp(precise_BK, axis=-1) - jnp.mean(precise_BK, axis=-1)
    return (1 - smoothing) * of_label_B + smoothing * of_all_B


def hits(logits_BK: jax.Array, label_B: jax.Array) -> jax.Array:
    """1 where the largest logit is the label's, 0 elsewhere: float32 [B]."""
    return (jnp.argmax(logits_BK, axis=-1) == label_B).astype(jnp.float32)


def top5_hits(logits_BK: jax.Array, label_B: jax.Array) -> jax.Array:
    """1 where fewer than 5 logits are larger than the label's, 0 elsewhere, as where that is no number: float32 [B]."""
    of_label_B1 = jnp.take_along_axis(logits_BK, label_B[:, None], axis=-1)
    larger_B = jnp.sum(~(logits_BK <= of_label_B1), axis=-1)
    return (larger_B < 5).astype(jnp.float32)
