"""Copies rows of images into batches, and recycles the memory of batches."""

from __future__ import annotations

import ctypes
import math
import weakref

import numpy as np

from jaxdp import native

# Alignment, in bytes, of memory that XLA's CPU devices use without a copy.
_ALIGNMENT = 64


def copy_rows(source: np.ndarray, rows: np.ndarray, target: np.ndarray, places: np.ndarray, *, threads: int) -> None:
    """Copies rows at the speed of memory: target[places] = source[rows].

    Args:
      source: uint8 [N, ...], contiguous.
      rows: int64 [n], rows of `source`.
      target: uint8 [M, ...], contiguous, with rows of the same size.
      places: int64 [n], rows of `target`, all different.
      threads: maximum number of threads, 1 or more; small copies use fewer.

    Raises:
      IndexError: a row or a place is out of range; nothing has been copied.
    """
    row_bytes = math.prod(source.shape[1:])
    assert math.prod(target.shape[1:]) == row_bytes, "rows of source and target must have the same size"
    for array in (source, target):
        assert array.dtype == np.uint8, "source and target must be bytes"
        assert array.flags.c_contiguous, "source and target must be contiguous"
    rows, places = np.ascontiguousarray(rows, np.int64), np.ascontiguousarray(places, np.int64)
    assert len(rows) == len(places), "every row needs one place"
    are_outside = native.rows().jaxdp_copy_rows(
        *(source.ctypes.data, len(source), rows.ctypes.data),
        *(target.ctypes.data, len(target), places.ctypes.data),
        *(len(rows), row_bytes, threads),
    )
    if are_outside:
        raise IndexError(
            f"rows must be in 0..{len(source) - 1} and places in 0..{len(target) - 1}, but some are outside"
        )


def aligned(count: int, shape: tuple[int, ...]) -> np.ndarray:
    """Allocates an uninitialised array that JAX uses on CPU devices without a copy: uint8 [count, *shape]."""
    num_bytes = count * math.prod(shape)
    memory = np.empty(num_bytes + _ALIGNMENT, np.uint8)
    start = -memory.ctypes.data % _ALIGNMENT
    return memory[start : start + num_bytes].reshape(count, *shape)


class Buffers:
    """Recycles arrays of one shape from `aligned`: reuses the memory of arrays that are no longer referenced.

    Fresh memory causes page faults, which for a large batch take as long as filling it.

    Args:
      count: number of rows.
      shape: shape of a row.
    """

    def __init__(self, count: int, shape: tuple[int, ...]):
        self._shape = (count, *shape)
        self._free: list[np.ndarray] = []

    def take(self) -> np.ndarray:
        """Returns an array with undefined contents: uint8 [count, *shape]."""
        memory = self._free.pop() if self._free else aligned(self._shape[0], self._shape[1:])
        # All views, including JAX's arrays, keep `lent` alive. When the last one is gone, `memory` can be reused.
        lent = (ctypes.c_uint8 * memory.size).from_buffer(memory.data)
        weakref.finalize(lent, self._free.append, memory).atexit = False
        return np.ctypeslib.as_array(lent).reshape(self._shape)
