"""Synthetic data for benchmarks: noise, which needs no files."""

from __future__ import annotations

import io
import math
from collections.abc import Iterator
from typing import Any

import numpy as np

from jaxdp.data.source import Source

PREFIX = "synthetic:"

# Noise in image files is this many times coarser, so that the files are about as large as those of photographs.
_COARSE = 8


def open_synthetic(name: str) -> Source:
    """Opens a data set with a name such as synthetic:50000:10000:32:10 (TRAIN:TEST:SIZE:CLASSES).

    Raises:
      ValueError: the name is not of this form.
    """
    try:
        num_train, num_test, size, num_classes = map(int, name.removeprefix(PREFIX).split(":"))
    except ValueError:
        num_train = num_test = size = num_classes = 0
    if min(num_train, num_test, size, num_classes) < 1:
        raise ValueError(
            f"{name!r} is not a valid synthetic data set: write synthetic:TRAIN:TEST:SIZE:CLASSES with numbers above "
            "0, e.g. synthetic:50000:10000:32:10"
        )
    shape = (size, size, 3)
    first_file = next(_NoiseFiles(shape, num_classes, seed=0).__getitems__(range(1)))["image"]
    return Source(
        name=name,
        where="memory",
        sizes={"train": num_train, "test": num_test},
        image_shape=shape,
        num_classes=num_classes,
        records=lambda split: _Noise(shape, num_classes, seed=split == "test"),
        files=lambda split: _NoiseFiles(shape, num_classes, seed=split == "test"),
        file_bytes={split: count * len(first_file) for split, count in (("train", num_train), ("test", num_test))},
        shards={"train": (), "test": ()},
        content=name,
    )


class _Noise:
    """Random images, the same in every job; the label of an example is its number modulo the number of classes."""

    def __init__(self, shape: tuple[int, int, int], num_classes: int, seed: int):
        self._shape, self._num_classes, self._seed = shape, num_classes, seed

    def __getitems__(self, examples: range) -> Iterator[dict[str, Any]]:
        for example in examples:
            words = np.random.Philox(key=np.array([self._seed, example], np.uint64))
            pixels = words.random_raw(-(-math.prod(self._shape) // 8)).view(np.uint8)[: math.prod(self._shape)]
            yield {"image": pixels.reshape(self._shape), "label": example % self._num_classes}


class _NoiseFiles:
    """Random images as JPEG files, the same in every job; labels are those of `_Noise`."""

    def __init__(self, shape: tuple[int, int, int], num_classes: int, seed: int):
        height, width, channels = shape
        self._size = (width, height)
        self._noise = _Noise((-(-height // _COARSE), -(-width // _COARSE), channels), num_classes, seed)

    def __getitems__(self, examples: range) -> Iterator[dict[str, Any]]:
        from PIL import Image

        for record in self._noise.__getitems__(examples):
            file = io.BytesIO()
            Image.fromarray(record["image"]).resize(self._size, Image.Resampling.BICUBIC).save(file, "JPEG", quality=90)
            yield {"image": file.getvalue(), "label": record["label"]}
