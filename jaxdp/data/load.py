"""Reads a data set into RAM: each node holds a part of a split, and each of its ranks reads a share of that part."""

from __future__ import annotations

import concurrent.futures
import dataclasses
import functools
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
from tqdm import tqdm

from jaxdp.data import memory
from jaxdp.data.decode import Decoder, check_file, fitted, image_of
from jaxdp.data.nodes import Group
from jaxdp.data.source import Source
from jaxdp.data.split import Split
from jaxdp.data.storage import BLOCK_BYTES, Encoded, Files, Pixels

if TYPE_CHECKING:
    from jaxdp.runtime.world import World

# Number of records that a thread reads at once.
_READ_AT_ONCE = 256
# Windows of rows in memory per rank: one handed out, one ready, one arriving, and the send buffers for that one.
_WINDOWS = 4


def read(
    source: Source,
    split: str,
    world: World,
    group: Group,
    *,
    decoder: Decoder | None = None,
    holdings: np.ndarray | None = None,
    bar: bool = False,
) -> Split:
    """Reads a split into RAM, each rank a share of its node's part; all ranks call it together.

    Args:
      source: data set that contains the split.
      split: name of the split.
      world: all ranks.
      group: ranks among which the split is divided.
      decoder: decoder for images that are stored encoded; None stores pixels.
      holdings: int64 [num_examples], example in each slot, see `Split`; None if slot i holds example i.
      bar: whether to show this rank's progress on stderr.

    Raises:
      SystemExit: a record cannot be read, or is not an image of the set's shape; one rank prints the message to stderr.
    """
    reading = _Reading(source, split, world, group, holdings, bar)
    return reading.pixels() if decoder is None else reading.encoded(decoder)


@dataclasses.dataclass(frozen=True)
class _Reading:
    source: Source
    split: str
    world: World
    group: Group
    holdings: np.ndarray | None
    bar: bool

    @functools.cached_property
    def _bounds(self) -> np.ndarray:
        return self.group.nodes.bounds(self.source.sizes[self.split])

    @property
    def _node(self) -> int:
        return int(self.group.nodes.of_rank[self.group.rank])

    @functools.cached_property
    def _mine(self) -> slice:
        return self.group.nodes.part_of(self.group.rank, self.source.sizes[self.split])

    def pixels(self) -> Split:
        count = int(np.diff(self._bounds)[self._node])
        shape = self.source.image_shape
        images_NHWC = self.world.shared_array((count, *shape), np.uint8)
        labels_N = self.world.shared_array((count,), np.int32)

        def fill(part: slice, records: list[dict[str, Any]]) -> None:
            for row, record in zip(range(part.start, part.stop), records, strict=True):
                image = record["image"]
                images_NHWC[row] = fitted(image_of(image), shape) if self.source.resized else image
                labels_N[row] = record["label"]

        with self.world.agree_or_exit():
            for _ in self._parts(self.source.records, fill):
                pass
        # agree_or_exit() has synchronised all ranks, so that each sees what the other ranks of its node have written.
        storage = Pixels(images_NHWC, self.world.threads)
        return Split(self._bounds, self._node, storage, labels_N, self._mine, self.holdings)

    def encoded(self, decoder: Decoder) -> Split:
        labels_N = self.world.shared_array((int(np.diff(self._bounds)[self._node]),), np.int32)
        files = Files()

        def take(part: slice, records: list[dict[str, Any]]) -> list[bytes]:
            for row, record in zip(range(part.start, part.stop), records, strict=True):
                check_file(record["image"])
                labels_N[row] = record["label"]
            return [record["image"] for record in records]

        assert self.source.files is not None, "only a source with files can be stored encoded"
        with self.world.agree_or_exit():
            for some in self._parts(self.source.files, take):
                files.add(some)
        of_ranks = self.world.allgather(np.array(files.lengths, np.int64))
        lengths = np.concatenate([of_ranks[self.group.ranks[rank]] for rank in self.group.nodes.by_node])
        here = slice(*self._bounds[self._node : self._node + 2])
        bounds = np.concatenate([[0], np.cumsum(lengths[here])])
        blocks = self.world.shared_array((int(bounds[-1]), BLOCK_BYTES), np.uint8)
        files.move_to(blocks[bounds[self._mine.start] : bounds[self._mine.stop]])
        self.world.barrier()
        pool = concurrent.futures.ThreadPoolExecutor(self.world.threads, "jaxdp-decode")
        storage = Encoded(blocks, bounds, decoder, pool, self.world.threads)
        return Split(self._bounds, self._node, storage, labels_N, self._mine, self.holdings, lengths)

    def _parts(self, records_of: Any, take: Any) -> Iterator[Any]:
        """Yields what `take` returns for this rank's records, in order and several at a time; threads call `take`."""
        try:
            records = records_of(self.split)
        except Exception as error:  # The libraries raise many kinds of exceptions on damaged files.
            raise self._unreadable(f"the split {self.split!r}", error) from error

        def of_part(part: slice) -> tuple[slice, Any]:
            slots = np.arange(part.start, part.stop) + self._bounds[self._node]
            examples = (slots if self.holdings is None else self.holdings[slots]).tolist()
            try:
                return part, take(part, records.__getitems__(examples))
            except Exception as error:  # As above.
                what = f"examples {min(examples)} to {max(examples)} of the split {self.split!r}"
                raise self._unreadable(what, error) from error

        mine = self._mine
        starts = range(mine.start, mine.stop, _READ_AT_ONCE)
        parts = [slice(start, min(start + _READ_AT_ONCE, mine.stop)) for start in starts]
        with (
            concurrent.futures.ThreadPoolExecutor(self.world.threads, "jaxdp-read") as pool,
            tqdm(total=mine.stop - mine.start, desc=f"read {self.split}", disable=not self.bar) as progress,
        ):
            for part, taken in pool.map(of_part, parts):
                self.world.activity.beat()
                yield taken
                progress.update(part.stop - part.start)

    def _unreadable(self, what: str, error: Exception) -> ValueError:
        return ValueError(
            f"cannot read {what} of {self.source.name} in {self.source.where}: {type(error).__name__}: {error}: "
            "prepare the data set again"
        )


