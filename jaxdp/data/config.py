"""Settings of the data set and of its way to the devices."""

from __future__ import annotations

import dataclasses
import math
from typing import Annotated

from jaxdp.settings.build import setting
from jaxdp.settings.rules import NOT_BELOW_0, Count, interval, one_of


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataConfig:
    """The data set, and how its images reach the devices.

    Attributes:
      name: a TFDS image classification set prepared as array_record; "digits"; "synthetic:TRAIN:TEST:SIZE:CLASSES" for
        noise; or `package.module:function` for your own data set, see `source.of_examples`.
      dir: the folder with the prepared sets; None uses the default of TFDS (TFDS_DATA_DIR, else ~/tensorflow_datasets).
      train_split, test_split: names of the splits for training and for evaluation.
      mean, std: mean and standard deviation used to normalise pixels in 0..1, as one value or one per channel.
      storage: how images are held in memory: as "pixels", or "encoded" as image files, which are decoded when a batch
        is built. With "encoded", "resized" crops are cut on the host from images of the original size.
      stored_size: height and width of images in memory, or once decoded: the shorter side is resized to it and the
        middle is cut out. None keeps the images as they are in the set; they must then all have the same size.
      image_size: height and width of the model's input; None keeps the stored size.
      crop: how training images are cropped: "none", "padded" or "resized", see `Augmentation`.
      crop_padding: margin of zeros around the image for "padded" crops, in pixels.
      crop_area: range of the area of "resized" crops, as a fraction of the image's area.
      crop_ratio: range of the aspect ratio of "resized" crops, width over height.
      flip: mirror half of the training images.
      augment: your own augmentation as `package.module:function`, applied to each training image after cropping and
        flipping, see `Augmentation`; None for none.
      shuffle: "global" permutes all examples every epoch; "partition" shuffles within partitions, see `Partitions`.
      partitions: number of partitions ("partition" only).
      exchange_every: epochs between exchanges of rows among the partitions ("partition" only).
      groups: number of groups that the nodes are divided into. Each group holds the full training split, and rows move
        within a group only.
      exchange_steps: number of steps whose rows are moved between nodes in one exchange.
      prefetch: number of batches that are moved to the devices ahead of the current step.
    """

    name: str
    dir: str | None = setting(None, may_change=True)
    train_split: str = "train"
    test_split: str = "test"
    mean: tuple[float, ...]
    std: tuple[float, ...]
    storage: Annotated[str, one_of("pixels", "encoded")] = "pixels"
    stored_size: Count | None = None
    image_size: Count | None = None
    crop: Annotated[str, one_of("none", "padded", "resized")] = "none"
    crop_padding: Annotated[int, NOT_BELOW_0] = 4
    crop_area: Annotated[tuple[float, ...], interval(1.0, "above 0 and up to 1")] = (0.08, 1.0)
    crop_ratio: Annotated[tuple[float, ...], interval(math.inf, "above 0")] = (3 / 4, 4 / 3)
    flip: bool = False
    augment: str | None = None
    shuffle: Annotated[str, one_of("global", "partition")] = "global"
    partitions: Count | None = None
    exchange_every: Count = 1
    groups: Count = setting(1, may_change=True)
    exchange_steps: Count = setting(16, may_change=True)
    prefetch: Count = setting(2, may_change=True)
