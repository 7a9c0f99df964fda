"""Sizes of well-known data sets, so that --explain works before they are downloaded."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping


@dataclasses.dataclass(frozen=True)
class Facts:
    """Facts about a data set that do not require its files.

    Attributes:
      sizes: number of examples in each split.
      image_shape: shape (H, W, C) of the images; H and W are None where images differ in size.
      num_classes: number of classes K.
      file_bytes: total size of the image files of each split; None for sets that would not be stored encoded.
    """

    sizes: Mapping[str, int]
    image_shape: tuple[int | None, int | None, int]
    num_classes: int
    file_bytes: Mapping[str, int] | None = None


# From the catalog of TFDS. The file sizes of ImageNet are those of the archives that its authors distribute.
KNOWN = {
    "digits": Facts({"train": 1437, "test": 360}, (8, 8, 1), 10),
    "mnist": Facts({"train": 60_000, "test": 10_000}, (28, 28, 1), 10),
    "cifar10": Facts({"train": 50_000, "test": 10_000}, (32, 32, 3), 10),
    "cifar100": Facts({"train": 50_000, "test": 10_000}, (32, 32, 3), 100),
    "imagenet2012": Facts(
        {"train": 1_281_167, "validation": 50_000},
        (None, None, 3),
        1000,
        {"train": 147_897_477_120, "validation": 6_744_924_160},
    ),
}
