"""Checks that an engine has been built with the MPI library that mpi4py has loaded."""

from __future__ import annotations

import pathlib
from typing import TYPE_CHECKING

from jaxdp import native
from jaxdp.runtime import jax_compat, mpi_libraries

if TYPE_CHECKING:
    from jaxdp.runtime.world import World

_REMEDIES = {
    "native": "run `pip install --no-cache-dir --no-deps --force-reinstall .` in a checkout of jaxdp",
    "mpi4jax": "run `pip install --no-cache-dir --no-deps --force-reinstall mpi4jax`",
}


def agree_on_library(engine: str, world: World) -> None:
    """Ends the job with one message unless the engine uses mpi4py's MPI library; all ranks must call it together.

    A single process sends nothing, so its engine may use any library.

    Args:
      engine: "native", "mpi4jax", or "xla", which sends its messages without MPI.
      world: all ranks.
    """
    if engine == "xla" or world.size == 1:
        return
    with world.agree_or_exit():
        check_library(engine)


def check_library(engine: str) -> None:
    """Checks that an engine uses the MPI library that mpi4py has loaded.

    Messages of an engine with another library would get lost, or its sums would be wrong without any error.

    Args:
      engine: "native" or "mpi4jax".

    Raises:
      ValueError: the engine is linked to another MPI library, or the native engine is not built for this MPI.
    """
    from mpi4py import MPI

    mpi = MPI.get_vendor()[0]
    binaries = [pathlib.Path(native.engine_path(mpi))] if engine == "native" else jax_compat.mpi4jax_binaries()
    others = [library for binary in binaries if (library := mpi_libraries.other_library(binary))]
    if others:
        raise ValueError(
            f"engine {engine} is built for the MPI library {others[0]}, but mpi4py has loaded "
            f"{mpi_libraries.loaded_library()} ({mpi}): with the mpicc of {mpi} first on the PATH, {_REMEDIES[engine]}"
        )
