"""What has started this process: what it says of the job, what it leaves behind, and its end."""

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
from typing import NamedTuple

# What each launcher tells its processes: their rank and their number. In this order, as Slurm's variables are
# inherited by what runs inside its steps.
_VARIABLES = (
    ("PMI_RANK", "PMI_SIZE"),
    ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE"),
    ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS"),
)
_LOCAL_SIZES = ("MPI_LOCALNRANKS", "OMPI_COMM_WORLD_LOCAL_SIZE")
_PROGRAMS = ("mpiexec", "mpirun", "mpiexec.hydra", "orterun", "prterun")
# In which it notices that a rank has gone, and ends the others. Open MPI's takes longer: ranks that do not heed its
# SIGTERM get SIGKILL some seconds later.
_GRACE_S, _OPEN_MPI_GRACE_S = 2.0, 10.0
# In which it reads what a process has printed.
_READ_S = 5.0


class Place(NamedTuple):
    """Of a process in its job, as the launcher says."""

    rank: int
    size: int


def place() -> Place | None:
    """This process's; None where no launcher says any."""
    for rank, size in _VARIABLES:
        if size in os.environ:
            return Place(int(os.environ.get(rank, "0")), int(os.environ[size]))
    return None


def cores() -> int:
    """How many are this process's, 1 or more: those that it is bound to, or else its part of the host's.

    Known before MPI is open, and not as well as then: 1 where ranks share cores, too many where no launcher says how
    many processes there are on the host.
    """
    bound = len(os.sched_getaffinity(0))
    if bound < (os.cpu_count() or 1):
        return bound
    return max(1, bound // max((int(os.environ[name]) for name in _LOCAL_SIZES if name in os.environ), default=1))


def unname_segments() -> None:
    """Takes the names of MPICH's shared memory away, as soon as all ranks of the node have it.

    MPICH does that in MPI_Finalize alone. What a killed job leaves takes up memory until the node starts again; and a
    job of the same name takes it for its own and fails in MPI_Init, as one that Slurm has put back into the queue.
    """
    mapped = pathlib.Path("/proc/self/maps").read_text().split()
    for name in {word for word in mapped if word.startswith("/dev/shm/mpich_shm_")}:
        pathlib.Path(name).unlink(missing_ok=True)


def process(pid: int) -> int | None:
    """The launcher of this process, if it is on this host: an ancestor of it."""
    while pid > 1:
        # "PID (name) state parent ...", and a name may hold anything.
        name, _, rest = pathlib.Path("/proc", str(pid), "stat").read_text().partition("(")[2].rpartition(")")
        if name in _PROGRAMS:
            return pid
        pid = int(rest.split()[1])
    return None


def end(library: str) -> None:
    """Kills this process's launcher, if it is on this host, once it has had time to end by itself; does not wait.

    Args:
      library: the MPI's name and version.

    Raises:
      OSError: the system hides the processes of others.
    """
    pid = process(os.getpid())
    if pid is None:
        return
    name = pathlib.Path("/proc", str(pid), "comm")
    grace = _OPEN_MPI_GRACE_S if library.startswith("Open MPI") else _GRACE_S
    command = 'sleep "$3"; if [ "$(cat "$1")" = "$2" ]; then kill -9 "$4"; fi'
    words = [str(name), name.read_text().strip(), str(grace), str(pid)]
    # With streams of the launcher in a child's hands nobody would see the end of them.
    nowhere = subprocess.DEVNULL
    subprocess.Popen(
        ["sh", "-c", command, "sh", *words], stdin=nowhere, stdout=nowhere, stderr=nowhere, start_new_session=True
    )


def wait_until_read() -> None:
    """Until the launcher has what this process has printed, whose rest it drops when it is told of an abort."""
    deadline = time.monotonic() + _READ_S
    for number in (1, 2):
        # Who has closed them has nothing to be read.
        with contextlib.suppress(OSError):
            left = array.array("i", [1])
            while stat.S_ISFIFO(os.fstat(number).st_mode) and left[0] and time.monotonic() < deadline:
                fcntl.ioctl(number, termios.FIONREAD, left)
                time.sleep(0.001)
