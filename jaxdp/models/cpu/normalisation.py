"""Batch normalisation in C++: XLA's programs go through each array several times more, in bfloat16 most of all."""

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
    rectifies: bool,
) -> tuple[jax.Array, jax.Array]:
    """A product and a sum for each channel, by sums over the batch; then a shortcut is added, then comes a ReLU.

    Args:
      x_BX: [B, ..., C], float32 or bfloat16.
      seen_B: bool, which examples are in the sums.
      shortcut_BX: like x; None for none.
      of_channels: what the factors depend on besides.
      factors: of the sums of the values and of their squares, float32 [2, C], and `of_channels`, what each channel is
        multiplied with, and what is added: float32 [2, C].
      rectifies: whether a ReLU follows.

    Returns:
      The same shape as x, and the sums, which have no gradient of their own.
    """
    # Of x, so that they vary over the same devices.
    like_2C = jax.eval_shape(
        lambda x_BX: jnp.broadcast_to(x_BX.reshape(-1, x_BX.shape[-1])[:1], (2, x_BX.shape[-1])).astype(jnp.float32),
        x_BX,
    )

    def forward(x_BX: jax.Array, seen_B: jax.Array, shortcut_BX: jax.Array | None, of_channels: Any) -> tuple[Any, Any]:
        sums_2C = call("norm_sums", like_2C, x_BX, seen_B)
        factors_2C = factors(sums_2C, of_channels)
        added = () if shortcut_BX is None else (shortcut_BX,)
        y_BX = call("norm", x_BX, x_BX, factors_2C, *added, rectifies=rectifies)
        # Behind a ReLU x tells what was passed on, but not where a shortcut was added.
        kept = () if shortcut_BX is None or not rectifies else (y_BX,)
        return (y_BX, sums_2C), (x_BX, seen_B, sums_2C, of_channels, factors_2C, kept)

    def backward(saved: Any, gradients: tuple[jax.Array, jax.Array]) -> tuple[Any, ...]:
        x_BX, seen_B, sums_2C, of_channels, factors_2C, kept = saved
        likes = (like_2C, *(x_BX for _ in kept))
        of_factors_2C, *passed = call(
            "norm_gradient_sums", likes, x_BX, factors_2C, gradients[0], *kept, rectifies=rectifies
        )
        g_BX = passed[0] if passed else gradients[0]
        of_sums_2C, of_of_channels = jax.vjp(factors, sums_2C, of_channels)[1](of_factors_2C)
        still_rectifies = rectifies and not passed
        of_x_BX = call("norm_gradient", x_BX, x_BX, factors_2C, g_BX, of_sums_2C, seen_B, rectifies=still_rectifies)
        return of_x_BX, None, None if shortcut_BX is None else g_BX, of_of_channels

    normalised = jax.custom_vjp(lambda *given: forward(*given)[0])
    normalised.defvjp(forward, backward)
    return normalised(x_BX, seen_B, shortcut_BX, of_channels)
