"""Sums flat buckets over all ranks, each with the allreduce chosen for it."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from jaxdp.collectives import auto, run_mpi4jax, run_native
from jaxdp.collectives.choice import Choice
from jaxdp.collectives.config import AUTO
from jaxdp.collectives.config import MPI as MPI_NAME
from jaxdp.collectives.engine_library import agree_on_library
from jaxdp.collectives.proof import prove_schedules
from jaxdp.runtime import jax_compat

if TYPE_CHECKING:
    from mpi4py import MPI

    from jaxdp.collectives.buckets import Buckets
    from jaxdp.collectives.config import AllreduceConfig
    from jaxdp.runtime.world import World


# For each bucket, the part of each local device, on the host's CPU device.
HostParts = list[list[jax.Array]]


class BucketSum(Protocol):
    """Sums buckets over all ranks; where it may be called depends on the engine.

    Attributes:
      chosen: the choice by measurement, to be saved with the run; None if the config made the choice.
      description: human-readable description.
      needs_buckets: whether values must be packed into buckets; False if there is nothing to sum.
      sums_devices: whether a call also sums over devices, and therefore belongs inside shard_map over them (one local
        device alone needs no shard_map). Otherwise it belongs after the sum over the local devices.
      recorded_plans: numbers of the plans whose events in the native engine tell when buckets were ready and summed;
        empty if another engine sums them.
    """

    @property
    def chosen(self) -> dict[str, Any] | None: ...

    @property
    def description(self) -> str: ...

    @property
    def needs_buckets(self) -> bool: ...

    @property
    def sums_devices(self) -> bool: ...

    @property
    def recorded_plans(self) -> list[int]: ...

    def __call__(self, buckets: list[jax.Array]) -> list[jax.Array]: ...

    def of_host_parts(self) -> Callable[[HostParts], HostParts]:
        """Returns the function, outside jit, that sums parts of buckets over the ranks, for `placement.staging`."""
        ...


@dataclasses.dataclass(frozen=True, eq=False)
class BlockingAllreduce:
    """Sums buckets with mpi4jax, one after the other, inside jit on one device.

    Attributes:
      choices: one choice per bucket, in order.
      comm: a communicator that only mpi4jax uses.
      chosen, description: as in `BucketSum`.
    """

    choices: Sequence[Choice]
    comm: MPI.Intracomm
    chosen: dict[str, Any] | None = None
    description: str = ""
    needs_buckets: ClassVar[bool] = True
    sums_devices: ClassVar[bool] = False

    @property
    def recorded_plans(self) -> list[int]:
        """Always empty: mpi4jax does not record when buckets were ready."""
        return []

    def __call__(self, buckets: list[jax.Array]) -> list[jax.Array]:
        if self.comm.size == 1:
            return buckets
        return [_blocking_sum(bucket, choice, self.comm) for bucket, choice in zip(buckets, self.choices, strict=True)]

    def of_host_parts(self) -> Callable[[HostParts], HostParts]:
        """One program that sums the parts of one device after those of another."""

        def blocking(parts: HostParts) -> HostParts:
            of_devices = [self(list(of_device)) for of_device in zip(*parts, strict=True)]
            return [list(of_bucket) for of_bucket in zip(*of_devices, strict=True)]

        return jax.jit(blocking)


@dataclasses.dataclass(frozen=True, eq=False)
class NativeAllreduce:
    """Sums all buckets concurrently with the native engine, inside jit.

    With several local devices it must be called inside shard_map over them. Every device then sums one part of a bucket
    over the local devices, sums that part over the ranks, and gathers the parts of the other devices. No byte is sent
    between ranks twice.

    Attributes:
      plans: one plan per bucket, in order: the plan of device 0, which the plans of the other devices follow. None in a
        single process, where nothing is sent.
      axis: name of the mesh axis of the local devices.
      num_devices: number of local devices along the axis.
      chosen, description: as in `BucketSum`.
    """

    plans: Sequence[run_native.AllreducePlan] | None
    axis: str
    num_devices: int
    chosen: dict[str, Any] | None = None
    description: str = ""
    sums_devices: ClassVar[bool] = True

    @property
    def needs_buckets(self) -> bool:
        """False for one device in one process."""
        return self.plans is not None or self.num_devices > 1

    @property
    def recorded_plans(self) -> list[int]:
        """The plans of all buckets and devices."""
        return [plan.number + device for plan in self.plans or () for device in range(self.num_devices)]

    def __call__(self, buckets: list[jax.Array]) -> list[jax.Array]:
        if self.plans is None:
            return buckets if self.num_devices == 1 else [jax.lax.psum(bucket, self.axis) for bucket in buckets]
        if self.num_devices == 1:
            return run_native.allreduce_all(buckets, self.plans)
        parts = scattered(buckets, self.axis, self.num_devices)
        sums = run_native.allreduce_all(parts, self.plans, device=jax.lax.axis_index(self.axis))
        return gathered(sums, [bucket.size for bucket in buckets], self.axis)

    def of_host_parts(self) -> Callable[[HostParts], HostParts]:
        """One program per part, so that each part is sent, and returned to its device, as soon as it is ready."""
        assert self.plans is not None, "a job of one rank needs no staging"
        programs = [
            [
                jax.jit(functools.partial(run_native.allreduce, plan=plan, device=device))
                for device in range(self.num_devices)
            ]
            for plan in self.plans
        ]
        return lambda parts: [
            [program(part) for program, part in zip(*of_bucket, strict=True)]
            for of_bucket in zip(programs, parts, strict=True)
        ]


def scattered(buckets: Sequence[jax.Array], axis: str, num_devices: int) -> list[jax.Array]:
    """Returns this device's part of each bucket, summed over the devices along the axis; inside shard_map.

    Parts have the same size. If the size of a bucket is not divisible by `num_devices`, the last part ends with zeros.
    """
    padded = [jnp.pad(bucket, (0, -bucket.size % num_devices)) for bucket in buckets]
    return [jax.lax.psum_scatter(bucket, axis, tiled=True) for bucket in padded]


def gathered(parts: Sequence[jax.Array], sizes: Sequence[int], axis: str) -> list[jax.Array]:
    """Returns whole buckets of these sizes from the parts of the devices along the axis; inside shard_map."""
    return [
        jax.lax.all_gather(part, axis, tiled=True, to="invarying")[:size]
        for part, size in zip(parts, sizes, strict=True)
    ]


def make_sum(
    engine: str, choice: Choice, num_elements: int, dtype: np.dtype, world: World
) -> Callable[[jax.Array], jax.Array]:
    """Returns a function that sums payloads of this size over all ranks, inside jit on one CPU device.

    All ranks must call `make_sum` together.

    Args:
      engine: "native" or "mpi4jax".
      choice: algorithm and options.
      num_elements: number of elements of the payload.
      dtype: float32 or float64.
      world: all ranks.
    """
    agree_on_library(engine, world)
    if engine == "mpi4jax":
        return lambda payload: _blocking_sum(payload, choice, world.device_comm)
    plan = run_native.plan_of(choice, num_elements, dtype, world)
    return lambda payload: run_native.allreduce(payload, plan)


def make_allreduce(
    config: AllreduceConfig,
    world: World,
    layout: Buckets,
    chosen: dict[str, Any] | None = None,
    *,
    axis: str = "",
    parts: int = 1,
) -> BucketSum:
    """Returns the allreduce that the config asks for, for buckets of this layout; all ranks must call it together.

    The job ends with one message if the number of ranks, or their placement on nodes, does not suit the algorithm, or
    if a schedule turns out to be wrong, see `prove_schedules`.

    Args:
      config: allreduce settings, with the engine "native" or "mpi4jax".
      world: all ranks.
      layout: layout of the buckets.
      chosen: the choice of "auto" in the previous job of this run. It is kept if the number of ranks, the sizes of the
        buckets, the engine and the wire format are unchanged.
      axis: name of the mesh axis of the local devices; "native" only.
      parts: number of parts into which each bucket is cut, one per local device; "native" only.
    """
    agree_on_library(config.engine, world)
    choices: Sequence[Choice] = []
    if world.size == 1:
        chosen, description = None, "none (single process)"
    elif config.algorithm == AUTO:
        choices, chosen, description = _measured(config, world, layout, chosen)
    else:
        choice, count, chosen = _configured(config, world), len(layout.members), None
        choices, description = [choice] * count, f"{choice}; {count} bucket{'s' * (count > 1)}, {config.engine} engine"
    dtypes = [bucket.dtype for bucket in layout.buckets]
    if choices and (proof := prove_schedules(zip(choices, dtypes, strict=True), world)):
        description += f", {proof}"
    if config.engine == "mpi4jax":
        return BlockingAllreduce(choices, world.device_comm, chosen, description)
    if world.size == 1:
        return NativeAllreduce(None, axis, parts, chosen, description)
    plans = [
        run_native.plan_of_parts(choice, bucket.size, bucket.dtype, world, parts=parts, name=f"bucket {index}")
        for index, (choice, bucket) in enumerate(zip(choices, layout.buckets, strict=True))
    ]
    return NativeAllreduce(plans, axis, parts, chosen, description)


def _configured(config: AllreduceConfig, world: World) -> Choice:
    with world.agree_or_exit():
        if config.algorithm == "hierarchical" and config.ranks_per_node is None and world.ranks_per_node is None:
            raise ValueError(
                "a hierarchical allreduce needs the same number of consecutive ranks on every node, but ranks 0, 1, "
                f"... of this job are on the nodes of ranks {', '.join(map(str, world.leaders))}: "
                "change how the launcher places ranks, or choose another config.allreduce.algorithm"
            )
        choice = Choice.of_config(config, num_ranks=world.size, ranks_per_node=world.ranks_per_node or 1)
        if choice.algorithm != MPI_NAME:
            choice.schedule(world.size)
    return choice


def _measured(
    config: AllreduceConfig, world: World, layout: Buckets, chosen: dict[str, Any] | None
) -> tuple[Sequence[Choice], dict[str, Any], str]:
    here = {"engine": config.engine, "num_ranks": world.size, "sizes": layout.sizes, "wire": config.wire}
    if chosen is not None and {name: chosen.get(name) for name in here} == here:
        choices = [Choice(**choice) for choice in chosen["choices"]]
        lines = [f"{choice} for {size:,} bytes" for choice, size in zip(choices, layout.sizes, strict=True)]
        origin = "as chosen when the run began"
    else:
        decisions = auto.choose(layout.sizes, config.wire, world, engine=config.engine)
        choices = [decision.choice for decision in decisions]
        chosen = here | {"choices": [dataclasses.asdict(choice) for choice in choices]}
        lines = [str(decision) for decision in decisions]
        origin = "chosen from measurements"
    # Buckets of the same size have the same line, which is shown once, with their number.
    kinds = [f"{lines.count(line)} x {line}" for line in dict.fromkeys(lines)]
    return choices, chosen, f"{'; '.join(kinds)}; {origin}, {config.engine} engine"


def _blocking_sum(payload: jax.Array, choice: Choice, comm: MPI.Intracomm) -> jax.Array:
    if choice.algorithm == MPI_NAME:
        return jax_compat.allreduce(payload, comm=comm)
    return run_mpi4jax.allreduce(
        payload,
        schedule=choice.schedule(comm.size),
        comm=comm,
        num_segments=choice.num_segments(comm.size, payload.nbytes),
        wire=None if (wire := choice.wire_of(payload.dtype)) is None else jnp.dtype(wire),
    )
