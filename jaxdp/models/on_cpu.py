"""Convolutions and max pooling in the forms that XLA's CPU back end is fast at.

It multiplies matrices at several times the speed at which it finds the gradient of a convolution's kernel, and the
gradient of its max pooling is a scatter. Other devices, and whoever asks for `plain_forms`, get XLA's own operations.
"""

from __future__ import annotations

import contextlib
import contextvars
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

# Of an image that comes out of a convolution: with fewer, XLA's own gradient of the kernel is as fast.
_FEWEST_PIXELS = 200

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
    if not _applies() or not is_dense:
        return convolution(x_BHWC, kernel_HWCD)
    pads = _pads(x_BHWC, (height, width), strides, padding)
    if height == width == 1 and not any(map(any, pads)):
        seen_BHWC = x_BHWC[:, :: strides[0], :: strides[1]]
        y_ND = seen_BHWC.reshape(-1, channels) @ kernel_HWCD[0, 0]
        return y_ND.reshape(*seen_BHWC.shape[:-1], -1)
    return _with_products(convolution, tuple(strides), pads)(x_BHWC, kernel_HWCD)


def _with_products(convolution: Callable[..., jax.Array], strides: tuple[int, int], pads: Pads) -> Callable:
    """The convolution, with the gradient of its kernel by products of matrices where these are faster."""

    @jax.custom_vjp
    def convolved(x_BHWC: jax.Array, kernel_HWCD: jax.Array) -> jax.Array:
        return convolution(x_BHWC, kernel_HWCD)

    def forward(x_BHWC: jax.Array, kernel_HWCD: jax.Array) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
        return convolution(x_BHWC, kernel_HWCD), (x_BHWC, kernel_HWCD)

    def backward(saved: tuple[jax.Array, jax.Array], g_BHWD: jax.Array) -> tuple[jax.Array, jax.Array]:
        x_BHWC, kernel_HWCD = saved
        _, gradients = jax.vjp(convolution, x_BHWC, kernel_HWCD)
        to_x, to_kernel = gradients(g_BHWD)
        if g_BHWD.shape[1] * g_BHWD.shape[2] >= _FEWEST_PIXELS and g_BHWD.dtype == jnp.float32:
            to_kernel = kernel_gradient(x_BHWC, g_BHWD, kernel_HWCD.shape[:2], strides, pads)
        return to_x, to_kernel

    convolved.defvjp(forward, backward)
    return convolved


def kernel_gradient(
    x_BHWC: jax.Array, g_BHWD: jax.Array, window: tuple[int, ...], strides: tuple[int, int], pads: Pads
) -> jax.Array:
    """The gradient of a convolution's kernel, float [kernel height, kernel width, C, D].

    An image's pixels stand side by side as often as the kernel is wide, each time a column on, and their gradient as
    often as it is high, each time a row on; then all is one product, for each row of a stride. Image by image, as that
    stays in the caches.

    Args:
      x_BHWC: what went in.
      g_BHWD: the gradient of what came out.
      window: height and width of the kernel.
      strides: down and across.
      pads: likewise, pixels before and behind.
    """
    (height, width), (down, across) = window, strides
    rows, columns = g_BHWD.shape[1:3]
    phases = [len(range(phase, height, down)) for phase in range(min(height, down))]
    shapes = [(width, x_BHWC.shape[-1], taps, g_BHWD.shape[-1]) for taps in phases]

    def add(totals: list[jax.Array], image: tuple[jax.Array, jax.Array]) -> tuple[list[jax.Array], None]:
        x_HWC, g_HWD = image
        x_HWC = jnp.pad(x_HWC, (*pads, (0, 0)))
        last = across * (columns - 1) + 1
        beside_HWC = jnp.concatenate([x_HWC[:, tap : tap + last : across] for tap in range(width)], -1)
        sums = []
        for phase, (taps, total) in enumerate(zip(phases, totals, strict=True)):
            seen = rows + taps - 1
            x_NC = beside_HWC[phase : phase + down * (seen - 1) + 1 : down].reshape(seen * columns, -1)
            shifted = [jnp.pad(g_HWD, ((tap, taps - 1 - tap), (0, 0), (0, 0))) for tap in range(taps)]
            g_ND = jnp.concatenate(shifted, -1).reshape(seen * columns, -1)
            sums.append(total + (x_NC.T @ g_ND).reshape(total.shape))
        return sums, None

    # Zeros that vary over the devices, as what is added to them does.
    zero = (0 * jnp.isnan(g_BHWD[0, 0, 0, 0])).astype(g_BHWD.dtype)
    nothing = [jnp.zeros(shape, g_BHWD.dtype) + zero for shape in shapes]
    totals, _ = jax.lax.scan(add, nothing, (x_BHWC, g_BHWD))
    return jnp.stack([totals[tap % down][:, :, tap // down] for tap in range(height)])


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
