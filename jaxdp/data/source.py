"""TFDS to host arrays: each rank reads its share of a split."""

from __future__ import annotations

import concurrent.futures
import contextlib
import dataclasses
import hashlib
import io
import math
import pathlib
from typing import TYPE_CHECKING, Any

import numpy as np
from tqdm import tqdm

from jaxdp import compat
from jaxdp.data import memory
from jaxdp.data.nodes import Nodes

if TYPE_CHECKING:
    from jaxdp.config import DataConfig
    from jaxdp.world import World

# Records that a thread reads at once.
_READ_AT_ONCE = 256


@dataclasses.dataclass(frozen=True)
class Split:
    """What a node holds of a split, in RAM that its ranks share.

    Attributes:
      bounds: int64 [num_nodes + 1], node n holds the examples bounds[n]..bounds[n + 1].
      node: this one.
      images_NHWC: uint8, the node's part.
      labels_N: int32, the node's part.
      mine: the rows of it that this rank has read, and evaluates.
    """

    bounds: np.ndarray
    node: int
    images_NHWC: np.ndarray
    labels_N: np.ndarray
    mine: slice

    @property
    def num_examples(self) -> int:
        """In the whole split."""
        return int(self.bounds[-1])

    @property
    def first(self) -> int:
        """The first example on this node."""
        return int(self.bounds[self.node])

    @property
    def nbytes(self) -> int:
        """Of the node's part."""
        return self.images_NHWC.nbytes + self.labels_N.nbytes

    def holder_of(self, examples: np.ndarray) -> np.ndarray:
        """int64 [...]: the nodes that hold these examples."""
        return np.searchsorted(self.bounds, examples, side="right") - 1


@dataclasses.dataclass(frozen=True)
class Source:
    """A prepared data set.

    Attributes:
      name: with its version.
      builder: of TFDS.
      image_shape: (H, W, C), as images are held in RAM.
      num_classes: K.
      resized: whether images are made to have that shape: the shorter side resized, the middle cut out.
    """

    name: str
    builder: Any
    image_shape: tuple[int, int, int]
    num_classes: int
    resized: bool = False

    def num_examples(self, split: str) -> int:
        return self.builder.info.splits[split].num_examples

    def nbytes(self, split: str) -> int:
        """Of a whole split in RAM."""
        return self.num_examples(split) * (math.prod(self.image_shape) + np.dtype(np.int32).itemsize)

    @property
    def fingerprint(self) -> str:
        """Of the files as they were prepared: name, version, and the number and sizes of examples in each shard."""
        splits = self.builder.info.splits
        lengths = [(name, splits[name].shard_lengths, splits[name].num_bytes) for name in sorted(splits)]
        return f"{self.name} {hashlib.sha256(repr((lengths, self.image_shape)).encode()).hexdigest()[:8]}"

    def read(self, split: str, world: World, *, bar: bool = False) -> Split:
        """Reads a split into RAM, each rank a part of what its node holds; all ranks call it together.

        Args:
          split: its name.
          world: all ranks.
          bar: whether to show this rank's progress, on standard error.

        Raises:
          SystemExit: a record cannot be read, or is not an image of the set's shape; one message on one rank's stderr.
        """
        nodes, num_examples = Nodes.of(world.leaders), self.num_examples(split)
        bounds, node = nodes.bounds(num_examples), int(nodes.of_rank[world.rank])
        count = int(bounds[node + 1] - bounds[node])
        images_NHWC = world.shared_array((count, *self.image_shape), np.uint8)
        labels_N = world.shared_array((count,), np.int32)
        held = Split(bounds, node, images_NHWC, labels_N, nodes.part_of(world.rank, num_examples))
        with world.together():
            self._fill(held, split, threads=world.threads, bar=bar)
        # together() has met all ranks: what one has written, the others see.
        return held

    def _fill(self, held: Split, split: str, *, threads: int, bar: bool) -> None:
        starts = range(held.mine.start, held.mine.stop, _READ_AT_ONCE)
        with (
            concurrent.futures.ThreadPoolExecutor(threads, "jaxdp-read") as pool,
            tqdm(total=len(range(held.num_examples)[held.mine]), desc=f"read {split}", disable=not bar) as progress,
        ):
            parts = [slice(start, min(start + _READ_AT_ONCE, held.mine.stop)) for start in starts]
            for part in pool.map(lambda part: self._fill_part(held, split, part), parts):
                progress.update(part.stop - part.start)

    def _fill_part(self, held: Split, split: str, part: slice) -> slice:
        examples = range(held.first + part.start, held.first + part.stop)
        try:
            for row, record in zip(
                range(part.start, part.stop), self._records(split).__getitems__(examples), strict=True
            ):
                image = record["image"]
                held.images_NHWC[row] = _fitted(image, self.image_shape) if self.resized else image
                held.labels_N[row] = record["label"]
        except Exception as error:  # The libraries below raise whatever they like on a damaged file.
            raise ValueError(
                f"examples {examples[0]} to {examples[-1]} of the split {split!r} of {self.name} in "
                f"{self.builder.data_path} cannot be read: {type(error).__name__}: {error}: prepare the data set anew"
            ) from error
        return part

    def _records(self, split: str) -> Any:
        return self.builder.as_data_source(split=split)


