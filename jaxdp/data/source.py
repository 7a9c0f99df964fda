"""A data set read into host arrays: what a node holds of a split, each of its ranks reading a part."""

from __future__ import annotations

import concurrent.futures
import dataclasses
import functools
import hashlib
import math
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from tqdm import tqdm

from jaxdp.data import memory
from jaxdp.data.nodes import Nodes

if TYPE_CHECKING:
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
      holdings: int64 [num_examples], the example in each slot, the rows of all nodes being the slots; None if it is
        that of its number.
    """

    bounds: np.ndarray
    node: int
    images_NHWC: np.ndarray
    labels_N: np.ndarray
    mine: slice
    holdings: np.ndarray | None = None

    @property
    def num_examples(self) -> int:
        """In the whole split."""
        return int(self.bounds[-1])

    @property
    def first(self) -> int:
        """The first slot on this node."""
        return int(self.bounds[self.node])

    @property
    def nbytes(self) -> int:
        """Of the node's part."""
        return self.images_NHWC.nbytes + self.labels_N.nbytes

    @functools.cached_property
    def _slots(self) -> np.ndarray | None:
        return None if self.holdings is None else np.argsort(self.holdings)

    def slots_of(self, examples: np.ndarray) -> np.ndarray:
        """int64 [...]: where these examples lie."""
        return examples if self._slots is None else self._slots[examples]

    def examples_at(self, rows: np.ndarray) -> np.ndarray:
        """int64 [...]: the examples in these rows of this node."""
        return rows + self.first if self.holdings is None else self.holdings[rows + self.first]

    def node_of(self, slots: np.ndarray) -> np.ndarray:
        """int64 [...]: the nodes with these slots."""
        return np.searchsorted(self.bounds, slots, side="right") - 1


@dataclasses.dataclass(frozen=True)
class Source:
    """A data set that can be read.

    Attributes:
      name: with its version.
      where: it is, for messages.
      sizes: examples of the splits "train" and "test".
      image_shape: (H, W, C), as images are held in RAM.
      num_classes: K.
      records: a split's name to what gives {"image": uint8 [H, W, C], "label"} for many examples at once, from any
        thread, by its method __getitems__.
      content: what the data is made of; it tells one version of it from another.
      resized: whether images are made to have that shape: the shorter side resized, the middle cut out.
    """

    name: str
    where: str
    sizes: Mapping[str, int]
    image_shape: tuple[int, int, int]
    num_classes: int
    records: Callable[[str], Any]
    content: str
    resized: bool = False

    @property
    def example_bytes(self) -> int:
        """Of one example in RAM."""
        return math.prod(self.image_shape) + np.dtype(np.int32).itemsize

    @property
    def fingerprint(self) -> str:
        """Of the data as it is held: name and version, number and sizes of examples, and the shape."""
        return f"{self.name} {hashlib.sha256(repr((self.content, self.image_shape)).encode()).hexdigest()[:8]}"

    def read(self, split: str, world: World, *, holdings: np.ndarray | None = None, bar: bool = False) -> Split:
        """Reads a split into RAM, each rank a part of what its node holds; all ranks call it together.

        Args:
          split: its name.
          world: all ranks.
          holdings: see Split.
          bar: whether to show this rank's progress, on standard error.

        Raises:
          SystemExit: a record cannot be read, or is not an image of the set's shape; one message on one rank's stderr.
        """
        nodes, num_examples = Nodes(world.leaders), self.sizes[split]
        bounds, node = nodes.bounds(num_examples), int(nodes.of_rank[world.rank])
        count = int(bounds[node + 1] - bounds[node])
        images_NHWC = world.shared_array((count, *self.image_shape), np.uint8)
        labels_N = world.shared_array((count,), np.int32)
        held = Split(bounds, node, images_NHWC, labels_N, nodes.part_of(world.rank, num_examples), holdings)
        with world.together():
            self._fill(held, split, threads=world.threads, bar=bar)
        # together() has met all ranks: what one has written, the others see.
        return held

    def _fill(self, held: Split, split: str, *, threads: int, bar: bool) -> None:
        try:
            records = self.records(split)
        except Exception as error:  # The libraries below raise whatever they like on a damaged file.
            raise self._unreadable(f"the split {split!r}", error) from error
        starts = range(held.mine.start, held.mine.stop, _READ_AT_ONCE)
        with (
            concurrent.futures.ThreadPoolExecutor(threads, "jaxdp-read") as pool,
            tqdm(total=len(range(held.num_examples)[held.mine]), desc=f"read {split}", disable=not bar) as progress,
        ):
            parts = [slice(start, min(start + _READ_AT_ONCE, held.mine.stop)) for start in starts]
            for part in pool.map(lambda part: self._fill_part(held, split, records, part), parts):
                progress.update(part.stop - part.start)

    def _fill_part(self, held: Split, split: str, records: Any, part: slice) -> slice:
        examples = held.examples_at(np.arange(part.start, part.stop)).tolist()
        try:
            for row, record in zip(range(part.start, part.stop), records.__getitems__(examples), strict=True):
                image = record["image"]
                held.images_NHWC[row] = _fitted(image, self.image_shape) if self.resized else image
                held.labels_N[row] = record["label"]
        except Exception as error:  # As above.
            what = f"examples {min(examples)} to {max(examples)} of the split {split!r}"
            raise self._unreadable(what, error) from error
        return part

    def _unreadable(self, what: str, error: Exception) -> ValueError:
        return ValueError(
            f"{what} of {self.name} in {self.where} cannot be read: {type(error).__name__}: {error}: prepare the data "
            "set anew"
        )


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
    nodes = Nodes(world.leaders)
    shares = (np.diff(nodes.bounds(size))[nodes.of_rank[world.rank]] for size in source.sizes.values())
    needed = int(sum(shares)) * source.example_bytes
    free, where = memory.free_bytes(shared=world.local_size > 1)
    with world.together():
        if needed > free:
            raise ValueError(
                f"{source.name} needs {needed / 2**30:.2f} GiB of memory on {world.host}, 1 of {nodes.count} nodes "
                f"that share it, which has {free / 2**30:.2f} GiB left {where}: start the job on more nodes, or store "
                "smaller images (config.data.stored_size)"
            )
