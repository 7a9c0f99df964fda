"""A schedule run by the native engine: messages of all chunks, segments and buckets at once, beside the computation."""

from __future__ import annotations

import atexit
import ctypes
import functools
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from jaxdp import native
from jaxdp.collectives import tables
from jaxdp.collectives.choice import MPI, Choice
from jaxdp.collectives.schedule import Schedule, chunk_bounds
from jaxdp.progress import MINE

if TYPE_CHECKING:
    import jax
    from mpi4py.MPI import Intracomm

    from jaxdp.world import World

# MPI counts in 32 bits.
_LARGEST_COUNT = 2**30
_TARGET, _PASS = "jaxdp_allreduce", "jaxdp_pass"
_MESSAGE_ROOM = 4096


class Plan(NamedTuple):
    """How the engine sums payloads of one size.

    Attributes:
      number: of the plan in the engine.
      num_elements: of the payload.
      dtype: of the payload.
    """

    number: int
    num_elements: int
    dtype: np.dtype


class Event(NamedTuple):
    """One allreduce that is over, in seconds of the clock of time.perf_counter."""

    plan: int
    start_s: float
    end_s: float


class Engine:
    """The progress thread of this rank and its plans.

    All ranks make the same plans in the same order. What is summed inside jit may start in any order on each of them;
    two sums by one plan must follow one another in the program, as those of two training steps do.
    """

    def __init__(self, comm: Intracomm):
        """Starts the engine.

        Args:
          comm: a communicator for it alone, on which errors are returned from now on.
        """
        self._comm = comm
        self._library = _library()
        self._engine = self._library.jaxdp_open(comm.py2f())
        # Before MPI is closed, which mpi4py does later: a thread that polls it then would crash.
        atexit.register(self.stop)

    def stop(self) -> None:
        """Ends its threads; what is under way fails."""
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
    ) -> Plan:
        """A plan for payloads of this size; all ranks call it together.

        Args:
          schedule: for as many ranks as the communicator has.
          num_elements: of the payload.
          dtype: float32 or float64.
          segment_bytes: the size of the pieces into which chunks are cut.
          wire: "bfloat16" or "float16", to which float32 is rounded when it is sent; None to send it as it is.
          name: of the payload, in messages.

        Raises:
          ValueError: there are more pieces than MPI has tags.
        """
        assert schedule.num_ranks == self._comm.size, "the schedule is for this communicator"
        dtype = np.dtype(dtype)
        largest_chunk = int(np.diff(chunk_bounds(num_elements, schedule.num_chunks)).max()) * dtype.itemsize
        pieces = tables.pieces(num_elements, schedule.num_chunks, max(1, -(-largest_chunk // segment_bytes)))
        transfers = tables.transfers(schedule, self._comm.rank)
        lanes = tables.lanes(schedule)
        plan = self._add(name, wire or dtype.name, num_elements, dtype, transfers, pieces, schedule.num_chunks, lanes)
        if plan.number < 0:
            raise ValueError(
                f"{name} of {num_elements * dtype.itemsize:,} bytes in segments of {segment_bytes:,} needs more tags "
                "than this MPI has: set config.allreduce.segment_bytes to more"
            )
        return plan

    def plan_without_messages(self, num_elements: int, dtype: np.dtype) -> Plan:
        """A plan that leaves payloads of this size as they are: its events tell when a program has made them."""
        dtype = np.dtype(dtype)
        nothing, whole = np.empty((0, 5), np.int64), np.array([[0, 0, num_elements]], np.int64)
        return self._add("a payload", dtype.name, num_elements, dtype, nothing, whole, 1, 1)

    def plan_by_mpi(self, num_elements: int, dtype: np.dtype, *, name: str = "a payload") -> Plan:
        """A plan by which MPI's own allreduce sums payloads of this size; all ranks call it together."""
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
    ) -> Plan:
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
        return Plan(number, num_elements, dtype)

    def allreduce(self, payload: np.ndarray, plan: Plan, out: np.ndarray | None = None) -> np.ndarray:
        """The sum of host arrays over the ranks; waits for it.

        Args:
          payload: [num_elements], contiguous, of the plan's size and dtype.
          plan: of this engine.
          out: where the sum goes; a new array if None.

        Raises:
          RuntimeError: a message was lost.
        """
        out = np.empty_like(payload) if out is None else out
        for array in (payload, out):
            assert array.shape == (plan.num_elements,), "the plan is for this size"
            assert array.dtype == plan.dtype, "the plan is for this dtype"
            assert array.flags.c_contiguous, "payloads are contiguous"
        message = ctypes.create_string_buffer(_MESSAGE_ROOM)
        if self._library.jaxdp_allreduce(
            self._engine, plan.number, payload.ctypes.data, out.ctypes.data, message, _MESSAGE_ROOM
        ):
            raise RuntimeError(message.value.decode(errors="replace"))
        return out

    def events(self, first: int = 0, most: int = 1 << 14) -> list[Event]:
        """Allreduces that are over, in the order of their end, from number `first` on; the latest 16,384 are kept."""
        table = np.empty((most, 3), np.int64)
        count = self._library.jaxdp_events(self._engine, table, first, most)
        return [Event(plan, start * 1e-9, end * 1e-9) for plan, start, end in table[:count].tolist()]

    def counts(self) -> tuple[int, int]:
        """Allreduces that are over, and those that have been started and are not."""
        table = np.empty(2, np.int64)
        self._library.jaxdp_counts(self._engine, table)
        return int(table[0]), int(table[1])

    def serve_programs(self) -> None:
        """Has `allreduce` of this module, inside jit, use this engine."""
        _register()
        self._library.jaxdp_serve_programs(self._engine)


@functools.cache
def engine_of(world: World) -> Engine:
    """The engine of this rank, which programs use."""
    engine = Engine(world.native_comm)
    engine.serve_programs()
    MINE.allreduces = engine.counts
    return engine


def plan_of(choice: Choice, num_elements: int, dtype: np.dtype, world: World, *, name: str = "a payload") -> Plan:
    """A plan of this rank's engine for payloads of this size; all ranks call it together."""
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


def plan_of_parts(choice: Choice, num_elements: int, dtype: np.dtype, world: World, *, parts: int, name: str) -> Plan:
    """The plan of device 0 for payloads cut into equal parts, one a local device; those of the others follow it."""
    size = -(-num_elements // parts)
    first, *_ = [plan_of(choice, size, dtype, world, name=name) for _ in range(parts)]
    return first


def allreduce(payload: jax.Array, plan: Plan, *, device: jax.Array | int = 0, in_place: bool = False) -> jax.Array:
    """The sum over the ranks inside jit, also inside shard_map over CPU devices; the program goes on meanwhile.

    Args:
      payload: [num_elements], of the plan's size and dtype.
      plan: of the engine that serves programs; in shard_map that of device 0, those of other devices following it.
      device: index of the local device, int32 [].
      in_place: whether the sum takes the payload's memory; worth it where nothing else needs the payload.

    Returns:
      [num_elements], the same bits on all ranks.
    """
    import jax
    import jax.numpy as jnp

    assert payload.shape == (plan.num_elements,), "the plan is for this size"
    assert payload.dtype == plan.dtype, "the plan is for this dtype"
    like = jax.ShapeDtypeStruct(payload.shape, payload.dtype)
    of_program = jax.ffi.ffi_call(_TARGET, like, input_output_aliases={0: 0} if in_place else {})
    return of_program(payload, jnp.asarray(device, jnp.int32), plan=np.int64(plan.number))


def allreduce_all(
    payloads: Sequence[jax.Array], plans: Sequence[Plan], *, device: jax.Array | int = 0
) -> list[jax.Array]:
    """The sums of several payloads, each of which begins to cross as soon as it is there.

    What follows them in the program waits until all payloads are there (not until they have crossed). Else XLA would
    lay out memory as if sums came at once: they would be used up, and their memory given to computations that make
    later payloads, which would then wait for messages.

    Args:
      payloads: as for `allreduce`, nothing else needing them.
      plans: one a payload.
      device: as for `allreduce`.
    """
    marked = [_pass(payload, token=True) for payload in payloads]
    tokens = [token for _, token in marked]
    sums = [
        allreduce(payload, plan, device=device, in_place=True) for (payload, _), plan in zip(marked, plans, strict=True)
    ]
    return [_pass(total, *tokens)[0] for total in sums]


def once(array: jax.Array, others: Sequence[jax.Array]) -> jax.Array:
    """The same array, inside jit on CPU devices, for what is not to begin before the others are there.

    XLA takes no notice there of `jax.lax.optimization_barrier`.
    """
    _register()
    return _pass(array, *others)[0]


def _pass(array: jax.Array, *others: jax.Array, token: bool = False) -> list[jax.Array]:
    """The same array in the same memory once all operands are there; and a token for what is to wait for it."""
    import jax
    import jax.numpy as jnp

    results = [jax.ShapeDtypeStruct(array.shape, array.dtype)] + [jax.ShapeDtypeStruct((1,), jnp.int32)] * token
    return list(jax.ffi.ffi_call(_PASS, results, input_output_aliases={0: 0})(array, *others))


def _library() -> ctypes.CDLL:
    from mpi4py import MPI

    return native.engine(MPI.get_vendor()[0])


@functools.cache
def _register() -> None:
    import jax

    library = _library()
    for name, handler in [(_TARGET, library.jaxdp_xla_allreduce), (_PASS, library.jaxdp_xla_pass)]:
        jax.ffi.register_ffi_target(name, jax.ffi.pycapsule(handler), platform="cpu")
