"""Stores images in RAM, as pixels or as encoded files.

Both consist of units that can be sent to other nodes: an image is one unit of pixels, or several blocks of its file.
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
from jaxdp.runtime.world import UserError

# Size of a block in bytes; the last block of a file is padded with zeros.
BLOCK_BYTES = 64


class Storage(Protocol):
    """Interface for images that are stored in rows."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape (H, W, C) of an image."""

    @property
    def nbytes(self) -> int:
        """Size in RAM, in bytes."""

    def fill(self, rows: np.ndarray, ids: np.ndarray, epochs: np.ndarray, out: np.ndarray, places: np.ndarray) -> None:
        """Writes images into a batch.

        Args:
          rows: int64 [n], rows of the images in this storage.
          ids: int64 [n], ids of the examples.
          epochs: int64 [n], epoch in which each example is seen.
          out: uint8 [size, H, W, C], the batch.
          places: int64 [n], rows of `out` to write.

        Raises:
          UserError: an image cannot be decoded.
        """

    def units(self, rows: np.ndarray) -> np.ndarray:
        """Copies the images in these rows into units that can be sent: uint8 [units, unit bytes]."""

    def of_units(self, units: np.ndarray, lengths: np.ndarray) -> Storage:
        """Makes a storage of images that have arrived: row i has lengths[i] of these units."""


@dataclasses.dataclass(frozen=True)
class Pixels:
    """Images of one size, stored as pixels.

    Attributes:
      images_NHWC: uint8, pixels of the images.
      threads: number of threads for copies.
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
        """Implements `Storage.fill`."""
        del ids, epochs
        copy_rows(self.images_NHWC, rows, out, places, threads=self.threads)

    def units(self, rows: np.ndarray) -> np.ndarray:
        """Implements `Storage.units`."""
        return _rows_of(self._units, rows, self.threads)

    def of_units(self, units: np.ndarray, lengths: np.ndarray) -> Pixels:
        """Implements `Storage.of_units`."""
        assert len(units) == len(lengths), "every image must be one unit"
        return Pixels(units.reshape(-1, *self.shape), self.threads)

    def put(self, rows: np.ndarray, units: np.ndarray) -> None:
        """Overwrites the images in these rows, int64 [n], with these units, one per image."""
        copy_rows(units, np.arange(len(rows)), self._units, rows, threads=self.threads)

    @property
    def _units(self) -> np.ndarray:
        return self.images_NHWC.reshape(len(self.images_NHWC), math.prod(self.shape))


@dataclasses.dataclass(frozen=True)
class Encoded:
    """Concatenated encoded images, decoded when a batch is built.

    Attributes:
      blocks: uint8 [num_blocks, BLOCK_BYTES], contents of the image files.
      bounds: int64 [N + 1], file i is in blocks bounds[i]..bounds[i + 1].
      decoder: decoder of the files.
      pool: executor that runs the decoder.
      threads: number of threads for copies.
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
        """Implements `Storage.fill`."""

        def decode(row: int, example: int, epoch: int, place: int) -> None:
            file = self.blocks[self.bounds[row] : self.bounds[row + 1]].reshape(-1)
            try:
                out[place] = self.decoder(file.data, example=example, epoch=epoch)
            except Exception as error:  # Pillow's decoders raise many kinds of exceptions.
                raise UserError(
                    f"example {example} of the data set cannot be decoded as an image: {type(error).__name__}: "
                    f"{error}: prepare the data set again"
                ) from error

        columns = (column.tolist() for column in (rows, ids, epochs, places))
        for _ in self.pool.map(decode, *columns):
            pass

    def units(self, rows: np.ndarray) -> np.ndarray:
        """Implements `Storage.units`."""
        lengths = np.diff(self.bounds)[rows]
        # Number of each block within its file.
        within = np.arange(lengths.sum()) - np.repeat(np.cumsum(lengths) - lengths, lengths)
        return _rows_of(self.blocks, np.repeat(self.bounds[rows], lengths) + within, self.threads)

    def of_units(self, units: np.ndarray, lengths: np.ndarray) -> Encoded:
        """Implements `Storage.of_units`."""
        return dataclasses.replace(self, blocks=units, bounds=np.concatenate([[0], np.cumsum(lengths)]))


def _rows_of(units: np.ndarray, rows: np.ndarray, threads: int) -> np.ndarray:
    out = aligned(len(rows), units.shape[1:])
    copy_rows(units, rows, out, np.arange(len(rows)), threads=threads)
    return out


class Files:
    """Gathers files in memory while their total size is unknown.

    Args:
      segment_bytes: size of the segments of memory that hold the files; a larger file gets a segment of its size.

    Attributes:
      lengths: number of blocks of each file.
    """

    def __init__(self, segment_bytes: int = 64 * 2**20) -> None:
        self.lengths: list[int] = []
        self._segment_bytes = segment_bytes
        # Map segments instead of allocating them, so that each is returned to the system as soon as it has been copied.
        self._segments: list[tuple[mmap.mmap, int]] = []

    def add(self, files: Sequence[bytes]) -> None:
        """Appends files."""
        for file in files:
            num_blocks = -(-len(file) // BLOCK_BYTES)
            room = num_blocks * BLOCK_BYTES
            if not self._segments or self._segments[-1][1] + room > len(self._segments[-1][0]):
                self._segments.append((mmap.mmap(-1, max(self._segment_bytes, room)), 0))
            segment, used = self._segments[-1]
            segment[used : used + len(file)] = file
            self._segments[-1] = segment, used + room
            self.lengths.append(num_blocks)

    def move_to(self, blocks: np.ndarray) -> None:
        """Moves all files to `blocks`, uint8 [sum(lengths), BLOCK_BYTES], and frees their memory here."""
        start, target = 0, blocks.reshape(-1)
        for segment, used in self._segments:
            target[start : start + used] = np.frombuffer(segment, np.uint8, used)
            start += used
            segment.close()
        self._segments.clear()
