"""Stages buckets through the host, for devices whose programs cannot send messages."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from jaxdp.collectives.allreduce import HostParts, gathered, scattered


@dataclasses.dataclass(frozen=True)
class Staging:
    """Moves buckets from the devices to the host, over the ranks, and back.

    Every local device sums its part of each bucket over all local devices, writes the part to pinned host memory over
    its own link, takes the sum over the ranks back, and gathers the parts of the other devices over the links between
    devices. No byte is copied within host memory before it is sent. On the way back to a GPU, XLA copies it through
    pinned memory.

    Attributes:
      mesh: one axis of the local devices.
      host: CPU device whose programs send messages.
    """

    mesh: jax.sharding.Mesh
    host: jax.Device

    @property
    def pinned(self) -> NamedSharding:
        """Sharding of the parts that a program on the devices leaves in pinned host memory."""
        return NamedSharding(self.mesh, PartitionSpec(self._axis), memory_kind="pinned_host")

    def scatter(self, buckets: Sequence[jax.Array]) -> list[jax.Array]:
        """Inside shard_map: this device's part of each bucket, summed over the devices."""
        return scattered(buckets, self._axis, self.mesh.size)

    def gather(self, parts: Sequence[jax.Array], sizes: Sequence[int]) -> list[jax.Array]:
        """Inside jit: gathers each device's parts into whole buckets, of `sizes` elements, on every device."""
        return jax.shard_map(
            lambda mine: gathered(mine, sizes, self._axis),
            mesh=self.mesh,
            in_specs=PartitionSpec(self._axis),
            out_specs=PartitionSpec(),
        )(list(parts))

    def take(self, parts: Sequence[jax.Array]) -> HostParts:
        """Waits for the parts in pinned memory and hands them to programs on the host."""
        views = [[np.asarray(shard.data) for shard in bucket.addressable_shards] for bucket in parts]
        return jax.device_put(views, self.host)

    def give(self, parts: Sequence[Sequence[jax.Array | np.ndarray]]) -> list[jax.Array]:
        """Puts the parts onto the devices, each as soon as it is ready."""
        placed = NamedSharding(self.mesh, PartitionSpec(self._axis))
        return [
            jax.make_array_from_single_device_arrays(
                (sum(part.size for part in bucket),),
                placed,
                [jax.device_put(part, device) for part, device in zip(bucket, self.mesh.devices.flat, strict=True)],
            )
            for bucket in parts
        ]

    @property
    def _axis(self) -> str:
        (axis,) = self.mesh.axis_names
        return axis
