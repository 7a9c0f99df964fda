"""Measures how much memory is free for the data on this node."""

from __future__ import annotations

import os
import pathlib
from collections.abc import Iterator

_ROOT = pathlib.Path("/")
# For each version of cgroups: the folder below /sys/fs/cgroup, the files with the limit and the usage, and the entry of
# memory.stat for inactive file cache, which the usage includes.
_VERSION_1 = ("memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
_VERSION_2 = ("", "memory.max", "memory.current", "inactive_file")


def free_bytes(*, shared: bool, root: pathlib.Path = _ROOT) -> tuple[int, str]:
    """Number of bytes that the data may take, and where that limit comes from.

    Args:
      shared: whether several ranks share the data, which then lies in /dev/shm. Running out of space there causes
        a SIGBUS instead of an error.
      root: the folder that contains the kernel's proc, sys and dev.
    """
    meminfo = dict(line.split(":") for line in (root / "proc/meminfo").read_text().splitlines())
    limits = [(int(meminfo["MemAvailable"].split()[0]) * 1024, "in RAM")]
    limits += [(free, "in its control group") for free in _of_control_groups(root)]
    if shared and (folder := root / "dev/shm").is_dir():
        found = os.statvfs(folder)
        limits.append((found.f_bavail * found.f_frsize, f"in {folder}"))
    return min(limits)


def _of_control_groups(root: pathlib.Path) -> Iterator[int]:
    """Yields the number of bytes left in this process's control group and in each of its ancestors."""
    groups = root / "sys/fs/cgroup"
    # Lines are HIERARCHY:CONTROLLERS:PATH, without controllers for version 2 (cgroups(7)).
    for line in (root / "proc/self/cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers not in ("", "memory"):
            continue
        top, most, used, idle = _VERSION_1 if controllers else _VERSION_2
        inmost = groups / top / path.lstrip("/")
        for folder in (inmost, *inmost.parents):
            if (folder / most).exists() and (limit := (folder / most).read_text().strip()) != "max":
                # The kernel reclaims inactive file pages when memory runs short, so they count as free.
                files = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())[idle]
                yield int(limit) - int((folder / used).read_text()) + int(files)
            if folder == groups / top:
                break
