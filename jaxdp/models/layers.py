"""What several models are made of."""

from __future__ import annotations

import contextlib
import contextvars
import functools
from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
from flax import nnx

from jaxdp.models.on_cpu import convolve

_batch_sum: contextvars.ContextVar[Callable[[jax.Array], jax.Array] | None] = contextvars.ContextVar(
    "batch_sum", default=None
)


@contextlib.contextmanager
def batch_statistics_over(batch_sum: Callable[[jax.Array], jax.Array] | None) -> Iterator[None]:
    """Inside, while JAX traces, `BatchNorm` takes its statistics over more than the batch of its device.

    Args:
      batch_sum: an array to its sum over all devices that are to share statistics, differentiable; None for none.
    """
    before = _batch_sum.set(batch_sum)
    try:
        yield
    finally:
        _batch_sum.reset(before)


Conv = functools.partial(nnx.Conv, conv_general_dilated=convolve)


class BatchNorm(nnx.BatchNorm):
    """Batch normalisation (Ioffe and Szegedy 2015), by the statistics of a device's batch, or of the global one.

    See `flax.nnx.BatchNorm`, and `batch_statistics_over` for the latter.
    """

    def __call__(
        self, x_BX: jax.Array, use_running_average: bool | None = None, *, mask: jax.Array | None = None
    ) -> jax.Array:
        """The same shape.

        Args:
          x_BX: [B, ..., C].
          use_running_average: normalise by the running statistics; None for what the layer was made with.
          mask: bool [B, 1, ...], which examples count.
        """
        if self.use_running_average if use_running_average is None else use_running_average:
            return super().__call__(x_BX, use_running_average=True)
        precise_BX = x_BX.astype(jnp.promote_types(x_BX.dtype, jnp.float32))
        axes = tuple(range(x_BX.ndim - 1))
        # Where x is, so that it varies over the same devices.
        ones_BX = jnp.ones_like(precise_BX[..., :1])
        parts = [jnp.sum(part_BX, axes, where=mask) for part_BX in (precise_BX, jnp.square(precise_BX), ones_BX)]
        if batch_sum := _batch_sum.get():
            parts = jnp.split(batch_sum(jnp.concatenate(parts)), [x_BX.shape[-1], 2 * x_BX.shape[-1]])
        mean_C, square_C = (part / parts[2] for part in parts[:2])
        variance_C = jnp.maximum(0.0, square_C - jnp.square(mean_C))
        for running, now_C in ((self.mean, mean_C), (self.var, variance_C)):
            running[...] = self.momentum * running[...] + (1 - self.momentum) * now_C
        # A product and a sum: neither this nor its gradient needs x less its mean, an array that would be kept.
        factor_C = jax.lax.rsqrt(variance_C + self.epsilon) * (1.0 if self.scale is None else self.scale[...])
        shift_C = (0.0 if self.bias is None else self.bias[...]) - mean_C * factor_C
        return (precise_BX * factor_C + shift_C).astype(x_BX.dtype if self.dtype is None else self.dtype)


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
