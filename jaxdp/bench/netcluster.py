"""Simulated hosts of `launch/netcluster`, for tests and benchmarks that need a network."""

from __future__ import annotations

import contextlib
import os
import pathlib
import shutil
import subprocess
from collections.abc import Iterator

PROGRAM = pathlib.Path("launch", "netcluster").absolute()


def why_not(*, by_hydra: bool = True) -> str | None:
    """Returns why `launch/netcluster` cannot be used on this machine; None if it can.

    Args:
      by_hydra: whether `launch/netcluster` must also start ranks, which needs MPICH's launcher (Hydra).
    """
    if not PROGRAM.exists():
        return f"{PROGRAM} does not exist: start in a checkout of jaxdp"
    if os.geteuid() != 0:
        return "network namespaces need root"
    for tool in ("ip", "tc", "unshare"):
        if shutil.which(tool) is None:
            return f"{tool} is not installed"
    if by_hydra and b"HYDRA" not in subprocess.run(["mpiexec", "--version"], capture_output=True, check=False).stdout:
        return "mpiexec on the PATH is not MPICH's (Hydra)"
    made = subprocess.run(["ip", "netns", "add", "jaxdp-probe"], capture_output=True, text=True, check=False)
    if made.returncode:
        return f"cannot create a network namespace: {made.stderr.strip()}"
    subprocess.run(["ip", "netns", "del", "jaxdp-probe"], check=True)
    if any(line.startswith("h0") for line in subprocess.check_output(["ip", "netns"], text=True).splitlines()):
        return "a netcluster is already up: end it with launch/netcluster down"
    return None


@contextlib.contextmanager
def hosts(count: int, rate: str = "500mbit") -> Iterator[None]:
    """Context in which the simulated hosts h0, h1, ... exist.

    Args:
      count: number of hosts.
      rate: rate of each link in each direction, in the format of `launch/netcluster up`.

    Raises:
      ValueError: `launch/netcluster` cannot create these hosts.
    """
    made = subprocess.run([PROGRAM, "up", str(count), rate], capture_output=True, text=True, check=False)
    try:
        if made.returncode:
            raise ValueError(made.stderr.strip().removeprefix("launch/netcluster: error: "))
        yield
    finally:
        run("down")


def run(*words: str) -> str:
    """Runs a command of `launch/netcluster` and returns what it printed.

    Raises:
      subprocess.CalledProcessError: the command failed.
    """
    return subprocess.run([PROGRAM, *words], check=True, stdout=subprocess.PIPE, text=True).stdout
