"""How images lie in RAM: as pixels, or as the encoded files that they came in.

Both are rows of units that can be sent: an image is one unit of pixels, or some blocks of its file.
"""

from __future__ import annotations

import concurrent.futures
import dataclasses
import math
import mmap
from collections.abc import Sequence
from typing import Protocol

import numpy as np

from jaxdp.data.decode import Decoder
from jaxdp.data.rows import aligned, copy_rows
from jaxdp.world import UserError

# A file ends with a block that is filled up with zeros.
BLOCK_BYTES = 64
# Of memory that files lie in while it is not known how many there are.
_SEGMENT_BYTES = 64 * 2**20


class Storage(Protocol):
    """Images in rows."""

    @property
    def shape(self) -> tuple[int, ...]:
        """(H, W, C) of an image."""

    @property
    def nbytes(self) -> int:
        """Of memory."""

    def fill(self, rows: np.ndarray, ids: np.ndarray, epochs: np.ndarray, out: np.ndarray, places: np.ndarray) -> None:
        """Puts images into a batch.

        Args:
          rows: int64 [n], with the images.
          ids: int64 [n], which examples they are.
          epochs: int64 [n], in which each is seen.
          out: uint8 [size, H, W, C].
          places: int64 [n], in `out`.

        Raises:
          UserError: an image cannot be decoded.
        """

    def units(self, rows: np.ndarray) -> np.ndarray:
        """uint8 [units, unit bytes]: the images of these rows, to be sent."""

    def of_units(self, units: np.ndarray, lengths: np.ndarray) -> Storage:
        """Images that have arrived: row i has lengths[i] of these units."""


@dataclasses.dataclass(frozen=True)
class Pixels:
    """Images of one size, as they are.

    Attributes:
      images_NHWC: uint8.
      threads: to copy with.
    """

    images_NHWC: np.ndarray
    threads: int

    @property
    def shape(self) -> tuple[int, ...]:
        return self.images_NHWC.shape[1:]

    @property
    def nbytes(self) -> int:
        return self.images_NHWC.nbytes

    def fill(self, rows: np.ndarray, ids: np.ndarray, epochs: np.ndarray, out: np.ndarray, places: np.ndarray) -> None:
        """See Storage."""
        del ids, epochs
        copy_rows(self.images_NHWC, rows, out, places, threads=self.threads)

    def units(self, rows: np.ndarray) -> np.ndarray:
        """See Storage."""
        return _rows_of(self._units, rows, self.threads)

    def of_units(self, units: np.ndarray, lengths: np.ndarray) -> Pixels:
        """See Storage."""
        assert len(units) == len(lengths)
        return Pixels(units.reshape(-1, *self.shape), self.threads)

    def put(self, rows: np.ndarray, units: np.ndarray) -> None:
        """Overwrites the images of these rows, int64 [n], with these, one unit each."""
        copy_rows(units, np.arange(len(rows)), self._units, rows, threads=self.threads)

    @property
    def _units(self) -> np.ndarray:
        return self.images_NHWC.reshape(len(self.images_NHWC), math.prod(self.shape))


@dataclasses.dataclass(frozen=True)
class Encoded:
    """Image files, one behind the other, decoded when a batch is made of them.

    Attributes:
      blocks: uint8 [num_blocks, BLOCK_BYTES].
      bounds: int64 [N + 1], file i is in the blocks bounds[i]..bounds[i + 1].
      decoder: makes pixels of them.
      pool: decodes.
      threads: to copy with.
    """

    blocks: np.ndarray
    bounds: np.ndarray
    decoder: Decoder
    pool: concurrent.futures.Executor
    threads: int

    @property
    def shape(self) -> tuple[int, ...]:
        return self.decoder.shape

    @property
    def nbytes(self) -> int:
        return self.blocks.nbytes + self.bounds.nbytes

    def fill(self, rows: np.ndarray, ids: np.ndarray, epochs: np.ndarray, out: np.ndarray, places: np.ndarray) -> None:
        """See Storage."""

        def decode(row: int, example: int, epoch: int, place: int) -> None:
            file = self.blocks[self.bounds[row] : self.bounds[row + 1]].reshape(-1)
            try:
                out[place] = self.decoder(file.data, example=example, epoch=epoch)
            except Exception as error:  # Pillow raises whatever its decoders do.
                raise UserError(
                    f"example {example} of the data set is no image that can be decoded: {type(error).__name__}: "
                    f"{error}: prepare the data set anew"
                ) from error

        columns = (column.tolist() for column in (rows, ids, epochs, places))
        for _ in self.pool.map(decode, *columns):
            pass

    def units(self, rows: np.ndarray) -> np.ndarray:
        """See Storage."""
        lengths = np.diff(self.bounds)[rows]
        # Block after block of each file.
        within = np.arange(lengths.sum()) - np.repeat(np.cumsum(lengths) - lengths, lengths)
        return _rows_of(self.blocks, np.repeat(self.bounds[rows], lengths) + within, self.threads)

    def of_units(self, units: np.ndarray, lengths: np.ndarray) -> Encoded:
        """See Storage."""
        return dataclasses.replace(self, blocks=units, bounds=np.concatenate([[0], np.cumsum(lengths)]))


def _rows_of(units: np.ndarray, rows: np.ndarray, threads: int) -> np.ndarray:
    out = aligned(len(rows), units.shape[1:])
    copy_rows(units, rows, out, np.arange(len(rows)), threads=threads)
    return out


class Files:
    """Files gathered in memory, whose total is not known before the last has come."""

    def __init__(self) -> None:
        self.lengths: list[int] = []
        # Mapped and not allocated, so that each is given back as soon as it has been copied.
        self._segments: list[tuple[mmap.mmap, int]] = []

    def add(self, files: Sequence[bytes]) -> None:
        """Puts some more behind the others."""
        for file in files:
            num_blocks = -(-len(file) // BLOCK_BYTES)
            room = num_blocks * BLOCK_BYTES
            if not self._segments or self._segments[-1][1] + room > len(self._segments[-1][0]):
                self._segments.append((mmap.mmap(-1, max(_SEGMENT_BYTES, room)), 0))
            segment, used = self._segments[-1]
            segment[used : used + len(file)] = file
            self._segments[-1] = segment, used + room
            self.lengths.append(num_blocks)

    def move_to(self, blocks: np.ndarray) -> None:
        """Copies all to where they are to lie, uint8 [sum(lengths), BLOCK_BYTES], giving up the memory here."""
        start, target = 0, blocks.reshape(-1)
        for segment, used in self._segments:
            target[start : start + used] = np.frombuffer(segment, np.uint8, used)
            start += used
            segment.close()
        self._segments.clear()
