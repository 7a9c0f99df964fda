"""A mesh of this rank's own devices, with messages between ranks: the engines `native` and `mpi4jax`."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import jax
import optax
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from jaxdp.collectives.allreduce import BlockingAllreduce, BucketSum, NativeAllreduce, make_allreduce
from jaxdp.collectives.batch_sum import make_batch_sums
from jaxdp.collectives.buckets import Buckets
from jaxdp.engines.staging import Staging
from jaxdp.state import TrainState
from jaxdp.step import Batch, BatchSum, Task, apply_gradients, evaluate_batch, forward_backward

if TYPE_CHECKING:
    from jaxdp.config import AllreduceConfig
    from jaxdp.world import World

PyTree = Any
TrainStep = Callable[[TrainState, Batch], tuple[TrainState, dict[str, jax.Array]]]

AXIS = "device"
_REPLICATED = PartitionSpec()


def as_varying(tree: PyTree) -> PyTree:
    """Inside shard_map: the same values, whose gradients stay each device's own, to be summed once with the rest."""
    return jax.tree.map(lambda leaf: jax.lax.pcast(leaf, AXIS, to="varying"), tree)


@dataclasses.dataclass(frozen=True)
class LocalEngine:
    """A mesh of this rank's own devices; between ranks, messages inside jit on CPU devices.

    State is replicated over the mesh, batches are split over it.

    Attributes:
      name: "native" or "mpi4jax".
      mesh: the local devices, one axis.
      host: the device on which buckets cross between ranks when the step is not fused.
      fused: whether the whole step is one program. The native engine works in programs on any number of CPU devices,
        mpi4jax only in those on one. Otherwise the step is three programs, and buckets pass by the host, see `Staging`.
    """

    name: str
    mesh: jax.sharding.Mesh
    host: jax.Device
    fused: bool

    @classmethod
    def create(cls, name: str, num_ranks: int, devices: Sequence[jax.Device] | None = None) -> LocalEngine:
        """The engine of one of so many ranks, over these devices of one platform; without them over all local ones."""
        devices = jax.local_devices() if devices is None else devices
        mesh = jax.make_mesh((len(devices),), (AXIS,), axis_types=(AxisType.Auto,), devices=devices)
        on_cpu = devices[0].platform == "cpu"
        return cls(
            name=name,
            mesh=mesh,
            host=jax.local_devices(backend="cpu")[0],
            fused=num_ranks == 1 or (on_cpu and (name == "native" or len(devices) == 1)),
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
    ) -> BlockingAllreduce | NativeAllreduce:
        """What sums the buckets over the ranks, see `collectives.allreduce.make_allreduce`."""
        return make_allreduce(config, world, layout, chosen, axis=AXIS, parts=self.num_devices)

    def make_batch_sums(self, world: World) -> Callable[[], BatchSum] | None:
        """What sums arrays over all devices of all ranks in a forward pass, see `Task`; None if there is one device.

        Messages inside a forward pass take a step that is one program; one of three ends the job with a message.
        """
        with world.together():
            if not self.fused:
                raise ValueError(
                    f"the engine {self.name!r} has buckets of gradients cross between {self.num_devices} x "
                    f"{self.mesh.devices.flat[0].device_kind} a rank through the host, behind the backward pass: "
                    "config.batch_statistics 'world' needs config.allreduce.engine 'xla' here"
                )
        if world.size * self.num_devices == 1:
            return None
        return make_batch_sums(self.name, world, axis=AXIS, num_devices=self.num_devices)

    def replicate(self, tree: PyTree) -> PyTree:
        """Copies of these arrays on every local device."""
        return jax.device_put(tree, NamedSharding(self.mesh, _REPLICATED))

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

        def local(params: PyTree, stats: PyTree, batch: Batch) -> list[jax.Array]:
            return layout.pack(forward_backward(task, params, stats, batch))

        def update(state: TrainState, buckets: list[jax.Array]) -> tuple[TrainState, dict[str, jax.Array]]:
            return apply_gradients(task, optimizer, state, layout.unpack(buckets))

        if isinstance(allreduce, NativeAllreduce) and allreduce.is_nothing:
            # Nobody to sum with: no bucket is packed.
            return jax.jit(
                lambda state, batch: apply_gradients(
                    task, optimizer, state, forward_backward(task, state.params, state.stats, batch)
                ),
                donate_argnums=0,
            )
        if self.fused and isinstance(allreduce, NativeAllreduce):
            # With one device there is no sum over devices: XLA would make one of those of all buckets, and none could
            # cross before the last is there.
            everywhere = (
                (lambda *args: allreduce(local(*args)))
                if self.num_devices == 1
                else self._over_devices(local, allreduce)
            )
            return jax.jit(
                lambda state, batch: update(state, everywhere(state.params, state.stats, batch)), donate_argnums=0
            )

        if self.fused:
            here = self._over_devices(local, lambda buckets: jax.lax.psum(buckets, AXIS))
            return jax.jit(
                lambda state, batch: update(state, allreduce(here(state.params, state.stats, batch))), donate_argnums=0
            )

        staging = Staging(self.mesh, self.host)
        sizes = [bucket.size for bucket in layout.buckets]
        forward = jax.jit(
            self._over_devices(local, staging.scatter, out=PartitionSpec(AXIS)), out_shardings=staging.pinned
        )
        cross = staging.crossing(allreduce)
        back = jax.jit(lambda state, parts: update(state, staging.gather(parts, sizes)), donate_argnums=0)

        def staged(state: TrainState, batch: Batch) -> tuple[TrainState, dict[str, jax.Array]]:
            parts = cross(staging.take(forward(state.params, state.stats, batch)))
            return back(state, staging.give(parts))

        return staged

    def evaluate_step(self, task: Task) -> Callable[[PyTree, PyTree, Batch], dict[str, jax.Array]]:
        """Sums of loss and hits over this rank's batch, a host batch, see `step.evaluate_batch`."""
        step = jax.jit(
            self._over_devices(lambda *args: evaluate_batch(task, *args), lambda sums: jax.lax.psum(sums, AXIS))
        )
        return lambda params, stats, batch: step(params, stats, self.place(batch))

    def _over_devices(
        self,
        of_device: Callable[[PyTree, PyTree, Batch], PyTree],
        summed: Callable[[PyTree], PyTree],
        out: PartitionSpec = _REPLICATED,
    ) -> Callable[..., PyTree]:
        """Runs a function of (params, stats, batch) on every local device, and sums what comes out."""

        def on_device(params: PyTree, stats: PyTree, batch: Batch) -> PyTree:
            params, stats = as_varying((params, stats))
            return summed(of_device(params, stats, batch))

        specs = (_REPLICATED, _REPLICATED, PartitionSpec(AXIS))
        return jax.shard_map(on_device, mesh=self.mesh, in_specs=specs, out_specs=out)
