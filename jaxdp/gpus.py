"""Which GPUs of a node each of its ranks takes."""

from __future__ import annotations

import os
import pathlib
from collections.abc import Sequence
from typing import NamedTuple

_DRIVER = pathlib.Path("/proc/driver/nvidia/gpus")


class Visible(NamedTuple):
    """The GPUs that a process may use.

    Attributes:
      names: as CUDA_VISIBLE_DEVICES holds them.
      assigned: whether somebody has chosen them for this process: the launcher, or the user.
    """

    names: tuple[str, ...]
    assigned: bool


class Share(NamedTuple):
    """The GPUs of one rank.

    Attributes:
      names: as CUDA_VISIBLE_DEVICES holds them; none on a node without.
      ranks: that use each of them.
    """

    names: tuple[str, ...]
    ranks: int = 1


def visible() -> Visible:
    """Those in CUDA_VISIBLE_DEVICES, or all that the driver knows."""
    names = os.environ.get("CUDA_VISIBLE_DEVICES")
    if names is not None:
        return Visible(tuple(filter(None, names.split(","))), assigned=True)
    return Visible(tuple(map(str, range(len(list(_DRIVER.glob("*")))))), assigned=False)


def share(of_ranks: Sequence[Visible], local_rank: int) -> Share:
    """What one rank of a node takes of the GPUs that it may use.

    Ranks that may use the same ones divide them; with fewer GPUs than ranks they take them in turn. One GPU that was
    assigned to a rank stays its own: where the launcher shows every rank only one, all of them have the same name.

    Args:
      of_ranks: what each rank of the node may use.
      local_rank: of which rank.
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
