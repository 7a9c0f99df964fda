"""Chooses between this package's CPU kernels and XLA's own operations."""

from __future__ import annotations

import contextlib
import contextvars
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from jaxdp import native
from jaxdp.native import handlers

_is_plain = contextvars.ContextVar("is_plain", default=False)

Pads = Sequence[tuple[int, int]]


@contextlib.contextmanager
def without_cpu_kernels() -> Iterator[None]:
    """Makes models traced in this context use XLA's own operations on CPUs too: to be counted, not run."""
    before = _is_plain.set(True)
    try:
        yield
    finally:
        _is_plain.reset(before)


def count_flops(function: Callable[..., Any], *arguments: Any) -> float:
    """Floating-point operations of a call, counted by XLA in plain forms. XLA counts the body of a loop only once."""

    def plain(*arguments: Any) -> Any:
        with without_cpu_kernels():
            return function(*arguments)

    analysis: Any = jax.jit(plain).lower(*arguments).cost_analysis()
    return analysis["flops"]


def uses_cpu_kernels(*dtypes: Any) -> bool:
    """Whether this package's CPU kernels are used for arrays of these dtypes, which must all be the same."""
    names = {jnp.dtype(dtype).name for dtype in dtypes}
    is_known = len(names) == 1 and names <= {"float32", "bfloat16"}
    return is_known and jax.default_backend() == "cpu" and not _is_plain.get()


def call(name: str, like: Any, *arrays: jax.Array, **attributes: Any) -> Any:
    """Calls an operation of native/normalisation.cc or native/pooling.cc, see `handlers.call`."""
    return handlers.call(native.layers(), name, like, *arrays, **attributes)


def padding_of(x_BHWC: jax.Array, window: tuple[int, int], strides: Any, padding: Any) -> Pads:
    """Pixels of padding (before, after), for height and width."""
    return jax.lax.padtype_to_pads(x_BHWC.shape[1:3], window, strides, padding) if isinstance(padding, str) else padding
