"""The engines `native` and `mpi4jax`: a mesh of this rank's own devices, with messages between ranks."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import jax
import optax
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from jaxdp.collectives.allreduce import BucketSum, make_allreduce
from jaxdp.collectives.batch_sum import make_batch_sums
from jaxdp.collectives.buckets import Buckets
from jaxdp.data.batch import Batch
from jaxdp.placement.staging import Staging
from jaxdp.step.evaluate import evaluate_batch
from jaxdp.step.forward_backward import forward_backward
from jaxdp.step.state import TrainState
from jaxdp.step.task import BatchSum, Task
from jaxdp.step.update import apply_gradients

if TYPE_CHECKING:
    from jaxdp.collectives.config import AllreduceConfig
    from jaxdp.runtime.world import World

PyTree = Any
TrainStep = Callable[[TrainState, Batch], tuple[TrainState, dict[str, jax.Array]]]

AXIS = "device"
_REPLICATED = PartitionSpec()


def over_devices(
    mesh: jax.sharding.Mesh,
    of_device: Callable[[PyTree, PyTree, Batch], PyTree],
    summed: Callable[[PyTree], PyTree],
    out: PartitionSpec = _REPLICATED,
) -> Callable[[PyTree, PyTree, Batch], PyTree]:
    """Runs a function of (params, stats, batch) on every device of a mesh and sums its results with `summed`."""

    def on_device(params: PyTree, stats: PyTree, batch: Batch) -> PyTree:
        # Mark the parameters as device-varying, so that JAX does not sum their gradients over the devices: they are
        # summed once, together with all other values of the step.
        params, stats = jax.tree.map(lambda leaf: jax.lax.pcast(leaf, AXIS, to="varying"), (params, stats))
        return summed(of_device(params, stats, batch))

    specs = (_REPLICATED, _REPLICATED, PartitionSpec(AXIS))
    return jax.shard_map(on_device, mesh=mesh, in_specs=specs, out_specs=out)


def packed_buckets(task: Task, layout: Buckets, params: PyTree, stats: PyTree, batch: Batch) -> list[jax.Array]:
    """Returns one device's contributions to the values that a step sums, in buckets."""
    return layout.pack(forward_backward(task, params, stats, batch))


