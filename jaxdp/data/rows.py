"""Rows of images, copied to where a batch wants them."""

from __future__ import annotations

import ctypes
import math
import weakref

import numpy as np

from jaxdp import native

# Of memory that XLA's CPU devices use as it is.
_ALIGNMENT = 64


def copy_rows(source: np.ndarray, rows: np.ndarray, target: np.ndarray, places: np.ndarray, *, threads: int) -> None:
    """target[places] = source[rows], as fast as memory goes; where little is copied, on fewer threads.

    Args:
      source: uint8 [N, ...], contiguous.
      rows: int64 [n].
      target: uint8 [M, ...], contiguous, with rows of the same size.
      places: int64 [n], each another one.
      threads: 1 or more.
    """
    row_bytes = math.prod(source.shape[1:])
    assert math.prod(target.shape[1:]) == row_bytes
    assert all(array.dtype == np.uint8 and array.flags.c_contiguous for array in (source, target))
    rows, places = np.ascontiguousarray(rows, np.int64), np.ascontiguousarray(places, np.int64)
    assert len(rows) == len(places)
    outside = native.rows().jaxdp_copy_rows(
        *(source.ctypes.data, len(source), rows.ctypes.data),
        *(target.ctypes.data, len(target), places.ctypes.data),
        *(len(rows), row_bytes, threads),
    )
    assert not outside


def aligned(count: int, shape: tuple[int, ...]) -> np.ndarray:
    """uint8 [count, *shape], not initialised, which JAX takes over on CPU devices without a copy."""
    num_bytes = count * math.prod(shape)
    memory = np.empty(num_bytes + _ALIGNMENT, np.uint8)
    start = -memory.ctypes.data % _ALIGNMENT
    return memory[start : start + num_bytes].reshape(count, *shape)


class Buffers:
    """Arrays of one shape, as `aligned` gives them, in memory of those before them that nobody holds any more.

    Fresh memory costs page faults, for a large batch as much as filling it.

    Args:
      count, shape: of `aligned`.
    """

    def __init__(self, count: int, shape: tuple[int, ...]):
        self._shape = (count, *shape)
        self._free: list[np.ndarray] = []

    def take(self) -> np.ndarray:
        """uint8 [count, *shape]: what it holds is undefined."""
        memory = self._free.pop() if self._free else aligned(self._shape[0], self._shape[1:])
        # All views of it, JAX's arrays among them, keep this, which unlike the memory itself may end.
        lent = (ctypes.c_uint8 * memory.size).from_buffer(memory.data)
        weakref.finalize(lent, self._free.append, memory).atexit = False
        return np.ctypeslib.as_array(lent).reshape(self._shape)
