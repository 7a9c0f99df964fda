"""Runs schedules with the native engine, which sends all buckets concurrently, overlapped with computation."""

from __future__ import annotations

import atexit
import ctypes
import functools
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from jaxdp import native
from jaxdp.collectives import tables
from jaxdp.collectives.choice import Choice
from jaxdp.collectives.config import MPI
from jaxdp.collectives.schedule import Schedule, chunk_bounds

if TYPE_CHECKING:
    import jax
    from mpi4py.MPI import Intracomm

    from jaxdp.runtime.world import World

# MPI takes counts as 32-bit integers.
_LARGEST_COUNT = 2**30
_MESSAGE_ROOM = 4096


class AllreducePlan(NamedTuple):
    """How the engine sums payloads of one size.

    Attributes:
      number: number of the plan in the engine.
      num_elements: number of elements of the payload.
      dtype: dtype of the payload.
    """

    number: int
    num_elements: int
    dtype: np.dtype


class Event(NamedTuple):
    """One finished allreduce.

    Attributes:
      plan: number of the plan.
      start_s, end_s: start and end in seconds, on the clock of `time.perf_counter`.
    """

    plan: int
    start_s: float
    end_s: float


class ProgressEngine:
    """The native engine of this rank: its progress thread and its plans.

    All ranks must make the same plans in the same order. Sums inside jit may start in a different order on each rank.
    Two sums by the same plan must follow one another in the program, as the sums of two training steps do.
    """

    def __init__(self, comm: Intracomm):
        """Starts the engine.

        Args:
          comm: a communicator that only this engine uses. Its error handler is set to return errors.
        """
        self._comm = comm
        self._library = _library()
        self._engine = self._library.jaxdp_open(comm.py2f())
        # Stop before mpi4py finalizes MPI, which happens later: a thread that polls a finalized MPI would crash.
        atexit.register(self.stop)

    def stop(self) -> None:
        """Ends the threads of the engine; pending allreduces fail."""
        self._library.jaxdp_stop(self._engine)

    def plan(
        self,
        schedule: Schedule,
        num_elements: int,
        dtype: np.dtype,
        *,
        segment_bytes: int,
        wire: str | None = None,
        name: str = "a payload",
    ) -> AllreducePlan:
        """Makes a plan for payloads of this size; all ranks must call it together.

        Args:
          schedule: a schedule for the number of ranks of the communicator.
          num_elements: number of elements of the payload.
          dtype: float32 or float64.
          segment_bytes: size of the pieces into which chunks are cut.
          wire: "bfloat16" or "float16" to round float32 values when they are sent; None to send them unchanged.
          name: name of the payload in messages.

        Raises:
          ValueError: the plan has more pieces than MPI has tags left.
        """
        assert schedule.num_ranks == self._comm.size, "schedule and communicator must have the same number of ranks"
        dtype = np.dtype(dtype)
        largest_chunk = int(np.diff(chunk_bounds(num_elements, schedule.num_chunks)).max()) * dtype.itemsize
        pieces = tables.pieces(num_elements, schedule.num_chunks, max(1, -(-largest_chunk // segment_bytes)))
        transfers = tables.transfers(schedule, self._comm.rank)
        lanes = tables.lanes(schedule)
        plan = self._add(name, wire or dtype.name, num_elements, dtype, transfers, pieces, schedule.num_chunks, lanes)
        if plan.number < 0:
            raise ValueError(
                f"{name} of {num_elements * dtype.itemsize:,} bytes in segments of {segment_bytes:,} bytes needs more "
                "message tags than this MPI has: increase config.allreduce.segment_bytes"
            )
        return plan

    def plan_without_messages(self, num_elements: int, dtype: np.dtype) -> AllreducePlan:
        """Makes a plan that leaves payloads of this size unchanged; its events show when a program computed them."""
        dtype = np.dtype(dtype)
        nothing, whole = np.empty((0, 5), np.int64), np.array([[0, 0, num_elements]], np.int64)
        return self._add("a payload", dtype.name, num_elements, dtype, nothing, whole, 1, 1)

    def plan_by_mpi(self, num_elements: int, dtype: np.dtype, *, name: str = "a payload") -> AllreducePlan:
        """Makes a plan that uses MPI's own allreduce for payloads of this size; all ranks must call it together."""
        dtype = np.dtype(dtype)
        nothing, pieces = np.empty((0, 5), np.int64), tables.pieces(num_elements, 1, -(-num_elements // _LARGEST_COUNT))
        return self._add(name, dtype.name, num_elements, dtype, nothing, pieces, 1, tables.FEWEST_LANES, by_mpi=True)

    def _add(
        self,
        name: str,
        wire: str,
        num_elements: int,
        dtype: np.dtype,
        transfers: np.ndarray,
        pieces: np.ndarray,
        num_chunks: int,
        lanes: int,
        *,
        by_mpi: bool = False,
    ) -> AllreducePlan:
        number = self._library.jaxdp_add_plan(
            self._engine,
            name.encode(),
            wire.encode(),
            num_elements,
            num_chunks,
            transfers,
            len(transfers),
            pieces,
            len(pieces),
            lanes,
            by_mpi,
        )
        return AllreducePlan(number, num_elements, dtype)

    def allreduce(self, payload: np.ndarray, plan: AllreducePlan, out: np.ndarray | None = None) -> np.ndarray:
        """Sums host arrays over the ranks and waits for the result.

        Args:
          payload: [num_elements], contiguous, of the plan's size and dtype.
          plan: a plan of this engine.
          out: array for the sum; a new array if None.

        Returns:
          The sum, [num_elements].

        Raises:
          RuntimeError: a message could not be exchanged, or the engine has stopped.
        """
        out = np.empty_like(payload) if out is None else out
        for array in (payload, out):
            assert array.shape == (plan.num_elements,), "an array must have the size of its plan"
            assert array.dtype == plan.dtype, "an array must have the dtype of its plan"
            assert array.flags.c_contiguous, "an array must be contiguous"
        message = ctypes.create_string_buffer(_MESSAGE_ROOM)
        if self._library.jaxdp_allreduce(
            self._engine, plan.number, payload.ctypes.data, out.ctypes.data, message, _MESSAGE_ROOM
        ):
            raise RuntimeError(message.value.decode(errors="replace"))
        return out

    def events(self, first: int = 0, most: int = 1 << 14) -> list[Event]:
        """Returns the finished allreduces in the order of their end, at most `most` from number `first` on.

        The engine keeps the latest 16,384.
        """
        table = np.empty((most, 3), np.int64)
        count = self._library.jaxdp_events(self._engine, table, first, most)
        return [Event(plan, start * 1e-9, end * 1e-9) for plan, start, end in table[:count].tolist()]

    def counts(self) -> tuple[int, int]:
        """Returns the number of finished and of pending allreduces."""
        table = np.empty(2, np.int64)
        self._library.jaxdp_counts(self._engine, table)
        return int(table[0]), int(table[1])

    def serve_programs(self) -> None:
        """Makes the module's function `allreduce` (inside jit) use this engine."""
        self._library.jaxdp_serve_programs(self._engine)


@functools.cache
def engine_of(world: World) -> ProgressEngine:
    """Returns the engine of this rank, which jitted programs also use; the first call starts it."""
    engine = ProgressEngine(world.native_comm)
    engine.serve_programs()
    world.activity.allreduces = engine.counts
    return engine


def plan_of(
    choice: Choice, num_elements: int, dtype: np.dtype, world: World, *, name: str = "a payload"
) -> AllreducePlan:
    """Makes a plan of this rank's engine for payloads of this size; all ranks must call it together."""
    engine = engine_of(world)
    if choice.algorithm == MPI:
        return engine.plan_by_mpi(num_elements, dtype, name=name)
    return engine.plan(
        choice.schedule(world.size),
        num_elements,
        dtype,
        segment_bytes=choice.segment_bytes,
        wire=choice.wire_of(dtype),
        name=name,
    )


def plan_of_parts(
    choice: Choice, num_elements: int, dtype: np.dtype, world: World, *, parts: int, name: str
) -> AllreducePlan:
    """Makes plans for payloads cut into equal parts, one per local device; all ranks must call it together.

    Returns:
      The plan of device 0. The plans of the other devices have the numbers that follow.
    """
    size = -(-num_elements // parts)
    first, *_ = [plan_of(choice, size, dtype, world, name=name) for _ in range(parts)]
    return first


def allreduce(
    payload: jax.Array, plan: AllreducePlan, *, device: jax.Array | int = 0, in_place: bool = False
) -> jax.Array:
    """Sums a payload over the ranks inside jit (also inside shard_map over CPU devices) without blocking the program.

    Args:
      payload: [num_elements], of the plan's size and dtype.
      plan: a plan of the engine that serves programs. Inside shard_map, the plan of device 0 of `plan_of_parts`.
      device: index of the local device, int32 [].
      in_place: whether the sum reuses the payload's memory; useful if nothing else needs the payload.

    Returns:
      The sum, [num_elements], with the same bits on all ranks.
    """
    import jax
    import jax.numpy as jnp

    from jaxdp.native import handlers

    assert payload.shape == (plan.num_elements,), "the payload must have the size of its plan"
    assert payload.dtype == plan.dtype, "the payload must have the dtype of its plan"
    like = jax.ShapeDtypeStruct(payload.shape, payload.dtype)
    aliases = {0: 0} if in_place else None
    on_device, number = jnp.asarray(device, jnp.int32), np.int64(plan.number)
    return handlers.call(_library(), "allreduce", like, payload, on_device, aliases=aliases, plan=number)


def allreduce_all(
    payloads: Sequence[jax.Array], plans: Sequence[AllreducePlan], *, device: jax.Array | int = 0
) -> list[jax.Array]:
    """Sums several payloads over the ranks, each as soon as it has been computed.

    What follows the sums in the program waits until all payloads have been computed, but not until they have been sent.
    Otherwise XLA would plan memory as if sums were available at once: it would use them up early and give their memory
    to computations of later payloads, which would then wait for messages.

    Args:
      payloads: arrays as for `allreduce`, which nothing else needs.
      plans: one plan per payload.
      device: as for `allreduce`.

    Returns:
      The sums, in the order of the payloads.
    """
    from jaxdp.native.ordering import after, with_token

    marked = [with_token(payload) for payload in payloads]
    tokens = [token for _, token in marked]
    sums = [
        allreduce(payload, plan, device=device, in_place=True) for (payload, _), plan in zip(marked, plans, strict=True)
    ]
    return [after(total, tokens) for total in sums]


def _library() -> ctypes.CDLL:
    from mpi4py import MPI

    return native.engine(MPI.get_vendor()[0])
