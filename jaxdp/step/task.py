"""The constants of a training step.

Shape suffixes: B batch, H height, W width, C channels.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxdp.config.schema import Config
from jaxdp.data.augment import NO_AUGMENTATION, Augmentation
from jaxdp.data.order import BatchSplit
from jaxdp.models.network import Network

PyTree = Any
BatchSum = Callable[[jax.Array], jax.Array]


@dataclasses.dataclass(frozen=True)
class Task:
    """Constants of the training step.

    Attributes:
      network: the model.
      mean, std: mean and standard deviation of pixels in 0..1, one value or one per channel.
      batch_size: size of the global batch, without padding.
      padded: whether the batch of any device contains padding.
      augmentation: turns normalised images into the input of the model.
      microbatches: number of equal parts of a device's batch, which are processed one after the other.
      label_smoothing: share of the target that is spread evenly over all classes.
      average_decay: decay of the running mean of the parameters; None to keep no running mean.
      batch_sums: called once per forward pass. It returns a function with which the layers, one after the other, sum
        arrays over all devices of all ranks, for batch statistics of the global batch. None for statistics per device.
      norms_every: interval, in steps, at which the norms of all arrays are computed; None disables them.
    """

    network: Network
    mean: tuple[float, ...]
    std: tuple[float, ...]
    batch_size: int
    padded: bool
    augmentation: Augmentation = NO_AUGMENTATION
    microbatches: int = 1
    label_smoothing: float = 0.0
    average_decay: float | None = None
    batch_sums: Callable[[], BatchSum] | None = None
    norms_every: int | None = None

    @classmethod
    def of_config(cls, config: Config, network: Network, batch_split: BatchSplit) -> Task:
        """The task that a config describes, with batch statistics per device.

        Raises:
          ValueError: the user's augmentation cannot be found.
        """
        return cls(
            network=network,
            mean=config.data.mean,
            std=config.data.std,
            batch_size=config.batch_size,
            padded=batch_split.padded,
            augmentation=Augmentation.of_config(config.data, seed=config.seed),
            microbatches=config.microbatches,
            label_smoothing=config.label_smoothing,
            average_decay=config.average_decay,
            norms_every=config.norms_every_steps,
        )

    def normalise(self, image_BHWC: jax.Array) -> jax.Array:
        """Scales uint8 pixels to float32 in 0..1, then normalises them by `mean` and `std`."""
        mean_C, std_C = (jnp.asarray(values, jnp.float32) for values in (self.mean, self.std))
        return (image_BHWC.astype(jnp.float32) / 255.0 - mean_C) / std_C
