"""The engine `xla`: one mesh of all devices of all ranks, with JAX's own collectives between them."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ClassVar

import jax
import numpy as np
import optax
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from jaxdp.collectives.allreduce import BucketSum, HostParts
from jaxdp.collectives.buckets import Buckets
from jaxdp.data.batch import Batch
from jaxdp.placement.local import AXIS, LocalPlacement, TrainStep, over_devices, packed_buckets
from jaxdp.runtime import jax_compat
from jaxdp.step.state import TrainState
from jaxdp.step.task import BatchSum, Task
from jaxdp.step.update import apply_gradients

if TYPE_CHECKING:
    from jaxdp.collectives.config import AllreduceConfig
    from jaxdp.runtime.world import World

PyTree = Any


@dataclasses.dataclass(frozen=True)
class Psum:
    """JAX's own sum over all devices, inside shard_map: gloo between CPUs, NCCL between GPUs.

    Attributes:
      chosen: always None, because there is no choice of algorithms.
      description: human-readable description.
    """

    description: str
    chosen: ClassVar[None] = None
    needs_buckets: ClassVar[bool] = True
    sums_devices: ClassVar[bool] = True

    @property
    def recorded_plans(self) -> list[int]:
        """Always empty: XLA does not record when buckets were ready."""
        return []

    def __call__(self, buckets: list[jax.Array]) -> list[jax.Array]:
        return [jax.lax.psum(bucket, AXIS) for bucket in buckets]

    def of_host_parts(self) -> Callable[[HostParts], HostParts]:
        """Not available: the devices sum the buckets, so nothing is staged through the host."""
        raise NotImplementedError("JAX's own collectives sum buckets on the devices")


@dataclasses.dataclass(frozen=True)
class DistributedPlacement:
    """A mesh of all devices of all ranks; the step is one program over the mesh.

    State is replicated over the mesh, and batches are split over it. Each rank evaluates on its own devices.

    Attributes:
      mesh: one axis of all devices, those of rank 0 first.
      local: engine of this rank's devices, for evaluation.
    """

    mesh: jax.sharding.Mesh
    local: LocalPlacement

    @classmethod
    def create(cls) -> DistributedPlacement:
        """Connects the ranks through JAX, which must not have used a device yet, and spans all devices."""
        jax_compat.initialize_distributed()
        devices = jax.devices()
        mesh = jax.make_mesh((len(devices),), (AXIS,), axis_types=(AxisType.Auto,), devices=devices)
        return cls(mesh, LocalPlacement.create("mpi4jax", 1))

    @property
    def num_devices(self) -> int:
        """Number of devices of this rank."""
        return self.local.num_devices

    @property
    def description(self) -> str:
        """Human-readable description."""
        kind = self.mesh.devices.flat[0].device_kind
        return f"{self.num_devices} x {kind} per rank, one mesh of {self.mesh.size}, step fused"

    def make_allreduce(
        self, config: AllreduceConfig, world: World, layout: Buckets, chosen: dict[str, Any] | None
    ) -> Psum:
        """The bucket allreduce: always XLA's, whatever the config says."""
        del config, world, chosen
        count = len(layout.members)
        platform = self.mesh.devices.flat[0].platform
        return Psum(f"psum; {count} bucket{'s' * (count > 1)}, by XLA ({'gloo' if platform == 'cpu' else platform})")

    def make_batch_sums(self, world: World) -> Callable[[], BatchSum]:
        """Makes the sums over all devices of all ranks that a forward pass needs, see `Task.batch_sums`."""
        del world
        return lambda: lambda array: jax.lax.psum(array, AXIS)

    def replicate(self, tree: PyTree) -> PyTree:
        """Copies arrays, which must be the same on all ranks, to every device of every rank."""
        everywhere = NamedSharding(self.mesh, PartitionSpec())

        def spread(leaf: Any) -> jax.Array:
            array = np.array(leaf)
            return jax.make_array_from_callback(array.shape, everywhere, lambda index: array[index])

        return jax.tree.map(spread, tree)

    def place(self, batch: Batch) -> Batch:
        """Assembles the global batch from the rows of each rank, split over all devices."""
        split = NamedSharding(self.mesh, PartitionSpec(AXIS))
        return jax.tree.map(lambda rows: jax.make_array_from_process_local_data(split, rows), batch)

    def host_copy(self, state: TrainState) -> TrainState:
        """The state on the host, to be saved by one rank: Orbax requires all ranks to save arrays of a global mesh."""
        return jax.tree.map(np.array, state)

    def train_step(
        self, task: Task, optimizer: optax.GradientTransformation, layout: Buckets, allreduce: BucketSum
    ) -> TrainStep:
        """Builds the training step, see `LocalPlacement.train_step`."""
        summed = over_devices(self.mesh, functools.partial(packed_buckets, task, layout), allreduce)

        def step(state: TrainState, batch: Batch) -> tuple[TrainState, dict[str, jax.Array]]:
            buckets = summed(state.params, state.stats, batch)
            return apply_gradients(task, optimizer, state, layout.unpack(buckets))

        return jax.jit(step, donate_argnums=0)

    def evaluate_step(self, task: Task) -> Callable[[PyTree, PyTree, Batch], dict[str, jax.Array]]:
        """Builds the evaluation step of this rank's batches, see `LocalPlacement.evaluate_step`."""
        step = self.local.evaluate_step(task)

        def evaluate(params: PyTree, stats: PyTree, batch: Batch) -> dict[str, jax.Array]:
            mine = jax.tree.map(lambda leaf: leaf.addressable_data(0), (params, stats))
            params, stats = self.local.replicate(mine)
            return step(params, stats, batch)

        return evaluate