def _fitted(image_HWC: np.ndarray, shape: tuple[int, int, int]) -> np.ndarray:
    """The middle of an image whose shorter side has been resized to that of the shape (bicubic, antialiased)."""
    from PIL import Image

    height, width, channels = image_HWC.shape
    scale = max(shape[0] / height, shape[1] / width)
    size = (max(shape[1], round(width * scale)), max(shape[0], round(height * scale)))
    image = Image.fromarray(image_HWC[..., 0] if channels == 1 else image_HWC).resize(size, Image.Resampling.BICUBIC)
    left, top = (size[0] - shape[1]) // 2, (size[1] - shape[0]) // 2
    return np.asarray(image.crop((left, top, left + shape[1], top + shape[0]))).reshape(shape)


def check_memory(source: Source, world: World) -> None:
    """Checks, before anything is read, that what each node is to hold fits into its free memory.

    Raises:
      SystemExit: it does not; one message on one rank's stderr.
    """
    nodes = Nodes.of(world.leaders)
    needed = 0
    for split in ("train", "test"):
        bounds = nodes.bounds(source.num_examples(split))
        share = (bounds[1:] - bounds[:-1])[nodes.of_rank[world.rank]]
        needed += int(share) * source.nbytes(split) // max(1, source.num_examples(split))
    free, where = memory.free_bytes(shared=world.local_size > 1)
    with world.together():
        if needed > free:
            raise ValueError(
                f"{source.name} needs {needed / 2**30:.2f} GiB of memory on {world.host}, 1 of {nodes.count} nodes "
                f"that share it, which has {free / 2**30:.2f} GiB left {where}: start the job on more nodes, or store "
                "smaller images (config.data.stored_size)"
            )


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
    size = config.stored_size
    if len(shape) != 3 or shape[2] is None or dtype != np.uint8:
        raise ValueError(f"jaxdp needs uint8 images [H, W, C], those of {config.name!r} are {dtype} of {shape}")
    if None in shape and size is None:
        raise ValueError(
            f"the images of {config.name!r} have many sizes, {shape}: set config.data.stored_size to the height and "
            "width with which to hold them in memory"
        )
    stored = shape if size is None else (size, size, shape[2])
    if config.image_size is not None and config.image_size > min(stored[:2]):
        raise ValueError(
            f"config.data.image_size is {config.image_size}, but images are held as {stored}: set it to "
            f"{min(stored[:2])} or less, or raise config.data.stored_size"
        )
    if len(config.mean) not in (1, shape[2]):
        raise ValueError(
            f"config.data.mean and std have {len(config.mean)} values, the images of {config.name!r} have {shape[2]} "
            "channels: give one value, or one a channel"
        )
    return Source(builder.info.full_name, builder, stored, features["label"].num_classes, resized=stored != shape)


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
