"""Image files to pixels, on the host: for data that is held encoded."""

from __future__ import annotations

import dataclasses
import io
import math
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from PIL import Image

_MODES = {1: "L", 3: "RGB", 4: "RGBA"}

# Of Philox, beside those of the orders of epochs and of the arrangements of partitions.
_CROPS = 2**62
# Sizes of crops that are drawn until one fits into the image.
_TRIES = 10


@dataclasses.dataclass(frozen=True)
class RandomCrop:
    """A part of random area and aspect ratio (Szegedy et al. 2014, section 6), as `Augmentation` has it on devices.

    Attributes:
      seed: of the run.
      area: from where to where its part of the image's area goes.
      ratio: its width over its height, likewise.
    """

    seed: int
    area: tuple[float, ...]
    ratio: tuple[float, ...]

    def box(self, width: int, height: int, *, example: int, epoch: int) -> tuple[float, float, float, float]:
        """Left, top, right and bottom of the part of an image, in pixels; it depends on nothing else."""
        key = np.array([self.seed, _CROPS + (epoch << 32) + example], np.uint64)
        # Raw words: their stream is the one that NumPy guarantees.
        words = np.random.Philox(key=key).random_raw(2 + 2 * _TRIES)
        (for_left, for_top), *for_sizes = ((words >> np.uint64(11)) * 2.0**-53).reshape(-1, 2).tolist()
        # If none fits: the largest square.
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
    """What becomes of an image file.

    Attributes:
      shape: (H, W, C) of the pixels.
      crop: in training; None for the middle, the shorter side resized.
    """

    shape: tuple[int, ...]
    crop: RandomCrop | None = None

    def __call__(self, data: bytes | memoryview, *, example: int, epoch: int) -> np.ndarray:
        """uint8 [H, W, C]: of an image file, bytes behind whose end do not matter.

        Raises:
          OSError: it cannot be decoded.
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
    """Checks that an image file has the head of one; the rest of it is read only when it is decoded.

    Raises:
      OSError: it has not.
    """
    from PIL import Image

    with Image.open(io.BytesIO(data)):
        pass


def image_of(pixels_HWC: np.ndarray) -> Image.Image:
    """Pixels as Pillow has them."""
    from PIL import Image

    return Image.fromarray(pixels_HWC[..., 0] if pixels_HWC.shape[2] == 1 else pixels_HWC)


def fitted(image: Image.Image, shape: tuple[int, ...]) -> np.ndarray:
    """uint8 [H, W, C]: the middle of an image whose shorter side has been resized to the shape's (bicubic)."""
    from PIL import Image

    width, height = image.size
    scale = max(shape[0] / height, shape[1] / width)
    size = (max(shape[1], round(width * scale)), max(shape[0], round(height * scale)))
    if image.size != size:
        image = image.resize(size, Image.Resampling.BICUBIC)
    left, top = (size[0] - shape[1]) // 2, (size[1] - shape[0]) // 2
    return np.asarray(image.crop((left, top, left + shape[1], top + shape[0]))).reshape(shape)
