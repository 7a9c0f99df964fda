"""The data sets that jaxdp can read: their interface, and custom ones."""

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
    """A data set that jaxdp can read.

    Attributes:
      name: name of the data set, with its version.
      where: location of the data set, for messages.
      sizes: number of examples of the splits "train" and "test".
      image_shape: shape (H, W, C) of the images in RAM.
      num_classes: number of classes K.
      records: function of the name of a split. The method __getitems__ of its result takes the numbers of many examples
        and returns {"image": uint8 [H, W, C], "label"} for each, on any thread.
      files: same as `records`, but "image" holds the bytes of an image file; None if the data set has no image files.
      file_bytes: approximate total size of the image files of each split; None if the data set has no image files.
      shards: files that contain the records of each split.
      content: description of the data, which differs between its versions.
      class_names: name of each class; None if the classes have no names.
      resized: whether images are fitted to `image_shape`: the shorter side is resized and the middle cut out.
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
        """Average size of an example in RAM, in bytes; approximate if images are encoded."""
        if encoded:
            assert self.file_bytes is not None, "only a source with files can be stored encoded"
            image_bytes = self.file_bytes[split] / self.sizes[split]
        else:
            image_bytes = math.prod(self.image_shape)
        return image_bytes + np.dtype(np.int32).itemsize

    @property
    def fingerprint(self) -> str:
        """Identifies the data as it is stored: name, version, and a hash of the content and the shape of images."""
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
    """Makes a custom data set; `config.data.name` names the function that returns it.

    Args:
      name: name of the data set.
      train: sequence of training examples (image, label): uint8 [H, W, C], all of one shape, and an int in
        0..num_classes - 1. Several threads read from it, and each rank reads only its share.
      test: sequence of test examples, in the same form.
      num_classes: number of classes K.
      version: version of the data; a run can only be resumed with the same version.
      class_names: name of each class, for predictions.

    Raises:
      ValueError: the number of names differs from the number of classes, or the first image is not uint8 [H, W, C].
    """
    if class_names is not None and len(class_names) != num_classes:
        raise ValueError(f"{name!r} has {num_classes} classes, but {len(class_names)} class names: give one per class")
    splits = {"train": train, "test": test}
    image = np.asarray(train[0][0])
    if image.dtype != np.uint8 or image.ndim != 3:
        raise ValueError(
            f"jaxdp needs uint8 images of shape [H, W, C], but those of {name!r} are {image.dtype} of shape "
            f"{image.shape}"
        )
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
