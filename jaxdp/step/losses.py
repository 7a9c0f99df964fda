"""Per-example losses and accuracies.

Shape suffixes: B batch, K classes.
"""

import jax
import jax.numpy as jnp
import optax


def cross_entropy(logits_BK: jax.Array, label_B: jax.Array, *, smoothing: float = 0.0) -> jax.Array:
    """Softmax cross entropy of each example in nats, [B], in float32 or higher precision.

    Args:
      logits_BK: logits, of any float type.
      label_B: labels, int32.
      smoothing: share of the target that is spread evenly over all classes (Szegedy et al. 2015, section 7).
    """
    precise_BK = logits_BK.astype(jnp.promote_types(logits_BK.dtype, jnp.float32))
    of_label_B = optax.softmax_cross_entropy_with_integer_labels(precise_BK, label_B)
    if smoothing == 0:
        return of_label_B
    of_all_B = jax.nn.logsumexp(precise_BK, axis=-1) - jnp.mean(precise_BK, axis=-1)
    return (1 - smoothing) * of_label_B + smoothing * of_all_B


def hits(logits_BK: jax.Array, label_B: jax.Array) -> jax.Array:
    """Top-1 hits: 1 where the largest logit is that of the label, 0 elsewhere, float32 [B]."""
    return (jnp.argmax(logits_BK, axis=-1) == label_B).astype(jnp.float32)


def top5_hits(logits_BK: jax.Array, label_B: jax.Array) -> jax.Array:
    """Top-5 hits: 1 where fewer than 5 logits exceed that of the label, 0 elsewhere, float32 [B].

    An example whose label has a NaN logit is no hit.
    """
    of_label_B1 = jnp.take_along_axis(logits_BK, label_B[:, None], axis=-1)
    larger_B = jnp.sum(~(logits_BK <= of_label_B1), axis=-1)
    return (larger_B < 5).astype(jnp.float32)
