"""What memory this node has free for the data."""

from __future__ import annotations

import os
import pathlib
from collections.abc import Iterator

_CGROUPS = pathlib.Path("/sys/fs/cgroup")
_OWN_CGROUP = pathlib.Path("/proc/self/cgroup")
# Their folder, and the names of the limit, of what is used, and of what of it are files that nobody uses.
_VERSION_1 = ("memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
_VERSION_2 = ("", "memory.max", "memory.current", "inactive_file")
_MEMINFO = pathlib.Path("/proc/meminfo")
_SHARED = pathlib.Path("/dev/shm")


def free_bytes(*, shared: bool) -> tuple[int, str]:
    """Bytes that the data may take, and where that limit comes from.

    Args:
      shared: whether several ranks share it: it lies in /dev/shm then, where too little is found out only by a SIGBUS.
    """
    meminfo = dict(line.split(":") for line in _MEMINFO.read_text().splitlines())
    limits = [(int(meminfo["MemAvailable"].split()[0]) * 1024, "in RAM")]
    limits += [(free, "in its control group") for free in _of_control_groups()]
    if shared and _SHARED.is_dir():
        found = os.statvfs(_SHARED)
        limits.append((found.f_bavail * found.f_frsize, f"in {_SHARED}"))
    return min(limits)


def _of_control_groups() -> Iterator[int]:
    """Bytes that this process's control group, and each one that holds it, still grants."""
    # HIERARCHY:CONTROLLERS:PATH, without controllers for version 2 (cgroups(7)).
    for line in _OWN_CGROUP.read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers not in ("", "memory"):
            continue
        top, most, used, idle = _VERSION_1 if controllers else _VERSION_2
        inmost = _CGROUPS / top / path.lstrip("/")
        for folder in (inmost, *inmost.parents):
            if (folder / most).exists() and (limit := (folder / most).read_text().strip()) != "max":
                # Pages of files that nobody uses are given up when there is need.
                files = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())[idle]
                yield int(limit) - int((folder / used).read_text()) + int(files)
            if folder == _CGROUPS / top:
                break
