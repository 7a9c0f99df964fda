"""Max pooling in C++. XLA computes its gradient with a slow scatter and may lose NaN."""

from __future__ import annotations

import functools
from typing import Any

import jax
import numpy as np
from flax import nnx

from jaxdp.models.cpu.forms import call, padding_of, uses_cpu_kernels


def max_pool(x_BHWC: jax.Array, window: tuple[int, int], strides: tuple[int, int], padding: Any = "VALID") -> jax.Array:
    """`flax.nnx.max_pool`; among equal maxima the first one gets the gradient."""
    pool = functools.partial(nnx.max_pool, window_shape=window, strides=strides, padding=padding)
    if not uses_cpu_kernels(x_BHWC.dtype):
        return pool(x_BHWC)
    numbers = {"window": window, "strides": strides, "pads": padding_of(x_BHWC, window, strides, padding)}
    attributes = {name: np.array(values, np.int64).ravel() for name, values in numbers.items()}
    like_BHWC = jax.eval_shape(pool, x_BHWC)

    @jax.custom_vjp
    def pooled(x_BHWC: jax.Array) -> jax.Array:
        return call("max_pool", like_BHWC, x_BHWC, **attributes)

    def forward(x_BHWC: jax.Array) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
        y_BHWC = pooled(x_BHWC)
        return y_BHWC, (x_BHWC, y_BHWC)

    def backward(saved: tuple[jax.Array, jax.Array], g_BHWC: jax.Array) -> tuple[jax.Array]:
        return (call("max_pool_gradient", saved[0], *saved, g_BHWC, **attributes),)

    pooled.defvjp(forward, backward)
    return pooled(x_BHWC)
