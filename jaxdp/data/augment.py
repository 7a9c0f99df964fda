"""What a model sees of an image: crops and flips, on the device, inside the step.

Random numbers depend on the seed, the epoch and the example alone, so that an example looks the same whatever the
number of ranks and devices. Shape suffixes: B batch, H height, W width, C channels.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp

# Crops that are drawn until one lies inside the image.
_TRIES = 10
# Beyond the two keys that crop and flip split off.
_OF_MODEL, _OWN = 2, 3


@dataclasses.dataclass(frozen=True)
class Augmentation:
    """How normalised images become what the model sees.

    Attributes:
      seed: of the run.
      image_size: height and width of what the model sees; None for images as they are held.
      crop: in training "none" (the middle, as in evaluation), "padded" (anywhere in the image with a margin of zeros;
        He et al. 2015, section 4.2) or "resized" (a part of random area and aspect ratio, resized; Szegedy et al.
        2014, section 6).
      padding: the margin of "padded", in pixels.
      area, ratio: of "resized", from where to where its part of the image's area goes, and its width over its height.
      flip: mirror half of the images in training.
      own: what is done to each image after that, in training: a function of a normalised image, float32 [H, W, C], and
        a random key, which gives one like it; traced by JAX.
    """

    seed: int
    image_size: int | None
    crop: str
    padding: int
    area: tuple[float, ...]
    ratio: tuple[float, ...]
    flip: bool
    own: Callable[[jax.Array, jax.Array], jax.Array] | None = None

    def shape(self, stored: tuple[int, ...]) -> tuple[int, ...]:
        """(H, W, C) of what the model sees of images held in a shape."""
        return stored if self.image_size is None else (self.image_size, self.image_size, stored[2])

    def test_view(self, image_BHWC: jax.Array) -> jax.Array:
        """The middle of normalised images."""
        height, width, _ = self.shape(image_BHWC.shape[1:])
        top, left = (image_BHWC.shape[1] - height) // 2, (image_BHWC.shape[2] - width) // 2
        return image_BHWC[:, top : top + height, left : left + width]

    def train_view(self, image_BHWC: jax.Array, id_B: jax.Array, epoch_B: jax.Array) -> jax.Array:
        """Random crops and flips of normalised images.

        Args:
          image_BHWC: float32.
          id_B: int32, which examples they are.
          epoch_B: int32, in which epoch each one is seen.
        """
        if self.crop == "none" and not self.flip and self.own is None:
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
            if self.own is None:
                return image_HWC
            return self.own(image_HWC, jax.random.fold_in(self._key(example, epoch), _OWN))

        return jax.vmap(one)(image_BHWC, id_B, epoch_B)

    def model_keys(self, id_B: jax.Array, epoch_B: jax.Array) -> jax.Array:
        """Keys [B] for what the model draws itself, as dropout; they depend on nothing else either."""
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
    # If none fits: the largest square.
    crop = jnp.where(some, jnp.stack([height_T[first], width_T[first]]), jnp.float32(min(height, width)))
    corner = jax.random.uniform(for_place, (2,)) * (jnp.array([height, width]) - crop)
    scale = jnp.array(size) / crop
    return jax.image.scale_and_translate(
        image_HWC, (*size, channels), (0, 1), scale, -corner * scale, method="linear", antialias=True
    )