@dataclasses.dataclass(frozen=True)
class LocalPlacement:
    """A mesh of this rank's own devices; ranks exchange messages inside jit on CPU devices.

    State is replicated over the mesh, and batches are split over it.

    Attributes:
      name: "native" or "mpi4jax".
      mesh: one axis of the local devices.
      host: CPU device whose programs exchange buckets between ranks if the step is not fused.
      fused: whether the whole step is one program. The native engine works in programs on any number of CPU devices,
        mpi4jax only in programs on one CPU device. Otherwise the step is three programs, and buckets are staged through
        the host, see `Staging`.
    """

    name: str
    mesh: jax.sharding.Mesh
    host: jax.Device
    fused: bool

    @classmethod
    def create(cls, name: str, num_ranks: int, devices: Sequence[jax.Device] | None = None) -> LocalPlacement:
        """The engine of one of `num_ranks` ranks, over devices of one platform; None uses all local devices."""
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
        return f"{self.num_devices} x {device.device_kind} per rank, step {'fused' if self.fused else 'staged'}"

    def make_allreduce(
        self, config: AllreduceConfig, world: World, layout: Buckets, chosen: dict[str, Any] | None
    ) -> BucketSum:
        """Makes the allreduce of the buckets over the ranks, see `collectives.allreduce.make_allreduce`."""
        return make_allreduce(config, world, layout, chosen, axis=AXIS, parts=self.num_devices)

    def make_batch_sums(self, world: World) -> Callable[[], BatchSum] | None:
        """Makes the sums over all devices of all ranks that a forward pass needs, see `Task.batch_sums`.

        Returns None if the job has a single device. Messages inside a forward pass need a fused step; without one, the
        job ends with a message.
        """
        with world.agree_or_exit():
            if not self.fused:
                raise ValueError(
                    f"config.batch_statistics 'world' does not work with the engine {self.name!r} on "
                    f"{self.num_devices} x {self.mesh.devices.flat[0].device_kind} per rank, where it sums gradients "
                    "through the host after the backward pass: set config.allreduce.engine to 'xla'"
                )
        if world.size * self.num_devices == 1:
            return None
        return make_batch_sums(self.name, world, axis=AXIS, num_devices=self.num_devices)

    def replicate(self, tree: PyTree) -> PyTree:
        """Copies arrays to every local device."""
        return jax.device_put(tree, NamedSharding(self.mesh, _REPLICATED))

    def place(self, batch: Batch) -> Batch:
        """Puts each local device's rows of a host batch onto that device."""
        return jax.device_put(batch, NamedSharding(self.mesh, PartitionSpec(AXIS)))

    def host_copy(self, state: TrainState) -> TrainState:
        """The state to be saved by one rank: unchanged, because Orbax copies it."""
        return state

    def train_step(
        self, task: Task, optimizer: optax.GradientTransformation, layout: Buckets, allreduce: BucketSum
    ) -> TrainStep:
        """Builds the training step, which donates the state that it is given.

        Args:
          task: the constants of the training step.
          optimizer: an optax chain.
          layout: buckets of the values that `forward_backward` returns.
          allreduce: sums the buckets over the ranks.
        """
        if not self.fused:
            return self._staged_step(task, optimizer, layout, allreduce)
        if allreduce.needs_buckets:
            summed = self._summed_buckets(task, layout, allreduce)

            def reduced(state: TrainState, batch: Batch) -> PyTree:
                return layout.unpack(summed(state.params, state.stats, batch))
        else:

            def reduced(state: TrainState, batch: Batch) -> PyTree:
                return forward_backward(task, state.params, state.stats, batch)

        return jax.jit(
            lambda state, batch: apply_gradients(task, optimizer, state, reduced(state, batch)), donate_argnums=0
        )

    def _summed_buckets(
        self, task: Task, layout: Buckets, allreduce: BucketSum
    ) -> Callable[[PyTree, PyTree, Batch], list[jax.Array]]:
        """Returns the function of (params, stats, batch) that computes buckets and sums them over devices and ranks."""
        buckets_of = functools.partial(packed_buckets, task, layout)
        if not allreduce.sums_devices:
            of_rank = over_devices(self.mesh, buckets_of, lambda buckets: jax.lax.psum(buckets, AXIS))
            return lambda *state_and_batch: allreduce(of_rank(*state_and_batch))
        if self.num_devices > 1:
            return over_devices(self.mesh, buckets_of, allreduce)
        # With one device the sum over devices is left out: XLA would combine the sums of all buckets, and no bucket
        # could be sent before the last one is ready.
        return lambda *state_and_batch: allreduce(buckets_of(*state_and_batch))

    def _staged_step(
        self, task: Task, optimizer: optax.GradientTransformation, layout: Buckets, allreduce: BucketSum
    ) -> TrainStep:
        """Builds the training step whose buckets pass through the host, see `Staging`."""
        staging = Staging(self.mesh, self.host)
        sizes = [bucket.size for bucket in layout.buckets]
        buckets_of = functools.partial(packed_buckets, task, layout)
        forward = jax.jit(
            over_devices(self.mesh, buckets_of, staging.scatter, out=PartitionSpec(AXIS)), out_shardings=staging.pinned
        )
        cross = allreduce.of_host_parts()
        back = jax.jit(
            lambda state, parts: apply_gradients(task, optimizer, state, layout.unpack(staging.gather(parts, sizes))),
            donate_argnums=0,
        )

        def staged(state: TrainState, batch: Batch) -> tuple[TrainState, dict[str, jax.Array]]:
            parts = cross(staging.take(forward(state.params, state.stats, batch)))
            return back(state, staging.give(parts))

        return staged

    def evaluate_step(self, task: Task) -> Callable[[PyTree, PyTree, Batch], dict[str, jax.Array]]:
        """Builds the function that sums loss and hits over a rank's host batch, see `step.evaluate.evaluate_batch`."""
        evaluate = functools.partial(evaluate_batch, task)
        step = jax.jit(over_devices(self.mesh, evaluate, lambda sums: jax.lax.psum(sums, AXIS)))
        return lambda params, stats, batch: step(params, stats, self.place(batch))
