"""Synchronous data parallelism on MPI clusters, in JAX and Flax."""

from typing import Any

__version__ = "0.1.0"
__all__ = ["allreduce", "average_gradients", "broadcast", "run"]


def __getattr__(name: str) -> Any:
    """Imports the API for custom training loops on first use, because it imports JAX."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from jaxdp import api

    return getattr(api, name)
