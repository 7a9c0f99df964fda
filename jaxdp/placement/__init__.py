"""Engines decide where arrays live and how a step is compiled; a job uses one engine, chosen in the config.

`native` and `mpi4jax` use the devices of their own rank and send messages between ranks. `xla` spans all devices of all
ranks and leaves the communication to JAX.
"""

from __future__ import annotations

from jaxdp.placement.distributed import DistributedPlacement
from jaxdp.placement.local import LocalPlacement
from jaxdp.runtime.world import World

Placement = LocalPlacement | DistributedPlacement


def make_placement(name: str, world: World) -> Placement:
    """Creates the engine of this name. Call it before creating any array: `xla` determines which devices exist."""
    return DistributedPlacement.create() if name == "xla" else LocalPlacement.create(name, world.size)
