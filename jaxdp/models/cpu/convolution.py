"""Convolutions with oneDNN."""

from __future__ import annotations

import functools
from typing import Any

import jax
import numpy as np

from jaxdp import native
from jaxdp.models.cpu.forms import Pads, padding_of, uses_cpu_kernels
from jaxdp.native import handlers

# The same numbers as in native/convolutions.cc.
_OUTPUT, _INPUT_GRADIENT, _KERNEL_GRADIENT = range(3)


def convolve(x_BHWC: jax.Array, kernel_HWCD: jax.Array, strides: Any, padding: Any, **options: Any) -> jax.Array:
    """`jax.lax.conv_general_dilated` with channels last, computed by oneDNN where it can."""

    def convolution(x_BHWC: jax.Array, kernel_HWCD: jax.Array) -> jax.Array:
        return jax.lax.conv_general_dilated(x_BHWC, kernel_HWCD, strides, padding, **options)

    height, width, channels, _ = kernel_HWCD.shape
    is_dense = channels == x_BHWC.shape[-1] and {*options["lhs_dilation"], *options["rhs_dilation"]} == {1}
    if not (is_dense and uses_cpu_kernels(x_BHWC.dtype, kernel_HWCD.dtype) and x_BHWC.dtype.name in _dtypes()):
        return convolution(x_BHWC, kernel_HWCD)
    like_BHWD = jax.eval_shape(convolution, x_BHWC, kernel_HWCD)
    assert like_BHWD.dtype == x_BHWC.dtype, "oneDNN takes input, kernel and output of one dtype"
    pads = padding_of(x_BHWC, (height, width), strides, padding)
    compute = functools.partial(_by_onednn, strides=strides, pads=pads)

    @jax.custom_vjp
    def convolved(x_BHWC: jax.Array, kernel_HWCD: jax.Array) -> jax.Array:
        return compute(_OUTPUT, like_BHWD, x_BHWC, kernel_HWCD)

    def forward(x_BHWC: jax.Array, kernel_HWCD: jax.Array) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
        return convolved(x_BHWC, kernel_HWCD), (x_BHWC, kernel_HWCD)

    def backward(saved: tuple[jax.Array, jax.Array], g_BHWD: jax.Array) -> tuple[jax.Array, jax.Array]:
        x_BHWC, kernel_HWCD = saved
        of_x_BHWC = compute(_INPUT_GRADIENT, x_BHWC, kernel_HWCD, g_BHWD)
        if (height, width) == (1, 1) and not np.any(pads):
            # Restricted to the pixels that the kernel sees, this is a matrix product.
            seen_BHWC = x_BHWC[:, :: strides[0], :: strides[1]]
            return of_x_BHWC, compute(_KERNEL_GRADIENT, kernel_HWCD, seen_BHWC, g_BHWD, strides=(1, 1))
        return of_x_BHWC, compute(_KERNEL_GRADIENT, kernel_HWCD, x_BHWC, g_BHWD)

    convolved.defvjp(forward, backward)
    return convolved(x_BHWC, kernel_HWCD)


@functools.cache
def _dtypes() -> tuple[str, ...]:
    """Dtypes that oneDNN supports on this machine; none if it is not installed."""
    library = native.convolutions()
    if library is None:
        return ()
    return ("float32", "bfloat16") if library.jaxdp_has_bfloat16() else ("float32",)


def _by_onednn(wanted: int, like: Any, *given: jax.Array, strides: Any, pads: Pads) -> jax.Array:
    """Computes one of a convolution's input, kernel and output, or its gradient, from the other two, in this order."""
    library = native.convolutions()
    assert library is not None, "oneDNN must be installed to compute convolutions with it"
    return handlers.call(
        library,
        "convolution",
        like,
        *given,
        wanted=np.int64(wanted),
        strides=np.array(strides, np.int64),
        pads=np.array(pads, np.int64).ravel(),
    )
