"""Convolutions and max pooling for CPUs, where XLA's own are slow.

oneDNN, where it is installed, computes convolutions; the gradient of max pooling is no scatter. Other devices, and
whoever asks for `plain_forms`, get XLA's own operations.
"""

from __future__ import annotations

import contextlib
import contextvars
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jaxdp import native

_TARGET = "jaxdp_convolution"
# As in native/convolutions.cc.
_OUTPUT, _INPUT_GRADIENT, _KERNEL_GRADIENT = range(3)

Pads = Sequence[tuple[int, int]]

_is_plain = contextvars.ContextVar("is_plain", default=False)


@contextlib.contextmanager
def plain_forms() -> Iterator[None]:
    """Inside, while JAX traces, a model is made of the same operations on CPUs as elsewhere: to be counted, not run."""
    before = _is_plain.set(True)
    try:
        yield
    finally:
        _is_plain.reset(before)


def count_flops(function: Callable[..., Any], *arguments: Any) -> float:
    """Floating-point operations of a call, as XLA counts those of plain forms: it counts a loop as if run once."""

    def plain(*arguments: Any) -> Any:
        with plain_forms():
            return function(*arguments)

    analysis: Any = jax.jit(plain).lower(*arguments).cost_analysis()
    return analysis["flops"]


def _applies() -> bool:
    return jax.default_backend() == "cpu" and not _is_plain.get()


def _pads(x_BHWC: jax.Array, window: tuple[int, int], strides: Any, padding: Any) -> Pads:
    """Down and across, the pixels before and behind."""
    return jax.lax.padtype_to_pads(x_BHWC.shape[1:3], window, strides, padding) if isinstance(padding, str) else padding


def convolve(x_BHWC: jax.Array, kernel_HWCD: jax.Array, strides: Any, padding: Any, **options: Any) -> jax.Array:
    """`jax.lax.conv_general_dilated`, channels last."""

    def convolution(x_BHWC: jax.Array, kernel_HWCD: jax.Array) -> jax.Array:
        return jax.lax.conv_general_dilated(x_BHWC, kernel_HWCD, strides, padding, **options)

    height, width, channels, _ = kernel_HWCD.shape
    is_dense = channels == x_BHWC.shape[-1] and {*options["lhs_dilation"], *options["rhs_dilation"]} == {1}
    if not (_applies() and is_dense and x_BHWC.dtype.name in _dtypes()):
        return convolution(x_BHWC, kernel_HWCD)
    like_BHWD = jax.eval_shape(convolution, x_BHWC, kernel_HWCD)
    assert like_BHWD.dtype == x_BHWC.dtype, "oneDNN is told one dtype of all three"
    compute = functools.partial(_by_onednn, strides=strides, pads=_pads(x_BHWC, (height, width), strides, padding))

    @jax.custom_vjp
    def convolved(x_BHWC: jax.Array, kernel_HWCD: jax.Array) -> jax.Array:
        return compute(_OUTPUT, like_BHWD, x_BHWC, kernel_HWCD)

    def forward(x_BHWC: jax.Array, kernel_HWCD: jax.Array) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
        return convolved(x_BHWC, kernel_HWCD), (x_BHWC, kernel_HWCD)

    def backward(saved: tuple[jax.Array, jax.Array], g_BHWD: jax.Array) -> tuple[jax.Array, jax.Array]:
        x_BHWC, kernel_HWCD = saved
        return (
            compute(_INPUT_GRADIENT, x_BHWC, kernel_HWCD, g_BHWD),
            compute(_KERNEL_GRADIENT, kernel_HWCD, x_BHWC, g_BHWD),
        )

    convolved.defvjp(forward, backward)
    return convolved(x_BHWC, kernel_HWCD)


@functools.cache
def _dtypes() -> tuple[str, ...]:
    """In which oneDNN computes here: none where it is not installed."""
    library = native.convolutions()
    if library is None:
        return ()
    jax.ffi.register_ffi_target(_TARGET, jax.ffi.pycapsule(library.jaxdp_xla_convolution), platform="cpu")
    return ("float32", "bfloat16") if library.jaxdp_has_bfloat16() else ("float32",)


def _by_onednn(wanted: int, like: Any, *given: jax.Array, strides: Any, pads: Pads) -> jax.Array:
    """One of a convolution's input, kernel and output, of those or their gradients, by the other two, in this order."""
    integers = {"strides": np.array(strides, np.int64), "pads": np.array(pads, np.int64).ravel()}
    of_program = jax.ffi.ffi_call(_TARGET, like)
    return of_program(*given, wanted=np.int64(wanted), **integers)


def max_pool(x_BHWC: jax.Array, window: tuple[int, int], strides: tuple[int, int], padding: Any = "VALID") -> jax.Array:
    """`flax.nnx.max_pool`: the gradient goes to the first of the largest values."""
    pool = functools.partial(nnx.max_pool, window_shape=window, strides=strides, padding=padding)
    if not _applies():
        return pool(x_BHWC)
    pads = _pads(x_BHWC, window, strides, padding)

    @jax.custom_vjp
    def pooled(x_BHWC: jax.Array) -> jax.Array:
        return pool(x_BHWC)

    def forward(x_BHWC: jax.Array) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
        y_BHWC = pool(x_BHWC)
        return y_BHWC, (x_BHWC, y_BHWC)

    def backward(saved: tuple[jax.Array, jax.Array], g_BHWC: jax.Array) -> tuple[jax.Array]:
        return (_pool_gradient(*saved, g_BHWC, window, strides, pads),)

    pooled.defvjp(forward, backward)
    return pooled(x_BHWC)


def _pool_gradient(
    x_BHWC: jax.Array,
    y_BHWC: jax.Array,
    g_BHWC: jax.Array,
    window: tuple[int, int],
    strides: tuple[int, int],
    pads: Pads,
) -> jax.Array:
    """Of max pooling: each pixel that came out looks for the first that went in and is as large."""
    (down, across), (rows, columns) = strides, y_BHWC.shape[1:3]
    low = jnp.array(-jnp.inf, x_BHWC.dtype)
    padded_BHWC = jax.lax.pad(x_BHWC, low, [(0, 0, 0), *((*pad, 0) for pad in pads), (0, 0, 0)])
    height, width = padded_BHWC.shape[1:3]
    tall, wide = down * (rows - 1) + 1, across * (columns - 1) + 1
    is_left = jnp.ones_like(y_BHWC, bool)
    total_BHWC = jnp.zeros_like(padded_BHWC)
    for top in range(window[0]):
        for left in range(window[1]):
            seen_BHWC = padded_BHWC[:, top : top + tall : down, left : left + wide : across]
            is_it = is_left & (seen_BHWC == y_BHWC)
            is_left &= ~is_it
            around = [
                (0, 0, 0),
                (top, height - top - tall, down - 1),
                (left, width - left - wide, across - 1),
                (0, 0, 0),
            ]
            zero = jnp.zeros((), g_BHWC.dtype)
            total_BHWC += jax.lax.pad(jnp.where(is_it, g_BHWC, zero), zero, around)
    (above, below), (before, behind) = pads
    return total_BHWC[:, above : height - below, before : width - behind]
