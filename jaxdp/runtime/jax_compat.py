"""All uses of private or version-dependent APIs of JAX and mpi4jax."""

from __future__ import annotations

import hashlib
import importlib.util
import os
import pathlib
import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from types import ModuleType

    import jax
    from mpi4py import MPI


def back_ends_are_open() -> bool:
    """Whether JAX has opened its back ends, so that process settings no longer take effect."""
    from jax._src import xla_bridge

    return xla_bridge.backends_are_initialized()


def use_compilation_cache(*, rank: int, size: int) -> None:
    """Caches compiled programs in the user's cache folder (JAXDP_CACHE_DIR, else ~/.cache/jaxdp).

    The fused step contains this rank's messages, so each rank has its own cache folder and no two ranks write the same
    file. XLA compiles for the CPU's features and the number of threads, but its cache key leaves both out. A hash of
    them is therefore part of the folder's name.
    """
    import jax

    cpu = re.findall("^(?:flags|Features).*", pathlib.Path("/proc/cpuinfo").read_text(), re.MULTILINE)[:1]
    kind = hashlib.sha256(f"{cpu} {os.environ.get('NPROC')}".encode()).hexdigest()[:12]
    home = os.environ.get("JAXDP_CACHE_DIR") or pathlib.Path.home() / ".cache" / "jaxdp"
    jax.config.update("jax_compilation_cache_dir", str(pathlib.Path(home, kind, f"{rank}-of-{size}")))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", 0)


def initialize_distributed() -> None:
    """Connects all ranks of MPI_COMM_WORLD in JAX, so that they share one mesh. Must precede any use of a device."""
    import jax

    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.distributed.initialize(cluster_detection_method="mpi4py")


def mpi4jax_binaries() -> list[pathlib.Path]:
    """Returns the shared libraries of mpi4jax, without importing it."""
    found = importlib.util.find_spec("mpi4jax")
    folders = [] if found is None else found.submodule_search_locations or []
    return [path for folder in folders for path in sorted(pathlib.Path(folder).rglob("*.so"))]


def _mpi4jax() -> ModuleType:
    """Imports mpi4jax, without its warning that JAX is newer than the last version it names (tests cover the pair)."""
    os.environ.setdefault("MPI4JAX_NO_WARN_JAX_VERSION", "1")
    import mpi4jax

    return mpi4jax


def allreduce(payload: jax.Array, *, comm: MPI.Intracomm) -> jax.Array:
    """Sums an array over a communicator with mpi4jax (MPI_Allreduce), in jit on one device."""
    from mpi4py import MPI

    return _mpi4jax().allreduce(payload, op=MPI.SUM, comm=comm)


def send(payload: jax.Array, *, dest: int, comm: MPI.Intracomm) -> None:
    """Sends an array with mpi4jax (blocking), in jit on one device."""
    _mpi4jax().send(payload, dest=dest, comm=comm)


def recv(like: jax.Array, *, source: int, comm: MPI.Intracomm) -> jax.Array:
    """Receives an array of the shape and dtype of `like` with mpi4jax (blocking), in jit on one device."""
    return _mpi4jax().recv(like, source=source, comm=comm)


def sendrecv(payload: jax.Array, like: jax.Array, *, source: int, dest: int, comm: MPI.Intracomm) -> jax.Array:
    """Sends `payload` and receives an array like `like` with mpi4jax (blocking), in jit on one device."""
    return _mpi4jax().sendrecv(payload, like, source=source, dest=dest, comm=comm)
