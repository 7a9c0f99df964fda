"""The MPI launcher: reads its environment, removes its leftovers, and terminates it."""

from __future__ import annotations

import array
import contextlib
import fcntl
import os
import pathlib
import stat
import subprocess
import termios
import time
from collections.abc import Mapping
from typing import NamedTuple

# Variables in which each launcher passes the rank and the number of ranks. Slurm's come last, because other launchers
# inside a Slurm step inherit them.
_VARIABLES = (
    ("PMI_RANK", "PMI_SIZE"),
    ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE"),
    ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS"),
)
_LOCAL_SIZES = ("MPI_LOCALNRANKS", "OMPI_COMM_WORLD_LOCAL_SIZE")
_PROGRAMS = ("mpiexec", "mpirun", "mpiexec.hydra", "orterun", "prterun")
# Time the launcher needs to notice a dead rank and kill the rest. Open MPI needs longer: ranks that ignore its SIGTERM
# get SIGKILL some seconds later.
_GRACE_S, _OPEN_MPI_GRACE_S = 2.0, 10.0
# Time within which the launcher reads the output of a process.
_READ_S = 5.0


class LaunchInfo(NamedTuple):
    """Rank of a process and number of ranks in its job, according to the launcher."""

    rank: int
    size: int


def launch_info(environment: Mapping[str, str] = os.environ) -> LaunchInfo | None:
    """Returns the rank and the number of ranks, or None if no launcher reports one.

    Args:
      environment: the variables of the process.
    """
    for rank, size in _VARIABLES:
        if size in environment:
            return LaunchInfo(int(environment.get(rank, "0")), int(environment[size]))
    return None


def cores(environment: Mapping[str, str] = os.environ) -> int:
    """Returns the number of cores of this process, at least 1: those it is bound to, or else its share of the host's.

    Unlike `World.threads` it is available before MPI is initialised, but less accurate: too high if processes are bound
    to the same cores, or if no launcher reports the number of processes on the host.

    Args:
      environment: the variables of the process.
    """
    bound = len(os.sched_getaffinity(0))
    if bound < (os.cpu_count() or 1):
        return bound
    return max(1, bound // max((int(environment[name]) for name in _LOCAL_SIZES if name in environment), default=1))


def unlink_mpich_shm() -> None:
    """Unlinks MPICH's shared-memory files; call it once all ranks of the node have mapped them.

    MPICH only unlinks them in MPI_Finalize. The files of a killed job would use memory until the node reboots. A later
    job of the same name, e.g. one that Slurm has requeued, would take them for its own and fail in MPI_Init.
    """
    mapped = pathlib.Path("/proc/self/maps").read_text().split()
    for name in {word for word in mapped if word.startswith("/dev/shm/mpich_shm_")}:
        pathlib.Path(name).unlink(missing_ok=True)


def process(pid: int) -> int | None:
    """Returns the PID of the launcher that is an ancestor of a process; None if the launcher is not on this host."""
    while pid > 1:
        # The format is "PID (name) state parent ...", where the name may contain any character.
        name, _, rest = pathlib.Path("/proc", str(pid), "stat").read_text().partition("(")[2].rpartition(")")
        if name in _PROGRAMS:
            return pid
        pid = int(rest.split()[1])
    return None


def end(library: str) -> None:
    """Kills this process's launcher if it is on this host, after giving it time to exit by itself; does not wait.

    Args:
      library: name and version of the MPI library.

    Raises:
      OSError: the system hides other users' processes.
    """
    pid = process(os.getpid())
    if pid is None:
        return
    name = pathlib.Path("/proc", str(pid), "comm")
    grace = _OPEN_MPI_GRACE_S if library.startswith("Open MPI") else _GRACE_S
    command = 'sleep "$3"; if [ "$(cat "$1")" = "$2" ]; then kill -9 "$4"; fi'
    words = [str(name), name.read_text().strip(), str(grace), str(pid)]
    # If the child inherited the launcher's streams, their readers would not see end-of-file.
    nowhere = subprocess.DEVNULL
    subprocess.Popen(
        ["sh", "-c", command, "sh", *words], stdin=nowhere, stdout=nowhere, stderr=nowhere, start_new_session=True
    )


def wait_until_read() -> None:
    """Waits until the launcher has read this process's output, because an abort discards the rest."""
    deadline = time.monotonic() + _READ_S
    for number in (1, 2):
        # A closed stream has no output left to read.
        with contextlib.suppress(OSError):
            left = array.array("i", [1])
            while stat.S_ISFIFO(os.fstat(number).st_mode) and left[0] and time.monotonic() < deadline:
                fcntl.ioctl(number, termios.FIONREAD, left)
                time.sleep(0.001)
