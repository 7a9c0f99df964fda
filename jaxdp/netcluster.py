"""Hosts of `launch/netcluster`, for what has to be tried over a network."""

from __future__ import annotations

import contextlib
import os
import pathlib
import shutil
import subprocess
from collections.abc import Iterator

PROGRAM = pathlib.Path("launch", "netcluster").absolute()


def why_not(*, by_hydra: bool = True) -> str | None:
    """Why no hosts can be made on this machine, or no ranks started on them; None if they can.

    Args:
      by_hydra: whether it is to start ranks, for which it needs MPICH's launcher.
    """
    if not PROGRAM.exists():
        return f"{PROGRAM} is not there: start in a checkout of jaxdp"
    if os.geteuid() != 0:
        return "network namespaces need root"
    for tool in ("ip", "tc", "unshare"):
        if shutil.which(tool) is None:
            return f"{tool} is not installed"
    if by_hydra and b"HYDRA" not in subprocess.run(["mpiexec", "--version"], capture_output=True, check=False).stdout:
        return "the MPI here is not an MPICH with hydra"
    made = subprocess.run(["ip", "netns", "add", "jaxdp-probe"], capture_output=True, text=True, check=False)
    if made.returncode:
        return f"no network namespace can be made: {made.stderr.strip()}"
    subprocess.run(["ip", "netns", "del", "jaxdp-probe"], check=True)
    if any(line.startswith("h0") for line in subprocess.check_output(["ip", "netns"], text=True).splitlines()):
        return "a netcluster is up already"
    return None


@contextlib.contextmanager
def hosts(count: int, rate: str = "500mbit") -> Iterator[None]:
    """Hosts h0, h1, ... as long as the context lasts.

    Args:
      count: how many.
      rate: of each link and direction, as launch/netcluster takes it.

    Raises:
      ValueError: it cannot make these.
    """
    made = subprocess.run([PROGRAM, "up", str(count), rate], capture_output=True, text=True, check=False)
    try:
        if made.returncode:
            raise ValueError(made.stderr.strip().removeprefix("launch/netcluster: error: "))
        yield
    finally:
        run("down")


def run(*words: str) -> str:
    """A command of launch/netcluster; what it printed.

    Raises:
      subprocess.CalledProcessError: it failed.
    """
    return subprocess.run([PROGRAM, *words], check=True, stdout=subprocess.PIPE, text=True).stdout
