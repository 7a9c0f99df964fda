"""One mesh of all devices of all ranks, with JAX's own collectives between them: the engine `xla`."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import jax
import numpy as np
import optax
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from jaxdp import compat
from jaxdp.collectives.allreduce import BucketSum
from jaxdp.collectives.buckets import Buckets
from jaxdp.engines.local import AXIS, LocalEngine, TrainStep, as_varying
from jaxdp.state import TrainState
from jaxdp.step import Batch, BatchSum, Task, apply_gradients, forward_backward

if TYPE_CHECKING:
    from jaxdp.config import AllreduceConfig
    from jaxdp.world import World

PyTree = Any


@dataclasses.dataclass(frozen=True)
class Psum:
    """JAX's own sum over all devices, inside shard_map: gloo between CPUs, NCCL between GPUs.

    Attributes:
      chosen: None, as nothing is chosen.
      description: for a person.
    """

    description: str
    chosen: None = None

    def __call__(self, buckets: list[jax.Array]) -> list[jax.Array]:
        return [jax.lax.psum(bucket, AXIS) for bucket in buckets]


@dataclasses.dataclass(frozen=True)
class DistributedEngine:
    """A mesh of all devices of all ranks: the step is one program over it.

    State is replicated over the mesh, batches are split over it; evaluation is each rank's own affair.

    Attributes:
      mesh: all devices, those of rank 0 first, one axis.
      local: an engine of this rank's devices, for evaluation.
    """

    mesh: jax.sharding.Mesh
    local: LocalEngine

    @classmethod
    def create(cls) -> DistributedEngine:
        """The engine over all devices, once JAX has connected the ranks; nothing may have used a device before."""
        compat.initialize_distributed()
        devices = jax.devices()
        mesh = jax.make_mesh((len(devices),), (AXIS,), axis_types=(AxisType.Auto,), devices=devices)
        return cls(mesh, LocalEngine.create("mpi4jax", 1))

    @property
    def num_devices(self) -> int:
        """Of this rank."""
        return self.local.num_devices

    @property
    def description(self) -> str:
        """For a person."""
        kind = self.mesh.devices.flat[0].device_kind
        return f"{self.num_devices} x {kind} a rank, one mesh of {self.mesh.size}, step fused"

    def make_allreduce(
        self, config: AllreduceConfig, world: World, layout: Buckets, chosen: dict[str, Any] | None
    ) -> Psum:
        """What sums the buckets; the config has no say in it."""
        del config, world, chosen
        count = len(layout.members)
        platform = self.mesh.devices.flat[0].platform
        return Psum(f"psum; {count} bucket{'s' * (count > 1)}, by XLA ({'gloo' if platform == 'cpu' else platform})")

    def make_batch_sums(self, world: World) -> Callable[[], BatchSum]:
        """What sums arrays over all devices of all ranks in a forward pass, see `Task`."""
        del world
        return lambda: lambda array: jax.lax.psum(array, AXIS)

    def replicate(self, tree: PyTree) -> PyTree:
        """Copies of these arrays, the same on all ranks, on every device of every rank."""
        everywhere = NamedSharding(self.mesh, PartitionSpec())

        def spread(leaf: Any) -> jax.Array:
            array = np.array(leaf)
            return jax.make_array_from_callback(array.shape, everywhere, lambda index: array[index])

        return jax.tree.map(spread, tree)

    def place(self, batch: Batch) -> Batch:
        """Each device's rows of the global batch, of which every rank has its own."""
        split = NamedSharding(self.mesh, PartitionSpec(AXIS))
        return jax.tree.map(lambda rows: jax.make_array_from_process_local_data(split, rows), batch)

    def host_copy(self, state: TrainState) -> TrainState:
        """The state for one rank to save: Orbax would ask all ranks to save arrays of a global mesh."""
        return jax.tree.map(np.array, state)

    def train_step(
        self, task: Task, optimizer: optax.GradientTransformation, layout: Buckets, allreduce: BucketSum
    ) -> TrainStep:
        """The step, as `LocalEngine.train_step`."""

        def on_device(params: PyTree, stats: PyTree, batch: Batch) -> list[jax.Array]:
            params, stats = as_varying((params, stats))
            return allreduce(layout.pack(forward_backward(task, params, stats, batch)))

        specs = (PartitionSpec(), PartitionSpec(), PartitionSpec(AXIS))
        summed = jax.shard_map(on_device, mesh=self.mesh, in_specs=specs, out_specs=PartitionSpec())

        def step(state: TrainState, batch: Batch) -> tuple[TrainState, dict[str, jax.Array]]:
            buckets = summed(state.params, state.stats, batch)
            return apply_gradients(task, optimizer, state, layout.unpack(buckets))

        return jax.jit(step, donate_argnums=0)

    def evaluate_step(self, task: Task) -> Callable[[PyTree, PyTree, Batch], dict[str, jax.Array]]:
        """Sums of loss and hits over this rank's batch, as `LocalEngine.evaluate_step`."""
        step = self.local.evaluate_step(task)

        def evaluate(params: PyTree, stats: PyTree, batch: Batch) -> dict[str, jax.Array]:
            mine = jax.tree.map(lambda leaf: leaf.addressable_data(0), (params, stats))
            params, stats = self.local.replicate(mine)
            return step(params, stats, batch)

        return evaluate
