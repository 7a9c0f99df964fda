"""Calls the XLA handlers of the C++ libraries inside jit, on CPUs."""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Callable
from typing import Any

import jax


def call(
    library: ctypes.CDLL,
    name: str,
    like: Any,
    *arrays: jax.Array,
    aliases: dict[int, int] | None = None,
    **attributes: Any,
) -> Any:
    """Calls the handler `jaxdp_xla_NAME` of a library; programs and their caches know it as `jaxdp_NAME`.

    Args:
      library: the loaded library.
      name: name of the handler, without the prefix.
      like: an array with the shape and dtype of the result, or several arrays for several results.
      arrays: inputs of the handler.
      aliases: for each input whose memory a result reuses, the index of that result.
      attributes: attributes of the handler, as NumPy values.
    """
    _register(library, name)
    handler: Callable[..., Any] = jax.ffi.ffi_call(f"jaxdp_{name}", like, input_output_aliases=aliases)
    return handler(*arrays, **attributes)


@functools.cache
def _register(library: ctypes.CDLL, name: str) -> None:
    handler = getattr(library, f"jaxdp_xla_{name}")
    jax.ffi.register_ffi_target(f"jaxdp_{name}", jax.ffi.pycapsule(handler), platform="cpu")
