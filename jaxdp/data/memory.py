"""What memory this node has free for the data."""

from __future__ import annotations

import os
import pathlib

_CGROUP = pathlib.Path("/sys/fs/cgroup")
_MEMINFO = pathlib.Path("/proc/meminfo")
_SHARED = pathlib.Path("/dev/shm")


def free_bytes(*, shared: bool) -> tuple[int, str]:
    """Bytes that the data may take, and where that limit comes from.

    Args:
      shared: whether several ranks share it: it lies in /dev/shm then, where too little is found out only by a SIGBUS.
    """
    meminfo = dict(line.split(":") for line in _MEMINFO.read_text().splitlines())
    limits = [(int(meminfo["MemAvailable"].split()[0]) * 1024, "in RAM")]
    of_group = [_CGROUP / name for name in ("memory.max", "memory.current")]
    if all(path.exists() for path in of_group):
        most, used = (path.read_text().strip() for path in of_group)
        if most != "max":
            limits.append((int(most) - int(used), "in its control group"))
    if shared and _SHARED.is_dir():
        found = os.statvfs(_SHARED)
        limits.append((found.f_bavail * found.f_frsize, f"in {_SHARED}"))
    return min(limits)
