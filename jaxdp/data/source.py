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
      files: likewise, "image" being the bytes of an image file; None where there are none.
      file_bytes: of all of them, about; None likewise.
      shards: the files that the records of each split are in.
      content: what the data is made of; it tells one version of it from another.
      class_names: of each class; None where they have none.
      resized: whether images are made to have that shape: the shorter side resized, the middle cut out.
    """

    name: str
    where: str
    sizes: Mapping[str, int]
    image_shape: tuple[int, int, int]
    num_classes: int
    records: Callable[[str], Any]
    files: Callable[[str], Any] | None
    file_bytes: Mapping[str, int] | None
    shards: Mapping[str, Sequence[pathlib.Path]]
    content: str
    class_names: tuple[str, ...] | None = None
    resized: bool = False

    def example_bytes(self, split: str, *, encoded: bool) -> float:
        """Of an example in RAM, on average, about if it is encoded."""
        if encoded:
            assert self.file_bytes is not None
            image_bytes = self.file_bytes[split] / self.sizes[split]
        else:
            image_bytes = math.prod(self.image_shape)
        return image_bytes + np.dtype(np.int32).itemsize

    @property
    def fingerprint(self) -> str:
        """Of the data as it is held: name and version, number and sizes of examples, and the shape."""
        content = repr((self.content, self.image_shape))
        return f"{self.name} {hashlib.sha256(content.encode()).hexdigest()[:8]}"


def of_examples(
    name: str,
    train: Sequence[tuple[Any, int]],
    test: Sequence[tuple[Any, int]],
    *,
    num_classes: int,
    version: str,
    class_names: Sequence[str] | None = None,
) -> Source:
    """A data set of one's own, for `config.data.name`: what a function of that name returns.

    Args:
      name: of the set.
      train: (image, label) by number, with a length: uint8 [H, W, C], all of one shape, and 0..num_classes - 1. Threads
        ask for examples, each rank for its part of them.
      test: likewise.
      num_classes: K.
      version: of the data; a run goes on with the same one only.
      class_names: of each class, for predictions.

    Raises:
      ValueError: there are more names than classes, or fewer; or the first image is not uint8 [H, W, C].
    """
    if class_names is not None and len(class_names) != num_classes:
        raise ValueError(f"{name!r} has {num_classes} classes, but {len(class_names)} names of them")
    splits = {"train": train, "test": test}
    image = np.asarray(train[0][0])
    if image.dtype != np.uint8 or image.ndim != 3:
        raise ValueError(f"jaxdp needs uint8 images [H, W, C], those of {name!r} are {image.dtype} {image.shape}")
    height, width, channels = image.shape
    return Source(
        name=f"{name}/{version}",
        where=name,
        sizes={split: len(examples) for split, examples in splits.items()},
        image_shape=(height, width, channels),
        num_classes=num_classes,
        records=lambda split: _Examples(splits[split]),
        files=None,
        file_bytes=None,
        shards={"train": (), "test": ()},
        content=repr((name, version, num_classes, len(train), len(test))),
        class_names=None if class_names is None else tuple(class_names),
    )


class _Examples:
    def __init__(self, examples: Sequence[tuple[Any, int]]):
        self._examples = examples

    def __getitems__(self, examples: Sequence[int]) -> list[dict[str, Any]]:
        pairs = (self._examples[example] for example in examples)
        return [{"image": np.asarray(image), "label": label} for image, label in pairs]
