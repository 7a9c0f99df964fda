"""Ranks, their communicators and their end: the one owner of MPI."""

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

from jaxdp import compat, gpus, launcher

if TYPE_CHECKING:
    from mpi4py import MPI

# Ranks that a message names one by one.
_MOST_RANKS = 8

# What the system says of a disk without room, or of a user without a right to more.
_FULL = (errno.ENOSPC, errno.EDQUOT)

# In which a launcher ends all ranks when it was told of an abort.
_KILLED_S = 10.0

USER_ERROR = 2
INTERNAL_ERROR = 1


class UserError(ValueError):
    """A user's mistake that one rank alone may meet, and when it comes the others cannot be asked: the job ends."""


class Failure(Exception):  # noqa: N818
    """Something outside of this program has failed: a disk, a host, memory. One message tells it, and the job ends."""


class AgreedExit(SystemExit):
    """The end of the job on which all ranks have agreed; any other exit of one rank would leave the rest waiting."""


@dataclasses.dataclass(frozen=True, eq=False)
class World:
    """The ranks of this job, as this one sees them.

    Each user of MPI has a communicator to itself, so that no message of one can meet that of another: the host's
    collectives and broadcasts, the rows of the data on their thread, mpi4jax, the native engine, and what ranks tell
    one another while all of that is under way.

    Attributes:
      rank, size: of MPI_COMM_WORLD.
      local_rank, local_size: among the ranks of this host.
      leaders: for each rank the first rank on its host.
      hosts: names of the hosts of all ranks.
      library: name and version of the MPI library.
      gpus: those of this host that are this rank's.
      threads: cores that are this rank's, 1 or more; where ranks share cores, its part of them.
      host_comm, data_comm, device_comm, native_comm, control_comm: clones of MPI_COMM_WORLD.
      node_comm: the ranks of this host.
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
        """The name of this rank's."""
        return self.hosts[self.rank]

    @property
    def ranks_per_node(self) -> int | None:
        """L if rank r is on host r // L for all ranks; None if they are dealt out in another way."""
        size = self.leaders.count(0)
        dealt_in_blocks = self.leaders == tuple(rank // size * size for rank in range(self.size))
        return size if dealt_in_blocks and self.size % size == 0 else None

    @contextlib.contextmanager
    def together(self) -> Iterator[None]:
        """A block that all ranks run, without collectives in it, and that all must pass.

        A ValueError is a user's mistake: if it comes on any rank, the first that has one prints it, and all
        ranks exit together.
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
        """Ends the job with one message unless all ranks have the same value.

        Args:
          what: the value's name in the message.
          value: anything picklable that compares and can be told.
          remedy: what to do about it.
        """
        difference = self.difference(value)
        with self.together():
            if difference is not None:
                raise ValueError(f"all ranks need the same {what}: {difference}" + (f": {remedy}" if remedy else ""))

    def difference(self, value: Any) -> str | None:
        """Which ranks have another value than most, in words; None if all have the same. All ranks call it."""
        values = [str(of_rank) for of_rank in self.allgather(value)]
        kinds = collections.Counter(values)
        if len(kinds) == 1:
            return None
        # Of several that are as common as one another, the one that comes first.
        usual, count = kinds.most_common(1)[0]
        other = next(of_rank for of_rank in values if of_rank != usual)
        ranks = [rank for rank, of_rank in enumerate(values) if of_rank == other]
        verb = "has" if len(ranks) == 1 else "have"
        return f"{_ranks(ranks)} {verb} {other}, {count} of {self.size} {'has' if count == 1 else 'have'} {usual}"

    def bcast(self, value: Any) -> Any:
        """Rank 0's value, on all ranks."""
        return self.host_comm.bcast(value)

    def bcast_arrays(self, arrays: list[np.ndarray]) -> list[np.ndarray]:
        """Overwrites these arrays, of the same shapes and dtypes on all ranks, with rank 0's."""
        for array in arrays:
            self.host_comm.Bcast(array.reshape(-1).view(np.uint8))
        return arrays

    def allgather(self, value: Any) -> list[Any]:
        """The values of all ranks, in their order, on all ranks."""
        return self.host_comm.allgather(value)

    def shared_array(self, shape: tuple[int, ...], dtype: np.typing.DTypeLike) -> np.ndarray:
        """An array that the ranks of this host share, its contents undefined; all of them call it together.

        It lives as long as MPI.
        """
        num_bytes = int(np.prod(shape)) * np.dtype(dtype).itemsize
        if self.local_size == 1 or num_bytes == 0:
            return np.empty(shape, dtype)
        from mpi4py import MPI

        window: Any = MPI.Win.Allocate_shared(num_bytes if self.local_rank == 0 else 0, 1, comm=self.node_comm)
        # With a window left over MPICH cannot close its network (libfabric), and a job that went well fails at its end.
        atexit.register(window.Free)
        whole, _ = window.Shared_query(0)
        return np.frombuffer(whole, np.uint8)[:num_bytes].view(dtype).reshape(shape)

    def barrier(self) -> None:
        self.host_comm.Barrier()

    def abort(self, code: int) -> NoReturn:
        """Ends all ranks at once, wherever they are: those that wait in MPI for this one would wait for ever."""
        sys.stdout.flush()
        sys.stderr.flush()
        launcher.wait_until_read()
        from mpi4py import MPI

        # Of any other communicator MPICH's abort is a message to its ranks and an exit of this one: who is quicker, the
        # launcher that kills the others or the message, decides which code the job has.
        everybody: Any = MPI.COMM_WORLD
        everybody.Abort(code)
        # MPICH has told the launcher, which kills this one too; an exit that it notices first would count instead.
        if self.size > 1:
            time.sleep(_KILLED_S)
        os._exit(code)


def connect() -> World:
    """Opens MPI and finds this rank's place in it.

    From here on an exception that nobody catches in any thread of any rank ends the whole job.

    Raises:
      SystemExit: the launcher started more ranks than this MPI sees, or MPI serves one thread only; one
        message on one rank's stderr.
    """
    compat.keep_memory(arenas=launcher.cores())
    # Open MPI's windows by UCX complain where there is no network for them; ours are of shared memory alone.
    os.environ.setdefault("OMPI_MCA_osc", "^ucx")
    from mpi4py import MPI

    _check_launcher(MPI)
    comm = MPI.COMM_WORLD
    local: Any = comm.Split_type(MPI.COMM_TYPE_SHARED)
    cores = local.allgather(os.sched_getaffinity(0))
    if local.rank == 0:
        launcher.unname_segments()
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
        host_comm=comm.Dup(),
        data_comm=comm.Dup(),
        device_comm=comm.Dup(),
        native_comm=comm.Dup(),
        control_comm=comm.Dup(),
        node_comm=local,
    )
    with world.together():
        if MPI.Query_thread() < MPI.THREAD_MULTIPLE:
            raise ValueError(
                f"jaxdp needs an MPI with MPI_THREAD_MULTIPLE, {world.library} grants level {MPI.Query_thread()}: "
                "use a build of it with thread support"
            )
    threading.excepthook = lambda hook: _die(world, hook.exc_value)
    return world


def run(job: Callable[[World], None]) -> None:
    """Connects, runs the job, and sees to it that no rank is left behind whatever happens.

    Args:
      job: what every rank does.
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
        error = Failure(f"a disk is full: {error}: make room and start again, the run goes on from its last save")
    if isinstance(error, (UserError, Failure)):
        print(f"jaxdp: error: {error} ({where})", file=sys.stderr)
        world.abort(USER_ERROR if isinstance(error, UserError) else INTERNAL_ERROR)
    if error is not None:
        traceback.print_exception(error)
    print(f"jaxdp: error: {where} failed and ends the job: {type(error).__name__}: {error}", file=sys.stderr)
    world.abort(INTERNAL_ERROR)


def _check_launcher(mpi: Any) -> None:
    place = launcher.place()
    if place is None or place.size == mpi.COMM_WORLD.size:
        return
    if place.rank == 0:
        library = mpi.Get_library_version().split("\n")[0]
        print(
            f"jaxdp: error: the launcher started {place.size} ranks, but MPI sees {mpi.COMM_WORLD.size}: start the job "
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
