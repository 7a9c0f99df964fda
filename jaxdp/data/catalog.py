"""Data sets by their names in a config."""

from __future__ import annotations

from typing import TYPE_CHECKING

from jaxdp.data import synthetic
from jaxdp.data.source import Source
from jaxdp.data.tfds_source import open_tfds

if TYPE_CHECKING:
    from jaxdp.config import DataConfig


def open_source(config: DataConfig) -> Source:
    """Opens a TFDS image classification set, or makes one up.

    Raises:
      ValueError: there is no such set, or its images are not as the config needs them.
    """
    made_up = config.name.startswith(synthetic.PREFIX)
    if made_up:
        source = synthetic.open_synthetic(config.name)
    else:
        splits = {"train": config.train_split, "test": config.test_split}
        source = open_tfds(config.name, config.dir, splits, config.stored_size)
    if len(config.mean) not in (1, source.image_shape[2]):
        raise ValueError(
            f"config.data.mean and std have {len(config.mean)} values, the images of {config.name!r} have "
            f"{source.image_shape[2]} channels: give one value, or one a channel"
        )
    smaller_side = min(source.image_shape[:2])
    if config.image_size is not None and config.image_size > smaller_side:
        raise ValueError(
            f"config.data.image_size is {config.image_size}, but images are held as {source.image_shape}: set it to "
            f"{smaller_side} or less, or raise config.data.stored_size"
        )
    return source
