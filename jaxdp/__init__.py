"""Synchronous data parallelism on MPI clusters, in JAX and Flax."""

import importlib
from typing import Any

__version__ = "0.1.0"
__all__ = ["allreduce", "average_gradients", "broadcast", "default_config", "run"]


def __getattr__(name: str) -> Any:
    """Imports the public functions when they are asked for: importing jaxdp alone brings neither JAX nor MPI."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = "jaxdp.config.defaults" if name == "default_config" else "jaxdp.api"
    return getattr(importlib.import_module(module), name)
