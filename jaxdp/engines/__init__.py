"""Where arrays live, and how a step becomes programs: one engine a job, chosen in the config.

`native` and `mpi4jax` keep to the devices of their rank and send messages between ranks; `xla` spans all devices of all
ranks and leaves what crosses between them to JAX.
"""

from __future__ import annotations

from jaxdp.engines.distributed import DistributedEngine
from jaxdp.engines.local import LocalEngine
from jaxdp.world import World

Engine = LocalEngine | DistributedEngine


def make_engine(name: str, world: World) -> Engine:
    """The engine of this name; it is made before any array, as `xla` settles which devices there are."""
    return DistributedEngine.create() if name == "xla" else LocalEngine.create(name, world.size)
