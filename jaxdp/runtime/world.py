"""Owns MPI: the ranks of a job, their communicators, and how the job ends."""

from __future__ import annotations

import atexit
import collections
import contextlib
import dataclasses
import errno
import os
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np
import numpy.typing

from jaxdp.runtime import gpus, launcher, process
from jaxdp.runtime.activity import Activity
from jaxdp.runtime.exit_codes import INTERNAL_ERROR, USER_ERROR

if TYPE_CHECKING:
    from mpi4py import MPI

# A message lists at most this many ranks.
_MOST_RANKS = 8

# Errors of a full disk and of an exceeded quota.
_FULL = (errno.ENOSPC, errno.EDQUOT)

# Time within which the launcher kills all ranks after an abort.
_KILLED_S = 10.0


class UserError(ValueError):
    """A user error on a single rank, at a point where ranks cannot agree on it collectively; aborts the job."""


class Failure(Exception):  # noqa: N818
    """A failure that is not the user's mistake, e.g. of a disk, a host or memory; aborts the job with one message."""


class AgreedExit(SystemExit):
    """An exit that all ranks have agreed on; any other exit of one rank would leave the other ranks waiting."""


@dataclasses.dataclass(frozen=True, eq=False)
class World:
    """The ranks of this job, as seen by this rank.

    Each user of MPI has its own communicator, a duplicate of MPI_COMM_WORLD, so that messages of different users never
    match.

    Attributes:
      rank, size: this rank and the number of ranks in MPI_COMM_WORLD.
      local_rank, local_size: this rank and the number of ranks on this host.
      leaders: for each rank, the first rank on its host.
      hosts: for each rank, the name of its host.
      library: name and version of the MPI library.
      gpus: GPUs of this host that this rank uses.
      threads: number of cores of this rank, at least 1; if ranks share cores, its share of them.
      activity: what this rank is doing at the moment, for the watchdog; the only part of a world that changes.
      host_comm: communicator for collectives and broadcasts of host memory.
      data_comm: communicator for rows of the data set, used by the data thread.
      device_comm: communicator of mpi4jax.
      native_comm: communicator of the native engine.
      control_comm: communicator for agreements between ranks while other communication is in flight.
      node_comm: communicator of the ranks of this host.
    """

    rank: int
    size: int
    local_rank: int
    local_size: int
    leaders: tuple[int, ...]
    hosts: tuple[str, ...]
    library: str
    gpus: gpus.Share
    threads: int
    activity: Activity
    host_comm: MPI.Intracomm
    data_comm: MPI.Intracomm
    device_comm: MPI.Intracomm
    native_comm: MPI.Intracomm
    control_comm: MPI.Intracomm
    node_comm: MPI.Intracomm

    @property
    def is_root(self) -> bool:
        return self.rank == 0

    @property
    def host(self) -> str:
        """Name of this rank's host."""
        return self.hosts[self.rank]

    @property
    def ranks_per_node(self) -> int | None:
        """L if rank r is on host r // L for all ranks; None if ranks are placed differently."""
        size = self.leaders.count(0)
        dealt_in_blocks = self.leaders == tuple(rank // size * size for rank in range(self.size))
        return size if dealt_in_blocks and self.size % size == 0 else None

    @contextlib.contextmanager
    def agree_or_exit(self) -> Iterator[None]:
        """Context of a block that all ranks run and that must succeed on all of them.

        The block must not contain collectives. A ValueError in the block is a user error: the lowest rank that raised
        one prints its message, and all ranks exit together.

        Raises:
          AgreedExit: the block raised a ValueError on some rank.
        """
        error = None
        try:
            yield
        except ValueError as mistake:
            error = str(mistake)
        errors = self.allgather(error)
        failed = [rank for rank, message in enumerate(errors) if message is not None]
        if not failed:
            return
        if self.rank == failed[0]:
            others = "" if len(failed) == self.size else f" (on {_ranks(failed)} of {self.size})"
            print(f"jaxdp: error: {error}{others}", file=sys.stderr, flush=True)
        raise AgreedExit(USER_ERROR)

    def require_equal(self, what: str, value: Any, remedy: str = "") -> None:
        """Ends the job with one message unless the value is the same on all ranks.

        Args:
          what: name of the value in the message.
          value: any picklable value; values are compared by their `str`.
          remedy: what the message tells the user to do.
        """
        difference = self.difference(value)
        with self.agree_or_exit():
            if difference is not None:
                raise ValueError(f"all ranks need the same {what}: {difference}" + (f": {remedy}" if remedy else ""))

    def difference(self, value: Any) -> str | None:
        """Describes which ranks have another value than most; None if all are equal. All ranks must call it."""
        values = [str(of_rank) for of_rank in self.allgather(value)]
        kinds = collections.Counter(values)
        if len(kinds) == 1:
            return None
        # In a tie, the value that comes first counts as the usual one.
        usual, count = kinds.most_common(1)[0]
        other = next(of_rank for of_rank in values if of_rank != usual)
        ranks = [rank for rank, of_rank in enumerate(values) if of_rank == other]
        verb = "has" if len(ranks) == 1 else "have"
        return f"{_ranks(ranks)} {verb} {other}, {count} of {self.size} {'has' if count == 1 else 'have'} {usual}"

    def bcast(self, value: Any) -> Any:
        """Returns rank 0's value on all ranks."""
        return self.host_comm.bcast(value)

    def bcast_arrays(self, arrays: list[np.ndarray]) -> list[np.ndarray]:
        """Overwrites these arrays with rank 0's; shapes and dtypes must be the same on all ranks."""
        for array in arrays:
            self.host_comm.Bcast(array.reshape(-1).view(np.uint8))
        return arrays

    def allgather(self, value: Any) -> list[Any]:
        """Returns the values of all ranks, in rank order, on all ranks."""
        return self.host_comm.allgather(value)

    def shared_array(self, shape: tuple[int, ...], dtype: np.typing.DTypeLike) -> np.ndarray:
        """Allocates an uninitialised array that the ranks of this host share; they must all call it together.

        The array is valid until MPI is finalised.
        """
        num_bytes = int(np.prod(shape)) * np.dtype(dtype).itemsize
        if self.local_size == 1 or num_bytes == 0:
            return np.empty(shape, dtype)
        from mpi4py import MPI

        window: Any = MPI.Win.Allocate_shared(num_bytes if self.local_rank == 0 else 0, 1, comm=self.node_comm)
        # If a window stays open, MPICH cannot close its network layer (libfabric), and a successful job fails at exit.
        atexit.register(window.Free)
        whole, _ = window.Shared_query(0)
        return np.frombuffer(whole, np.uint8)[:num_bytes].view(dtype).reshape(shape)

    def barrier(self) -> None:
        self.host_comm.Barrier()

    def abort(self, code: int) -> NoReturn:
        """Aborts all ranks immediately, because ranks that wait in MPI for this one would wait forever."""
        sys.stdout.flush()
        sys.stderr.flush()
        launcher.wait_until_read()
        from mpi4py import MPI

        # With any other communicator, MPICH sends a message to its ranks and exits this process. A race between
        # this message and the launcher, which kills the other ranks, would then decide the exit code of the job.
        everybody: Any = MPI.COMM_WORLD
        everybody.Abort(code)
        # MPICH has notified the launcher, which kills this process too. If the launcher saw this process exit first,
        # that exit would count instead.
        if self.size > 1:
            time.sleep(_KILLED_S)
        os._exit(code)


def connect() -> World:
    """Initialises MPI and returns this rank's view of the job.

    Afterwards an uncaught exception in any thread but the main one aborts the whole job; `run` does the same for the
    main thread.

    Raises:
      SystemExit: the launcher started another number of ranks than MPI sees, or MPI lacks MPI_THREAD_MULTIPLE; one
        rank prints a message to stderr.
    """
    process.keep_memory(arenas=launcher.cores())
    # Open MPI's UCX windows print warnings if no network supports them; jaxdp only uses windows in shared memory.
    os.environ.setdefault("OMPI_MCA_osc", "^ucx")
    from mpi4py import MPI

    _check_launcher(MPI)
    comm = MPI.COMM_WORLD
    local: Any = comm.Split_type(MPI.COMM_TYPE_SHARED)
    cores = local.allgather(os.sched_getaffinity(0))
    if local.rank == 0:
        launcher.unlink_mpich_shm()
    share = sum(1 / sum(core in others for others in cores) for core in os.sched_getaffinity(0))
    world = World(
        rank=comm.rank,
        size=comm.size,
        local_rank=local.rank,
        local_size=local.size,
        leaders=tuple(comm.allgather(local.bcast(comm.rank))),
        hosts=tuple(comm.allgather(socket.gethostname())),
        library=" ".join(MPI.Get_library_version().split("\n")[0].split(",")[0].replace("Version:", "").split()),
        gpus=gpus.share(local.allgather(gpus.visible()), local.rank),
        threads=max(1, int(share + 1e-9)),
        activity=Activity(),
        host_comm=comm.Dup(),
        data_comm=comm.Dup(),
        device_comm=comm.Dup(),
        native_comm=comm.Dup(),
        control_comm=comm.Dup(),
        node_comm=local,
    )
    with world.agree_or_exit():
        if MPI.Query_thread() < MPI.THREAD_MULTIPLE:
            raise ValueError(
                f"jaxdp needs MPI_THREAD_MULTIPLE, but {world.library} only provides thread level "
                f"{MPI.Query_thread()}: use a build of MPI with thread support"
            )
    threading.excepthook = lambda hook: _die(world, hook.exc_value)
    return world


def run(job: Callable[[World], None]) -> None:
    """Initialises MPI and runs a job; if any rank fails, aborts all ranks so that none is left waiting.

    Args:
      job: function that every rank runs.
    """
    world = connect()
    try:
        job(world)
    except AgreedExit:
        raise
    except BaseException as error:
        _die(world, error)


def _die(world: World, error: BaseException | None) -> NoReturn:
    if isinstance(error, KeyboardInterrupt):
        world.abort(128 + signal.SIGINT)
    where = f"rank {world.rank} of {world.size} on {world.host}"
    if isinstance(error, OSError) and error.errno in _FULL:
        error = Failure(f"a disk is full: {error}. Free some space and restart to resume from the last checkpoint")
    if isinstance(error, (UserError, Failure)):
        print(f"jaxdp: error: {error} ({where})", file=sys.stderr)
        world.abort(USER_ERROR if isinstance(error, UserError) else INTERNAL_ERROR)
    if error is not None:
        traceback.print_exception(error)
    print(f"jaxdp: error: {where} failed, aborting the job: {type(error).__name__}: {error}", file=sys.stderr)
    world.abort(INTERNAL_ERROR)


def _check_launcher(mpi: Any) -> None:
    info = launcher.launch_info()
    if info is None or info.size == mpi.COMM_WORLD.size:
        return
    if info.rank == 0:
        library = mpi.Get_library_version().split("\n")[0]
        print(
            f"jaxdp: error: the launcher started {info.size} ranks, but MPI sees {mpi.COMM_WORLD.size}: start the job "
            f"with the mpirun that belongs to this MPI ({library.strip()})",
            file=sys.stderr,
            flush=True,
        )
    sys.exit(USER_ERROR)


def _ranks(ranks: list[int]) -> str:
    if len(ranks) == 1:
        return f"rank {ranks[0]}"
    shown = ", ".join(map(str, ranks[:_MOST_RANKS]))
    return f"ranks {shown}" + (f" and {len(ranks) - _MOST_RANKS} more" if len(ranks) > _MOST_RANKS else "")
