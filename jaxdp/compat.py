"""All uses of private or version-dependent APIs of libc, JAX, mpi4jax, Orbax and TFDS."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import hashlib
import os
import pathlib
import re
import sys
from collections.abc import Iterator
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import jax
    from mpi4py import MPI

    from jaxdp.gpus import Share

# Parameters of glibc's mallopt (malloc.h).
_M_TRIM_THRESHOLD = -1
_M_MMAP_THRESHOLD = -3
_M_ARENA_MAX = -8
_LARGEST_INT = 2**31 - 1


# Excludes GPU operations that may sum in any order, and uses the same algorithms in every run instead of those that are
# the fastest in a trial (openxla.org, "Determinism (GPU)").
_DETERMINISTIC = "--xla_gpu_exclude_nondeterministic_ops=true --xla_gpu_autotune_level=0"


def keep_memory(*, arenas: int) -> None:
    """Makes the C library keep freed memory, because page faults on fresh buffers make large transfers twice as slow.

    Must be called before any other thread starts: the number of arenas cannot change afterwards.

    Args:
      arenas: number of malloc arenas that all threads share. With the C library's default (8 per core), memory grows
        with every thread that has ever saved a checkpoint. With fewer arenas than running threads, compilation takes
        1.7 times as long.
    """
    if hasattr(libc := ctypes.CDLL(None), "mallopt"):
        libc.mallopt(_M_MMAP_THRESHOLD, _LARGEST_INT)
        libc.mallopt(_M_TRIM_THRESHOLD, _LARGEST_INT)
        libc.mallopt(_M_ARENA_MAX, arenas)


def give_memory_back() -> None:
    """Returns free memory to the system, because training steps do not need the memory that a save has used."""
    if hasattr(libc := ctypes.CDLL(None), "malloc_trim"):
        libc.malloc_trim(0)


def prepare_process(*, threads: int, gpus: Share, deterministic: bool = False) -> None:
    """Applies process settings that only work before JAX opens its back ends: number of threads, and GPUs.

    XLA takes the size of its CPU thread pools from NPROC (default: every core that the process may use).

    Args:
      threads: number of CPU threads.
      gpus: GPUs that this process uses.
      deterministic: whether GPUs must give the same bits in every run.
    """
    os.environ["NPROC"] = str(threads)
    if deterministic:
        os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {_DETERMINISTIC}".strip()
    if gpus.names:
        os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(gpus.names)
    if gpus.ranks > 1:
        # By default JAX takes three quarters of a GPU's memory.
        os.environ.setdefault("XLA_PYTHON_CLIENT_MEM_FRACTION", f"{0.9 / gpus.ranks:.3f}")
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "1")


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


@contextlib.contextmanager
def orbax_alone() -> Iterator[None]:
    """Context in which Orbax runs in this process alone, however many processes JAX knows of (engine xla).

    Orbax has an option for this, active_processes, and its barriers respect it. Its comparison of directories does not
    (orbax-checkpoint 0.12) and would wait forever for all ranks.
    """
    import absl.logging
    from orbax.checkpoint import v1 as ocp
    from orbax.checkpoint._src.multihost import multihost as before_v1
    from orbax.checkpoint.experimental.v1._src.synchronization import multihost

    for module in (before_v1, multihost):
        module.process_count = _one
    # Orbax's threads log their exceptions with tracebacks; the result of the save raises the same exceptions.
    absl.logging.set_verbosity(absl.logging.FATAL)
    _ignore_late_writes()
    context = ocp.Context()
    context.multiprocessing.active_processes = {0}
    context.multiprocessing.barrier_sync_key_prefix = "jaxdp"
    with context:
        yield


def _one() -> int:
    return 1


@functools.cache
def _ignore_late_writes() -> None:
    """Silences errors from TensorStore threads that outlive a failed save."""
    tell = sys.unraisablehook

    def tell_others(found: sys.UnraisableHookArgs) -> None:
        if not (isinstance(found.exc_value, RuntimeError) and str(found.exc_value) == "Event loop is closed"):
            tell(found)

    sys.unraisablehook = tell_others


def import_tfds() -> ModuleType:
    """Imports TensorFlow Datasets without TensorFlow, and disables its progress bars and its advice on OpenCV."""
    import absl.logging
    import tensorflow_datasets as tfds

    tfds.disable_progress_bar()
    absl.logging.set_verbosity(absl.logging.ERROR)
    return tfds


def data_folder(given: str | pathlib.Path | None) -> pathlib.Path:
    """Returns the folder of the data sets: the given one, or TFDS's (TFDS_DATA_DIR, else ~/tensorflow_datasets)."""
    return pathlib.Path(given or import_tfds().core.constants.DATA_DIR).expanduser()


def prepared_builder(name: str, folder: pathlib.Path) -> Any | None:
    """Returns TFDS's builder of a data set prepared in this folder, or None if the data set is missing.

    Finds any prepared version unless one is named; TFDS alone only looks for the version in its own code.
    """
    tfds = import_tfds()
    version = {} if ":" in name else {"version": "*.*.*"}
    try:
        builder = tfds.builder(name, data_dir=folder, **version)
    except tfds.core.DatasetNotFoundError:
        return None
    return builder if builder.is_prepared() else None


def allreduce(payload: jax.Array, *, comm: MPI.Intracomm) -> jax.Array:
    """Sums an array over a communicator with mpi4jax (MPI_Allreduce), in jit on one device."""
    import mpi4jax
    from mpi4py import MPI

    return mpi4jax.allreduce(payload, op=MPI.SUM, comm=comm)


def send(payload: jax.Array, *, dest: int, comm: MPI.Intracomm) -> None:
    """Sends an array with mpi4jax (blocking), in jit on one device."""
    import mpi4jax

    mpi4jax.send(payload, dest=dest, comm=comm)


def recv(like: jax.Array, *, source: int, comm: MPI.Intracomm) -> jax.Array:
    """Receives an array of the shape and dtype of `like` with mpi4jax (blocking), in jit on one device."""
    import mpi4jax

    return mpi4jax.recv(like, source=source, comm=comm)


def sendrecv(payload: jax.Array, like: jax.Array, *, source: int, dest: int, comm: MPI.Intracomm) -> jax.Array:
    """Sends `payload` and receives an array like `like` with mpi4jax (blocking), in jit on one device."""
    import mpi4jax

    return mpi4jax.sendrecv(payload, like, source=source, dest=dest, comm=comm)
