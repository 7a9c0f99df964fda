"""A data set that can be read."""

from __future__ import annotations

import dataclasses
import hashlib
import math
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np


@dataclasses.dataclass(frozen=True)
class Source:
    """A data set that can be read.

    Attributes:
      name: with its version.
      where: it is, for messages.
      sizes: examples of the splits "train" and "test".
      image_shape: (H, W, C), as images are held in RAM.
      num_classes: K.
      records: a split's name to what gives {"image": uint8 [H, W, C], "label"} for many examples at once, from any
        thread, by its method __getitems__.
      files: likewise, "image" being the bytes of an image file.
      file_bytes: of all of them, about.
      shards: the files that the records of each split are in.
      content: what the data is made of; it tells one version of it from another.
      resized: whether images are made to have that shape: the shorter side resized, the middle cut out.
    """

    name: str
    where: str
    sizes: Mapping[str, int]
    image_shape: tuple[int, int, int]
    num_classes: int
    records: Callable[[str], Any]
    files: Callable[[str], Any]
    file_bytes: Mapping[str, int]
    shards: Mapping[str, Sequence[pathlib.Path]]
    content: str
    resized: bool = False

    def example_bytes(self, split: str, *, encoded: bool) -> float:
        """Of an example in RAM, on average, about if it is encoded."""
        image = self.file_bytes[split] / self.sizes[split] if encoded else math.prod(self.image_shape)
        return image + np.dtype(np.int32).itemsize

    @property
    def fingerprint(self) -> str:
        """Of the data as it is held: name and version, number and sizes of examples, and the shape."""
        return f"{self.name} {hashlib.sha256(repr((self.content, self.image_shape)).encode()).hexdigest()[:8]}"
