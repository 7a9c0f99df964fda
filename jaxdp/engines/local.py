"""A mesh of this rank's own devices, with messages between ranks: the engine `mpi4jax`."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import jax
import optax
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from jaxdp.collectives.allreduce import Allreduce, BucketSum, make_allreduce
from jaxdp.collectives.buckets import Buckets
from jaxdp.state import TrainState
from jaxdp.step import Batch, Task, apply_gradients, evaluate_batch, forward_backward

if TYPE_CHECKING:
    from jaxdp.config import AllreduceConfig
    from jaxdp.world import World

PyTree = Any
TrainStep = Callable[[TrainState, Batch], tuple[TrainState, dict[str, jax.Array]]]

AXIS = "device"


def as_varying(tree: PyTree) -> PyTree:
    """Inside shard_map: the same values, whose gradients stay each device's own, to be summed once with the rest."""
    return jax.tree.map(lambda leaf: jax.lax.pcast(leaf, AXIS, to="varying"), tree)


@dataclasses.dataclass(frozen=True)
class LocalEngine:
    """A mesh of this rank's own devices; between ranks, messages inside jit on one CPU device.

    State is replicated over the mesh, batches are split over it.

    Attributes:
      mesh: the local devices, one axis.
      host: the device on which buckets cross between ranks.
      fused: whether the whole step is one program. mpi4jax works only in programs on one CPU device, so with
        several devices, or another kind, the step is three programs and buckets pass through the host.
    """

    mesh: jax.sharding.Mesh
    host: jax.Device
    fused: bool

    @classmethod
    def create(cls, num_ranks: int, devices: Sequence[jax.Device] | None = None) -> LocalEngine:
        """The engine of one of so many ranks, over these devices of one platform; without them over all local ones."""
        devices = jax.local_devices() if devices is None else devices
        mesh = jax.make_mesh((len(devices),), (AXIS,), axis_types=(AxisType.Auto,), devices=devices)
        one_program = len(devices) == 1 and devices[0].platform == "cpu"
        return cls(
            mesh=mesh,
            host=jax.local_devices(backend="cpu")[0],
            fused=one_program or num_ranks == 1,
        )

    @property
    def num_devices(self) -> int:
        return self.mesh.size

    @property
    def description(self) -> str:
        device = self.mesh.devices.flat[0]
        return f"{self.num_devices} x {device.device_kind} a rank, step {'fused' if self.fused else 'staged'}"

    def make_allreduce(
        self, config: AllreduceConfig, world: World, layout: Buckets, chosen: dict[str, Any] | None
    ) -> Allreduce:
        """What sums the buckets over the ranks, see `collectives.allreduce.make_allreduce`."""
        return make_allreduce(config, world, layout, chosen)

    def replicate(self, tree: PyTree) -> PyTree:
        """Copies of these arrays on every local device."""
        return jax.device_put(tree, NamedSharding(self.mesh, PartitionSpec()))

    def place(self, batch: Batch) -> Batch:
        """Each local device's rows of a host batch, on that device."""
        return jax.device_put(batch, NamedSharding(self.mesh, PartitionSpec(AXIS)))

    def host_copy(self, state: TrainState) -> TrainState:
        """The state for one rank to save: itself, as Orbax copies it."""
        return state

    def train_step(
        self, task: Task, optimizer: optax.GradientTransformation, layout: Buckets, allreduce: BucketSum
    ) -> TrainStep:
        """The step; the state that goes in is given up.

        Args:
          task: the constants of forward and backward.
          optimizer: an optax chain.
          layout: the buckets of what `forward_backward` returns.
          allreduce: sums them over the ranks.
        """
        summed_locally = self._over_devices(lambda *args: forward_backward(task, *args))

        def local_buckets(params: PyTree, stats: PyTree, batch: Batch) -> list[jax.Array]:
            return layout.pack(summed_locally(params, stats, batch))

        def update(state: TrainState, buckets: list[jax.Array]) -> tuple[TrainState, dict[str, jax.Array]]:
            return apply_gradients(optimizer, state, layout.unpack(buckets))

        def fused(state: TrainState, batch: Batch) -> tuple[TrainState, dict[str, jax.Array]]:
            return update(state, allreduce(local_buckets(state.params, state.stats, batch)))

        if self.fused:
            return jax.jit(fused, donate_argnums=0)

        first, second, third = jax.jit(local_buckets), jax.jit(allreduce), jax.jit(update, donate_argnums=0)

        def staged(state: TrainState, batch: Batch) -> tuple[TrainState, dict[str, jax.Array]]:
            on_devices = first(state.params, state.stats, batch)
            on_host = jax.device_put([bucket.addressable_shards[0].data for bucket in on_devices], self.host)
            return third(state, self.replicate(second(on_host)))

        return staged

    def evaluate_step(self, task: Task) -> Callable[[PyTree, PyTree, Batch], dict[str, jax.Array]]:
        """Sums of loss and hits over this rank's batch, a host batch, see `step.evaluate_batch`."""
        step = jax.jit(self._over_devices(lambda *args: evaluate_batch(task, *args)))
        return lambda params, stats, batch: step(params, stats, self.place(batch))

    def _over_devices(self, of_device: Callable[[PyTree, PyTree, Batch], PyTree]) -> Callable[..., PyTree]:
        """Runs a function of (params, stats, batch) on every local device, and sums what comes out."""

        def on_device(params: PyTree, stats: PyTree, batch: Batch) -> PyTree:
            params, stats = as_varying((params, stats))
            return jax.lax.psum(of_device(params, stats, batch), AXIS)

        specs = (PartitionSpec(), PartitionSpec(), PartitionSpec(AXIS))
        return jax.shard_map(on_device, mesh=self.mesh, in_specs=specs, out_specs=PartitionSpec())
