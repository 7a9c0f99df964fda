"""What several models are made of."""

from __future__ import annotations

import jax
import jax.numpy as jnp


def dropout(x_BX: jax.Array, rate: float, key_B: jax.Array | None, *, layer: int) -> jax.Array:
    """Zeros a share of the values of each example, and scales up the others.

    What is zeroed follows from each example's own key, so it does not depend on what shares its batch or its device.

    Args:
      x_BX: float [B, ...].
      rate: of zeros, in 0..1.
      key_B: of each example; None for no dropout, as in evaluation.
      layer: another one for each dropout of a model.
    """
    if key_B is None or rate == 0:
        return x_BX

    def of_example(key: jax.Array, x_X: jax.Array) -> jax.Array:
        keeps = jax.random.bernoulli(jax.random.fold_in(key, layer), 1 - rate, x_X.shape)
        return jnp.where(keeps, x_X / (1 - rate), 0)

    return jax.vmap(of_example)(key_B, x_BX)


def local_response_norm(x_BHWC: jax.Array, *, size: int, alpha: float, beta: float) -> jax.Array:
    """Divides by (1 + alpha m)^beta, m the mean of the squares of so many neighbouring channels.

    Krizhevsky et al. 2012, section 3.3, with Caffe's mean in place of the sum.
    """
    squares = jnp.square(x_BHWC.astype(jnp.float32))
    around = ((0, 0), (0, 0), (0, 0), (size // 2, size // 2))
    sums = jax.lax.reduce_window(squares, 0.0, jax.lax.add, (1, 1, 1, size), (1, 1, 1, 1), around)
    return (x_BHWC / (1 + alpha / size * sums) ** beta).astype(x_BHWC.dtype)
