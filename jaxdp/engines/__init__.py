"""Engines decide where arrays live and how a step is compiled; a job uses one engine, chosen in the config.

`native` and `mpi4jax` use the devices of their own rank and send messages between ranks. `xla` spans all devices of all
ranks and leaves the communication to JAX.
"""

from __future__ import annotations

from jaxdp.engines.distributed import DistributedEngine
from jaxdp.engines.local import LocalEngine
from jaxdp.world import World

Engine = LocalEngine | DistributedEngine


def make_engine(name: str, world: World) -> Engine:
    """Creates the engine of this name. Call it before creating any array: `xla` determines which devices exist."""
    return DistributedEngine.create() if name == "xla" else LocalEngine.create(name, world.size)
