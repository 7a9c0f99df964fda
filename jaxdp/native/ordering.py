"""Orders the parts of a program on CPUs, where XLA ignores `jax.lax.optimization_barrier`."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from jaxdp import native
from jaxdp.native import handlers


def after(array: jax.Array, others: Sequence[jax.Array]) -> jax.Array:
    """Returns the array unchanged, in the same memory, but makes its consumers wait for `others`; inside jit."""
    return _pass([_like(array)], array, *others)[0]


def with_token(array: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Returns the array unchanged, in the same memory, and a token that exists once it is computed; inside jit.

    The token, int32 [1], is for `after`: it makes other values wait for the array without keeping its memory in use.
    """
    same, token = _pass([_like(array), jax.ShapeDtypeStruct((1,), jnp.int32)], array)
    return same, token


def _pass(likes: list[jax.ShapeDtypeStruct], *arrays: jax.Array) -> list[jax.Array]:
    return handlers.call(native.layers(), "pass", likes, *arrays, aliases={0: 0})


def _like(array: jax.Array) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(array.shape, array.dtype)
