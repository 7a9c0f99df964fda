"""Batch normalisation in C++. XLA's programs make several more passes over each array, most of all in bfloat16."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxdp.models.cpu.forms import call


def normalise(
    x_BX: jax.Array,
    seen_B: jax.Array,
    shortcut_BX: jax.Array | None,
    of_channels: Any,
    *,
    factors: Callable[[jax.Array, Any], jax.Array],
    relu: bool,
) -> tuple[jax.Array, jax.Array]:
    """Scales and shifts each channel, depending on sums over the batch, then adds a shortcut and applies a ReLU.

    Args:
      x_BX: [B, ..., C], float32 or bfloat16.
      seen_B: bool, which examples the sums include.
      shortcut_BX: an array like x, added to the result; None for no shortcut.
      of_channels: further per-channel inputs of `factors`.
      factors: computes the factor and the shift of each channel, float32 [2, C], from the sums of the values and of
        their squares, float32 [2, C], and from `of_channels`.
      relu: whether a ReLU follows.

    Returns:
      The result, of the shape of x, and the sums. Gradients do not flow through the returned sums.
    """
    # Derived from x, so that the sums vary over the same devices.
    like_2C = jax.eval_shape(
        lambda x_BX: jnp.broadcast_to(x_BX.reshape(-1, x_BX.shape[-1])[:1], (2, x_BX.shape[-1])).astype(jnp.float32),
        x_BX,
    )

    def forward(x_BX: jax.Array, seen_B: jax.Array, shortcut_BX: jax.Array | None, of_channels: Any) -> tuple[Any, Any]:
        sums_2C = call("norm_sums", like_2C, x_BX, seen_B)
        factors_2C = factors(sums_2C, of_channels)
        added = () if shortcut_BX is None else (shortcut_BX,)
        y_BX = call("norm", x_BX, x_BX, factors_2C, *added, relu=relu)
        # The gradient of the ReLU follows from x, unless a shortcut was added; then it needs y.
        kept = () if shortcut_BX is None or not relu else (y_BX,)
        return (y_BX, sums_2C), (x_BX, seen_B, sums_2C, of_channels, factors_2C, kept)

    def backward(saved: Any, gradients: tuple[jax.Array, jax.Array]) -> tuple[Any, ...]:
        x_BX, seen_B, sums_2C, of_channels, factors_2C, kept = saved
        likes = (like_2C, *(x_BX for _ in kept))
        of_factors_2C, *passed = call("norm_gradient_sums", likes, x_BX, factors_2C, gradients[0], *kept, relu=relu)
        g_BX = passed[0] if passed else gradients[0]
        of_sums_2C, of_of_channels = jax.vjp(factors, sums_2C, of_channels)[1](of_factors_2C)
        # If y was needed, the gradient has already passed the ReLU.
        relu_is_left = relu and not passed
        of_x_BX = call("norm_gradient", x_BX, x_BX, factors_2C, g_BX, of_sums_2C, seen_B, relu=relu_is_left)
        return of_x_BX, None, None if shortcut_BX is None else g_BX, of_of_channels

    normalised = jax.custom_vjp(lambda *given: forward(*given)[0])
    normalised.defvjp(forward, backward)
    return normalised(x_BX, seen_B, shortcut_BX, of_channels)
