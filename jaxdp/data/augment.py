"""Crops, flips and custom augmentation of images, on the device, inside the step.

Random numbers depend only on the seed, the epoch and the example, so an example looks the same for any number of ranks
and devices. Shape suffixes: B batch, H height, W width, C channels.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp

from jaxdp.data.config import DataConfig
from jaxdp.settings.user_objects import find

# Number of crops to draw; the first that fits into the image is used.
_TRIES = 10
# Folded into the key of an example. 0 and 1 are reserved for the two keys that crop and flip split off.
_OF_MODEL, _OWN = 2, 3


@dataclasses.dataclass(frozen=True)
class Augmentation:
    """Turns normalised images into the input of the model.

    Attributes:
      seed: seed of the run.
      image_size: height and width of the model's input; None uses the size of the stored images.
      crop: crop in training: "none" (the middle, as in evaluation), "padded" (a random position in the image with a
        margin of zeros; He et al. 2015, section 4.2) or "resized" (a part of random area and aspect ratio, resized;
        Szegedy et al. 2014, section 6).
      padding: margin of "padded" crops, in pixels.
      area: range of the area of "resized" crops, as a fraction of the image's area.
      ratio: range of the aspect ratio (width / height) of "resized" crops.
      flip: whether each image is mirrored left to right with probability 1/2 in training.
      user_function: custom augmentation, applied last in training; None for none. A function of a normalised image,
        float32 [H, W, C], and a random key that returns an image of the same shape and dtype; traced by JAX.
    """

    seed: int
    image_size: int | None
    crop: str
    padding: int
    area: tuple[float, ...]
    ratio: tuple[float, ...]
    flip: bool
    user_function: Callable[[jax.Array, jax.Array], jax.Array] | None = None

    @classmethod
    def of_config(cls, config: DataConfig, *, seed: int) -> Augmentation:
        """The augmentation that the settings of the data ask for.

        Raises:
          ValueError: the user's function cannot be found.
        """
        # With "resized", encoded images are cropped when they are decoded.
        crop = "none" if config.storage == "encoded" and config.crop == "resized" else config.crop
        return cls(
            seed=seed,
            image_size=config.image_size,
            crop=crop,
            padding=config.crop_padding,
            area=config.crop_area,
            ratio=config.crop_ratio,
            flip=config.flip,
            user_function=find("config.data.augment", config.augment) if config.augment is not None else None,
        )

    def shape(self, stored: tuple[int, ...]) -> tuple[int, ...]:
        """Shape (H, W, C) of the model's input for images of shape `stored`."""
        return stored if self.image_size is None else (self.image_size, self.image_size, stored[2])

    def test_view(self, image_BHWC: jax.Array) -> jax.Array:
        """Crops the middle of normalised images, as in evaluation."""
        height, width, _ = self.shape(image_BHWC.shape[1:])
        top, left = (image_BHWC.shape[1] - height) // 2, (image_BHWC.shape[2] - width) // 2
        return image_BHWC[:, top : top + height, left : left + width]

    def train_view(self, image_BHWC: jax.Array, id_B: jax.Array, epoch_B: jax.Array) -> jax.Array:
        """Applies the augmentation for training to normalised images.

        Args:
          image_BHWC: float32, normalised images.
          id_B: int32, ids of the examples.
          epoch_B: int32, epoch in which each example is seen.
        """
        if self.crop == "none" and not self.flip and self.user_function is None:
            return self.test_view(image_BHWC)
        size = self.shape(image_BHWC.shape[1:])[:2]

        def one(image_HWC: jax.Array, example: jax.Array, epoch: jax.Array) -> jax.Array:
            for_crop, for_flip = jax.random.split(self._key(example, epoch))
            if self.crop == "padded":
                image_HWC = _padded_crop(image_HWC, for_crop, size, self.padding)
            elif self.crop == "resized":
                image_HWC = _resized_crop(image_HWC, for_crop, size, self.area, self.ratio)
            else:
                image_HWC = self.test_view(image_HWC[None])[0]
            mirrored = self.flip & jax.random.bernoulli(for_flip)
            image_HWC = jnp.where(mirrored, image_HWC[:, ::-1], image_HWC)
            if self.user_function is None:
                return image_HWC
            return self.user_function(image_HWC, jax.random.fold_in(self._key(example, epoch), _OWN))

        return jax.vmap(one)(image_BHWC, id_B, epoch_B)

    def model_keys(self, id_B: jax.Array, epoch_B: jax.Array) -> jax.Array:
        """Random keys [B] for the model, e.g. for dropout; each depends only on the seed, the epoch and the example."""
        return jax.vmap(lambda *example: jax.random.fold_in(self._key(*example), _OF_MODEL))(id_B, epoch_B)

    def _key(self, example: jax.Array, epoch: jax.Array) -> jax.Array:
        return jax.random.fold_in(jax.random.fold_in(jax.random.key(self.seed), epoch), example)


NO_AUGMENTATION = Augmentation(
    seed=0, image_size=None, crop="none", padding=0, area=(1.0, 1.0), ratio=(1.0, 1.0), flip=False
)


def _padded_crop(image_HWC: jax.Array, key: jax.Array, size: tuple[int, ...], padding: int) -> jax.Array:
    margin_HWC = jnp.pad(image_HWC, ((padding, padding), (padding, padding), (0, 0)))
    room = jnp.array([margin_HWC.shape[0] - size[0], margin_HWC.shape[1] - size[1]])
    top, left = jax.random.randint(key, (2,), 0, room + 1)
    return jax.lax.dynamic_slice(margin_HWC, (top, left, 0), (*size, image_HWC.shape[2]))


def _resized_crop(
    image_HWC: jax.Array,
    key: jax.Array,
    size: tuple[int, ...],
    area: tuple[float, ...],
    ratio: tuple[float, ...],
) -> jax.Array:
    height, width, channels = image_HWC.shape
    for_area, for_ratio, for_place = jax.random.split(key, 3)
    uniform = functools.partial(jax.random.uniform, shape=(_TRIES,))
    pixels_T = height * width * uniform(for_area, minval=area[0], maxval=area[1])
    ratio_T = jnp.exp(uniform(for_ratio, minval=math.log(ratio[0]), maxval=math.log(ratio[1])))
    height_T, width_T = jnp.sqrt(pixels_T / ratio_T), jnp.sqrt(pixels_T * ratio_T)
    fits_T = (height_T <= height) & (width_T <= width)
    first, some = jnp.argmax(fits_T), jnp.any(fits_T)
    # If no crop fits, use the largest square.
    crop = jnp.where(some, jnp.stack([height_T[first], width_T[first]]), jnp.float32(min(height, width)))
    corner = jax.random.uniform(for_place, (2,)) * (jnp.array([height, width]) - crop)
    scale = jnp.array(size) / crop
    return jax.image.scale_and_translate(
        image_HWC, (*size, channels), (0, 1), scale, -corner * scale, method="linear", antialias=True
    )
