"""Layers that several models share."""

from __future__ import annotations

import contextlib
import contextvars
import functools
import math
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from jaxdp.models.cpu.convolution import convolve
from jaxdp.models.cpu.forms import uses_cpu_kernels
from jaxdp.models.cpu.normalisation import normalise

_batch_sum: contextvars.ContextVar[Callable[[jax.Array], jax.Array] | None] = contextvars.ContextVar(
    "batch_sum", default=None
)


@contextlib.contextmanager
def batch_statistics_over(batch_sum: Callable[[jax.Array], jax.Array] | None) -> Iterator[None]:
    """Makes `BatchNorm`, while JAX traces in this context, compute its statistics over several devices.

    Args:
      batch_sum: differentiable function that sums an array over all devices that share statistics; None for the
        statistics of each device.
    """
    before = _batch_sum.set(batch_sum)
    try:
        yield
    finally:
        _batch_sum.reset(before)


Conv = functools.partial(nnx.Conv, conv_general_dilated=convolve)


class BatchNorm(nnx.BatchNorm):
    """Batch normalisation (Ioffe and Szegedy 2015), with the statistics of a device's batch or of the global batch.

    See `flax.nnx.BatchNorm`, and `batch_statistics_over` for global statistics. The layer can also add a shortcut and
    apply a ReLU, because on CPUs all of these are one operation.
    """

    def __call__(
        self,
        x_BX: jax.Array,
        use_running_average: bool | None = None,
        *,
        mask: jax.Array | None = None,
        shortcut_BX: jax.Array | None = None,
        relu: bool = False,
    ) -> jax.Array:
        """Normalises a batch; the result has the shape of the input.

        Args:
          x_BX: the input, [B, ..., C].
          use_running_average: whether to normalise by the running statistics; None for the setting of the layer.
          mask: bool [B, 1, ...], which examples the batch statistics include; None for all.
          shortcut_BX: [B, ..., C], added to the normalised values; None for no shortcut.
          relu: whether a ReLU follows.
        """
        if self.use_running_average if use_running_average is None else use_running_average:
            return _followed(super().__call__(x_BX, use_running_average=True), shortcut_BX, relu)
        batch_sum = _batch_sum.get()
        dtype = x_BX.dtype if self.dtype is None else self.dtype
        added = x_BX if shortcut_BX is None else shortcut_BX
        if batch_sum is None and uses_cpu_kernels(x_BX.dtype, added.dtype, dtype):
            y_BX, moments_2C = self._by_cpu(x_BX, mask, shortcut_BX, relu)
        else:
            precise_BX = x_BX.astype(jnp.promote_types(x_BX.dtype, jnp.float32))
            moments_2C = _moments(precise_BX, mask, batch_sum)
            # In this form neither the output nor its gradient needs x minus its mean, which would have to be stored.
            factor_C, shift_C = self._factors(moments_2C, self._of_channels())
            y_BX = _followed((precise_BX * factor_C + shift_C).astype(dtype), shortcut_BX, relu)
        mean_C, variance_C = moments_2C[0], _variance(moments_2C)
        for running, now_C in ((self.mean, mean_C), (self.var, variance_C)):
            running[...] = self.momentum * running[...] + (1 - self.momentum) * now_C
        return y_BX

    def _by_cpu(
        self, x_BX: jax.Array, mask: jax.Array | None, shortcut_BX: jax.Array | None, relu: bool
    ) -> tuple[jax.Array, jax.Array]:
        """The output and the moments, computed by the C++ kernels."""
        first_B = x_BX.reshape(x_BX.shape[0], -1)[:, 0]
        seen_B = jnp.ones_like(first_B, bool) if mask is None else jnp.broadcast_to(mask.reshape(-1), first_B.shape)
        values_an_example = math.prod(x_BX.shape[1:-1])
        count = jnp.sum(seen_B) * values_an_example

        def factors(sums_2C: jax.Array, of_channels: Any) -> jax.Array:
            return self._factors(sums_2C / count, of_channels)

        y_BX, sums_2C = normalise(x_BX, seen_B, shortcut_BX, self._of_channels(), factors=factors, relu=relu)
        return y_BX, sums_2C / count

    def _of_channels(self) -> tuple[jax.Array | None, jax.Array | None]:
        scale_C, bias_C = (None if param is None else param[...] for param in (self.scale, self.bias))
        return scale_C, bias_C

    def _factors(self, moments_2C: jax.Array, of_channels: tuple[jax.Array | None, jax.Array | None]) -> jax.Array:
        """The factor and the shift of each channel, [2, C]."""
        scale_C, bias_C = of_channels
        factor_C = jax.lax.rsqrt(_variance(moments_2C) + self.epsilon) * (1.0 if scale_C is None else scale_C)
        return jnp.stack([factor_C, (0.0 if bias_C is None else bias_C) - moments_2C[0] * factor_C])


def _moments(x_BX: jax.Array, mask: jax.Array | None, batch_sum: Callable[[jax.Array], jax.Array] | None) -> jax.Array:
    """Means of the values and of their squares, [2, C]."""
    axes = tuple(range(x_BX.ndim - 1))
    # Derived from x, so that it varies over the same devices.
    ones_BX = jnp.ones_like(x_BX[..., :1])
    parts = [jnp.sum(part_BX, axes, where=mask) for part_BX in (x_BX, jnp.square(x_BX), ones_BX)]
    if batch_sum is not None:
        parts = jnp.split(batch_sum(jnp.concatenate(parts)), [x_BX.shape[-1], 2 * x_BX.shape[-1]])
    return jnp.stack([part / parts[2] for part in parts[:2]])


def _variance(moments_2C: jax.Array) -> jax.Array:
    return jnp.maximum(0.0, moments_2C[1] - jnp.square(moments_2C[0]))


def _followed(y_BX: jax.Array, shortcut_BX: jax.Array | None, relu: bool) -> jax.Array:
    y_BX = y_BX if shortcut_BX is None else y_BX + shortcut_BX
    return nnx.relu(y_BX) if relu else y_BX


def dropout(x_BX: jax.Array, rate: float, key_B: jax.Array | None, *, layer: int) -> jax.Array:
    """Zeros a random share of the values of each example and scales up the remaining values.

    The zeros depend only on the example's own key, not on the other examples in its batch or on its device.

    Args:
      x_BX: float [B, ...].
      rate: share of zeros, in 0..1.
      key_B: key of each example; None for no dropout, as in evaluation.
      layer: a number that differs for each dropout of a model.
    """
    if key_B is None or rate == 0:
        return x_BX

    def of_example(key: jax.Array, x_X: jax.Array) -> jax.Array:
        keeps = jax.random.bernoulli(jax.random.fold_in(key, layer), 1 - rate, x_X.shape)
        return jnp.where(keeps, x_X / (1 - rate), 0)

    return jax.vmap(of_example)(key_B, x_BX)


def local_response_norm(x_BHWC: jax.Array, *, size: int, alpha: float, beta: float) -> jax.Array:
    """Divides by (1 + alpha m)^beta, where m is the mean of the squares of `size` neighbouring channels.

    Krizhevsky et al. 2012, section 3.3, but with the mean instead of the sum, as in Caffe.
    """
    squares = jnp.square(x_BHWC.astype(jnp.float32))
    around = ((0, 0), (0, 0), (0, 0), (size // 2, size // 2))
    sums = jax.lax.reduce_window(squares, 0.0, jax.lax.add, (1, 1, 1, size), (1, 1, 1, 1), around)
    return (x_BHWC / (1 + alpha / size * sums) ** beta).astype(x_BHWC.dtype)
