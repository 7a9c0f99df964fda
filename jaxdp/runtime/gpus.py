"""Divides the GPUs of a node among its ranks."""

from __future__ import annotations

import os
import pathlib
from collections.abc import Sequence
from typing import NamedTuple

_DRIVER = pathlib.Path("/proc/driver/nvidia/gpus")


class Visible(NamedTuple):
    """The GPUs that a process may use.

    Attributes:
      names: names of the GPUs, as in CUDA_VISIBLE_DEVICES.
      assigned: whether the launcher or the user has selected these GPUs for this process.
    """

    names: tuple[str, ...]
    assigned: bool


class Share(NamedTuple):
    """The GPUs of one rank.

    Attributes:
      names: names of the GPUs, as in CUDA_VISIBLE_DEVICES; empty on a node without GPUs.
      ranks: number of ranks that share each of these GPUs.
    """

    names: tuple[str, ...]
    ranks: int = 1


def visible(driver: pathlib.Path = _DRIVER) -> Visible:
    """Returns the GPUs in CUDA_VISIBLE_DEVICES, or all GPUs that the NVIDIA driver lists.

    Args:
      driver: the folder with one entry per GPU of this machine.
    """
    names = os.environ.get("CUDA_VISIBLE_DEVICES")
    if names is not None:
        return Visible(tuple(filter(None, names.split(","))), assigned=True)
    return Visible(tuple(map(str, range(len(list(driver.glob("*")))))), assigned=False)


def share(of_ranks: Sequence[Visible], local_rank: int) -> Share:
    """Returns the GPUs that one rank of a node uses.

    Ranks that may use the same GPUs divide them; if there are fewer GPUs than ranks, the ranks share GPUs round-robin.
    A rank that was assigned a single GPU keeps it: a launcher that shows each rank one GPU may use the same name for
    different GPUs.

    Args:
      of_ranks: for each rank of the node, the GPUs that it may use.
      local_rank: index of the rank on its node.
    """
    mine = of_ranks[local_rank]
    if not mine.names or (mine.assigned and len(mine.names) == 1):
        return Share(mine.names)
    alike = [rank for rank, other in enumerate(of_ranks) if other == mine]
    count, index = len(mine.names), alike.index(local_rank)
    if count >= len(alike):
        return Share(mine.names[index * count // len(alike) : (index + 1) * count // len(alike)])
    taken = index % count
    return Share((mine.names[taken],), len(range(taken, len(alike), count)))
