"""TFDS to host arrays: each rank reads its share of a split."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import pathlib
from typing import TYPE_CHECKING, Any

import numpy as np

from jaxdp import compat
from jaxdp.data.order import even_bounds

if TYPE_CHECKING:
    from jaxdp.config import DataConfig
    from jaxdp.world import World

_READ_AT_ONCE = 1024


@dataclasses.dataclass(frozen=True)
class Split:
    """One rank's share of a split, resident in RAM.

    Attributes:
      bounds: int64 [num_ranks + 1], rank r holds the examples bounds[r]..bounds[r + 1].
      images_NHWC: uint8, the share.
      labels_N: int32, the share.
    """

    bounds: np.ndarray
    images_NHWC: np.ndarray
    labels_N: np.ndarray

    @property
    def num_examples(self) -> int:
        """In the whole split."""
        return int(self.bounds[-1])

    @property
    def nbytes(self) -> int:
        """Of this rank's share."""
        return self.images_NHWC.nbytes + self.labels_N.nbytes


@dataclasses.dataclass(frozen=True)
class Source:
    """A prepared data set.

    Attributes:
      name: with its version.
      builder: of TFDS.
      image_shape: (H, W, C).
      num_classes: K.
    """

    name: str
    builder: Any
    image_shape: tuple[int, int, int]
    num_classes: int

    def num_examples(self, split: str) -> int:
        return self.builder.info.splits[split].num_examples

    def read(self, split: str, *, rank: int, num_ranks: int) -> Split:
        """Reads one rank's share of a split into RAM, and nothing else of it.

        Raises:
          ValueError: a record cannot be read, or is not an image of the set's shape.
        """
        bounds = even_bounds(self.num_examples(split), num_ranks)
        first, end = int(bounds[rank]), int(bounds[rank + 1])
        images_NHWC = np.empty((end - first, *self.image_shape), np.uint8)
        labels_N = np.empty(end - first, np.int32)
        try:
            records = self.builder.as_data_source(split=split)
            for start in range(first, end, _READ_AT_ONCE):
                stop = min(start + _READ_AT_ONCE, end)
                for index, record in zip(range(start, stop), records.__getitems__(range(start, stop)), strict=True):
                    images_NHWC[index - first] = record["image"]
                    labels_N[index - first] = record["label"]
        except Exception as error:  # The libraries below raise whatever they like on a damaged file.
            raise ValueError(
                f"examples {first} to {end - 1} of the split {split!r} of {self.name} in {self.builder.data_path} "
                f"cannot be read: {type(error).__name__}: {error}: prepare the data set anew"
            ) from error
        return Split(bounds, images_NHWC, labels_N)


def prepare_digits(config: DataConfig, world: World) -> None:
    """Writes the embedded data set to the data folder where it is not there yet.

    Rank 0 first; then the first rank of each host, for the case that hosts do not share the folder.
    """
    if config.name != "digits":
        return
    for writes in (world.is_root, world.local_rank == 0):
        with world.together():
            if writes:
                _write_digits(config)


def open_source(config: DataConfig) -> Source:
    """Opens a TFDS image classification set that is prepared in array_record format.

    Raises:
      ValueError: there is no such set, it is not prepared as array_record, or it does not hold images of one
        shape with a label; says how to prepare it.
    """
    tfds = compat.import_tfds()

    folder = pathlib.Path(config.dir or tfds.core.constants.DATA_DIR).expanduser()
    remedy = (
        f"prepare it with tfds.builder({config.name!r}, data_dir={str(folder)!r}, file_format='array_record')"
        ".download_and_prepare(), or set config.data.dir to where it is"
    )
    if not _is_prepared(folder, config.name):
        raise ValueError(f"there is no data set {config.name!r} in {folder}: {remedy}")
    try:
        builder = _digits(folder) if config.name == "digits" else tfds.builder(config.name, data_dir=folder)
        file_format = builder.info.file_format
    except Exception as error:  # TFDS raises many kinds, on names, versions and damaged metadata.
        raise ValueError(f"the data set {config.name!r} in {folder} cannot be opened: {error}: {remedy}") from error
    if file_format is not tfds.core.FileFormat.ARRAY_RECORD:
        stored = file_format.value if file_format else "none"
        raise ValueError(
            f"jaxdp reads data sets in array_record format, {config.name!r} in {folder} is in {stored}: {remedy}"
        )
    features = builder.info.features
    if not {"image", "label"} <= set(features) or not isinstance(features["label"], tfds.features.ClassLabel):
        raise ValueError(
            f"jaxdp trains on data sets with the features 'image' and 'label', {config.name!r} has "
            f"{', '.join(sorted(features))}: choose another one"
        )
    for split in ("train", "test"):
        if split not in builder.info.splits:
            raise ValueError(
                f"jaxdp trains on the split 'train' and evaluates on 'test', {config.name!r} has "
                f"{', '.join(builder.info.splits)}: prepare it with both"
            )
    shape = features["image"].shape
    dtype = np.dtype(features["image"].np_dtype)
    if len(shape) != 3 or None in shape or dtype != np.uint8:
        raise ValueError(
            f"jaxdp needs uint8 images of one shape, those of {config.name!r} are {dtype} "
            f"of {shape}: resize them when you prepare the set"
        )
    if len(config.mean) not in (1, shape[2]):
        raise ValueError(
            f"config.data.mean and std have {len(config.mean)} values, the images of {config.name!r} have {shape[2]} "
            "channels: give one value, or one a channel"
        )
    return Source(builder.info.full_name, builder, shape, features["label"].num_classes)


def _digits(folder: pathlib.Path) -> Any:
    from jaxdp.data.digits import Digits

    return Digits(data_dir=folder, file_format="array_record")


def _write_digits(config: DataConfig) -> None:
    tfds = compat.import_tfds()

    folder = pathlib.Path(config.dir or tfds.core.constants.DATA_DIR).expanduser()
    if _is_prepared(folder, "digits"):
        return
    try:
        # TFDS tells of a download, which this is not.
        with contextlib.redirect_stdout(io.StringIO()):
            _digits(folder).download_and_prepare()
    except OSError as error:
        if _is_prepared(folder, "digits"):  # Another job was quicker.
            return
        raise ValueError(
            f"the data set 'digits' cannot be written to {folder}: {error}: set config.data.dir to a folder of yours"
        ) from error


def _is_prepared(folder: pathlib.Path, name: str) -> bool:
    # TFDS writes into a folder of another name and renames it when it is complete.
    found = (folder / name.split(":")[0]).rglob("dataset_info.json")
    return any(".incomplete" not in path.parent.name for path in found)
