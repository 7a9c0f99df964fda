"""Facts about data sets that a config may be explained with before they are there."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping


@dataclasses.dataclass(frozen=True)
class Facts:
    """What is known of a set without its files.

    Attributes:
      sizes: examples of each of its splits.
      image_shape: (H, W, C), with None where images differ.
      num_classes: K.
      file_bytes: of the image files of its splits; None where nobody would hold them encoded.
    """

    sizes: Mapping[str, int]
    image_shape: tuple[int | None, int | None, int]
    num_classes: int
    file_bytes: Mapping[str, int] | None = None


# The catalog of TFDS; for ImageNet the sizes of the archives that its authors give away.
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
