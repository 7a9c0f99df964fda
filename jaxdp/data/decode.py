"""Decodes image files into pixels on the host, for data stored as "encoded"."""

from __future__ import annotations

import dataclasses
import io
import math
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from PIL import Image

_MODES = {1: "L", 3: "RGB", 4: "RGBA"}

# Philox keys of crops begin here, apart from those of the orders of epochs and of the holdings of partitions.
_CROPS = 2**62
# Number of crop sizes to draw; the first that fits into the image is used.
_TRIES = 10


@dataclasses.dataclass(frozen=True)
class RandomCrop:
    """A crop of random area and aspect ratio (Szegedy et al. 2014, section 6), as in `Augmentation` but on the host.

    Attributes:
      seed: seed of the run.
      area: range of the crop's area, as a fraction of the image's area.
      ratio: range of the crop's aspect ratio (width / height).
    """

    seed: int
    area: tuple[float, ...]
    ratio: tuple[float, ...]

    def box(self, width: int, height: int, *, example: int, epoch: int) -> tuple[float, float, float, float]:
        """Left, top, right and bottom of the crop, in pixels; they depend only on the attributes and the arguments."""
        key = np.array([self.seed, _CROPS + (epoch << 32) + example], np.uint64)
        # Use raw words, because NumPy guarantees their stream, but not the results of `Generator`.
        words = np.random.Philox(key=key).random_raw(2 + 2 * _TRIES)
        (for_left, for_top), *for_sizes = ((words >> np.uint64(11)) * 2.0**-53).reshape(-1, 2).tolist()
        # If no size fits, use the largest square.
        across = down = float(min(width, height))
        low, high = map(math.log, self.ratio)
        for for_area, for_ratio in for_sizes:
            pixels = width * height * (self.area[0] + for_area * (self.area[1] - self.area[0]))
            ratio = math.exp(low + for_ratio * (high - low))
            wide, tall = math.sqrt(pixels * ratio), math.sqrt(pixels / ratio)
            if wide <= width and tall <= height:
                across, down = wide, tall
                break
        left, top = for_left * (width - across), for_top * (height - down)
        return left, top, left + across, top + down


@dataclasses.dataclass(frozen=True)
class Decoder:
    """Decodes image files into pixels of one shape.

    Attributes:
      shape: shape (H, W, C) of the result.
      crop: random crop, for training; None resizes the shorter side and keeps the middle.
    """

    shape: tuple[int, ...]
    crop: RandomCrop | None = None

    def __call__(self, data: bytes | memoryview, *, example: int, epoch: int) -> np.ndarray:
        """Decodes an image file into uint8 [H, W, C]; bytes after the end of the file are ignored.

        Raises:
          OSError: the file cannot be decoded.
        """
        from PIL import Image

        with Image.open(io.BytesIO(data)) as file:
            image = file.convert(_MODES[self.shape[2]])
        if self.crop is None:
            return fitted(image, self.shape)
        box = self.crop.box(*image.size, example=example, epoch=epoch)
        cropped = image.resize((self.shape[1], self.shape[0]), Image.Resampling.BILINEAR, box=box)
        return np.asarray(cropped).reshape(self.shape)


def check_file(data: bytes) -> None:
    """Checks that a file begins with the header of an image; the rest is only checked when the image is decoded.

    Raises:
      OSError: the header is not that of an image.
    """
    from PIL import Image

    with Image.open(io.BytesIO(data)):
        pass


def image_of(pixels_HWC: np.ndarray) -> Image.Image:
    """Converts pixels to a Pillow image."""
    from PIL import Image

    return Image.fromarray(pixels_HWC[..., 0] if pixels_HWC.shape[2] == 1 else pixels_HWC)


def fitted(image: Image.Image, shape: tuple[int, ...]) -> np.ndarray:
    """Scales an image (bicubic) so that it just covers `shape`, and cuts out the middle: uint8 [H, W, C]."""
    from PIL import Image

    width, height = image.size
    scale = max(shape[0] / height, shape[1] / width)
    size = (max(shape[1], round(width * scale)), max(shape[0], round(height * scale)))
    if image.size != size:
        image = image.resize(size, Image.Resampling.BICUBIC)
    left, top = (size[0] - shape[1]) // 2, (size[1] - shape[0]) // 2
    return np.asarray(image.crop((left, top, left + shape[1], top + shape[0]))).reshape(shape)
