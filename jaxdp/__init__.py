"""Synchronous data parallelism on MPI clusters, in JAX and Flax."""

from typing import Any

__version__ = "0.1.0"
__all__ = ["allreduce", "average_gradients", "broadcast", "run"]


def __getattr__(name: str) -> Any:
    """What training loops of one's own use; imported when it is asked for, as it brings JAX along."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from jaxdp import api

    return getattr(api, name)