def check_memory(
    source: Source,
    world: World,
    groups: dict[str, Group],
    *,
    encoded: bool = False,
    rows_ahead: int = 0,
) -> None:
    """Checks, before anything is read, that each node's part of the data fits into its free memory.

    Args:
      source: data set to be read.
      world: all ranks.
      groups: for each split, the ranks among which it is divided.
      encoded: whether images are stored encoded.
      rows_ahead: number of training examples that a rank receives in one exchange.

    Raises:
      SystemExit: the data does not fit; one rank prints the message to stderr.
    """
    needed = 0.0
    for split, group in groups.items():
        share = np.diff(group.nodes.bounds(source.sizes[split]))[group.nodes.of_rank[group.rank]]
        needed += float(share) * source.example_bytes(split, encoded=encoded)
    nodes = groups["train"].nodes
    crossing = rows_ahead * world.local_size * (nodes.count - 1) / nodes.count
    needed += _WINDOWS * crossing * source.example_bytes("train", encoded=encoded)
    free, where = memory.free_bytes(shared=world.local_size > 1)
    with world.agree_or_exit():
        if needed > free:
            remedies = ["start the job on more nodes"]
            if len(set(world.leaders)) > nodes.count:
                remedies.append("use fewer groups of nodes (config.data.groups)")
            if not encoded:
                remedies.append("store smaller images (config.data.stored_size)")
                remedies.append("store image files instead of pixels (config.data.storage 'encoded')")
            raise ValueError(
                f"{source.name} needs {needed / 2**30:.2f} GiB of memory on {world.host} (1 of {nodes.count} nodes "
                f"that share the data), but only {free / 2**30:.2f} GiB are free {where}: {', or '.join(remedies)}"
            )
