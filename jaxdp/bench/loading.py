"""Compares the time to load a data set into RAM with the time to read its raw files."""

from __future__ import annotations

import concurrent.futures
import dataclasses
import os
import pathlib
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from jaxdp.data.source import Source
    from jaxdp.runtime.world import World

_AT_ONCE = 2**22


@dataclasses.dataclass(frozen=True)
class Loaded:
    """The result for one way of reading a split.

    Attributes:
      loader: "load pixels", "load files", or "raw read" for reading the files without parsing them.
      seconds: median time on the slowest rank.
      file_bytes: number of bytes in the files of the split, over all ranks.
    """

    loader: str
    seconds: float
    file_bytes: int


def measure(source: Source, split: str, world: World, *, repeat: int) -> list[Loaded]:
    """Times each way of reading a split in turn, dropping its files from the page cache before each read."""
    from jaxdp.data.decode import Decoder
    from jaxdp.data.load import read
    from jaxdp.data.nodes import Group

    group = Group.of(world, 1)
    paths = source.shards[split]
    num_bytes = sum(path.stat().st_size for path in paths)
    decoder = Decoder(source.image_shape)
    ways: dict[str, Callable[[], object]] = {
        "load pixels": lambda: read(source, split, world, group),
        "load files": lambda: read(source, split, world, group, decoder=decoder),
        "raw read": lambda: _raw(paths[world.rank :: world.size], world.threads),
    }
    timed: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(repeat):
        for name, way in ways.items():
            for path in paths:
                _forget(path)
            world.barrier()
            start = time.perf_counter()
            way()
            world.barrier()
            timed[name].append(time.perf_counter() - start)
    return [
        Loaded(name, float(np.median(np.max(world.allgather(seconds), axis=0))), num_bytes)
        for name, seconds in timed.items()
    ]


def _forget(path: pathlib.Path) -> None:
    with path.open("rb") as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def _raw(paths: Sequence[pathlib.Path], threads: int) -> None:
    with concurrent.futures.ThreadPoolExecutor(threads) as pool:
        for _ in pool.map(_read_whole, paths):
            pass


def _read_whole(path: pathlib.Path) -> None:
    into = bytearray(_AT_ONCE)
    with path.open("rb", buffering=0) as file:
        while file.readinto(into):
            pass
