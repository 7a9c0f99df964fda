"""Losses and hits of single examples.

Shape suffixes: B batch, K classes.
"""

import jax
import jax.numpy as jnp
import optax


def cross_entropy(logits_BK: jax.Array, label_B: jax.Array) -> jax.Array:
    """Softmax cross entropy of each example in nats, [B], in float32 or better."""
    precise = jnp.promote_types(logits_BK.dtype, jnp.float32)
    return optax.softmax_cross_entropy_with_integer_labels(logits_BK.astype(precise), label_B)


def hits(logits_BK: jax.Array, label_B: jax.Array) -> jax.Array:
    """1 where the largest logit is the label's, 0 elsewhere: float32 [B]."""
    return (jnp.argmax(logits_BK, axis=-1) == label_B).astype(jnp.float32)
