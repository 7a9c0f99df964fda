"""Opens data sets by their names in a config."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from jaxdp.data import synthetic
from jaxdp.data.source import Source
from jaxdp.data.tfds_source import open_tfds
from jaxdp.settings.user_objects import find

if TYPE_CHECKING:
    from jaxdp.data.config import DataConfig


# Names of TFDS sets: NAME, NAME:VERSION or NAME/CONFIG:VERSION.
_IS_TFDS = re.compile(r"[\w/]+(:[\d.*]+)?")


def open_source(config: DataConfig) -> Source:
    """Opens the data set of a config: a TFDS image classification set, a synthetic set, or a custom set.

    Raises:
      ValueError: the data set does not exist, or its images do not fit the config.
    """
    made_up = config.name.startswith(synthetic.PREFIX)
    if made_up:
        source = synthetic.open_synthetic(config.name)
    elif ":" in config.name and not _IS_TFDS.fullmatch(config.name):
        source = find("config.data.name", config.name)()
        if not isinstance(source, Source):
            raise ValueError(
                f"config.data.name is {config.name!r}, which returned {type(source).__name__} instead of a Source: it "
                "must return jaxdp.data.source.of_examples(...)"
            )
    else:
        splits = {"train": config.train_split, "test": config.test_split}
        source = open_tfds(config.name, config.dir, splits, config.stored_size)
    if config.storage == "encoded" and source.files is None:
        raise ValueError(
            f"config.data.storage 'encoded' needs image files, but {config.name!r} has none: set config.data.storage "
            "to 'pixels', or use a TFDS data set"
        )
    if len(config.mean) not in (1, source.image_shape[2]):
        raise ValueError(
            f"config.data.mean and std have {len(config.mean)} values, but the images of {config.name!r} have "
            f"{source.image_shape[2]} channels: give one value, or one per channel"
        )
    smaller_side = min(source.image_shape[:2])
    if config.image_size is not None and config.image_size > smaller_side:
        raise ValueError(
            f"config.data.image_size is {config.image_size}, but images are stored as {source.image_shape}: set it "
            f"to {smaller_side} or less, or increase config.data.stored_size"
        )
    return source
