"""Every private or version-fragile touch of the C library, JAX and mpi4jax."""

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


# GPUs then take no operation whose sums may be in any order, and the same algorithms in every run, not whichever is the
# fastest in a trial (openxla.org, "Determinism (GPU)").
_DETERMINISTIC = "--xla_gpu_exclude_nondeterministic_ops=true --xla_gpu_autotune_level=0"


def keep_memory(*, arenas: int) -> None:
    """Has the C library keep what is freed, as page faults on fresh buffers make large transfers twice as slow.

    Before there is any thread but this one, which settles the number of arenas.

    Args:
      arenas: that all threads share. As many as the C library takes by itself (8 a core) grow with every thread that
        has ever saved a checkpoint; with fewer than threads that run, compiling takes 1.7 times as long.
    """
    if hasattr(libc := ctypes.CDLL(None), "mallopt"):
        libc.mallopt(_M_MMAP_THRESHOLD, _LARGEST_INT)
        libc.mallopt(_M_TRIM_THRESHOLD, _LARGEST_INT)
        libc.mallopt(_M_ARENA_MAX, arenas)


def give_memory_back() -> None:
    """Returns what is free to the system, as no allocation of a step needs what a save has used."""
    if hasattr(libc := ctypes.CDLL(None), "malloc_trim"):
        libc.malloc_trim(0)


def prepare_process(*, threads: int, gpus: Share, deterministic: bool = False) -> None:
    """Settings of the process that work only before JAX opens its back ends: number of threads, and GPUs.

    XLA takes the size of its CPU thread pools from NPROC (its default is every core the process may use).

    Args:
      threads: on CPUs.
      gpus: that it takes.
      deterministic: whether these are to give the same bits in every run.
    """
    os.environ["NPROC"] = str(threads)
    if deterministic:
        os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {_DETERMINISTIC}".strip()
    if gpus.names:
        os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(gpus.names)
    if gpus.ranks > 1:
        # JAX takes three quarters of a GPU's memory unless told otherwise.
        os.environ.setdefault("XLA_PYTHON_CLIENT_MEM_FRACTION", f"{0.9 / gpus.ranks:.3f}")
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "1")


def back_ends_are_open() -> bool:
    """Whether JAX has looked for devices: it is too late for settings of the process then."""
    from jax._src import xla_bridge

    return xla_bridge.backends_are_initialized()


def use_compilation_cache(*, rank: int, size: int) -> None:
    """Keeps compiled programs in the user's cache folder (JAXDP_CACHE_DIR, else ~/.cache/jaxdp).

    The fused step holds this rank's own messages, so each rank has its programs to itself, and no two
    ranks write one file. XLA compiles for the features of the CPU and for the number of threads, which its
    own key leaves out: they are in the name of the folder.
    """
    import jax

    cpu = re.findall("^(?:flags|Features).*", pathlib.Path("/proc/cpuinfo").read_text(), re.MULTILINE)[:1]
    kind = hashlib.sha256(f"{cpu} {os.environ.get('NPROC')}".encode()).hexdigest()[:12]
    home = os.environ.get("JAXDP_CACHE_DIR") or pathlib.Path.home() / ".cache" / "jaxdp"
    jax.config.update("jax_compilation_cache_dir", str(pathlib.Path(home, kind, f"{rank}-of-{size}")))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", 0)


def initialize_distributed() -> None:
    """Has JAX connect all ranks of MPI_COMM_WORLD: they share one mesh from then on. Before any use of a device."""
    import jax

    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.distributed.initialize(cluster_detection_method="mpi4py")


@contextlib.contextmanager
def orbax_alone() -> Iterator[None]:
    """Orbax in this process alone, whatever number of processes JAX knows of (the engine xla).

    Its own option for that, active_processes, is heeded by its barriers, but not by its comparison of directories
    (orbax-checkpoint 0.12), which would wait for all ranks for ever.
    """
    import absl.logging
    from orbax.checkpoint import v1 as ocp
    from orbax.checkpoint._src.multihost import multihost as before_v1
    from orbax.checkpoint.experimental.v1._src.synchronization import multihost

    for module in (before_v1, multihost):
        module.process_count = _one
    # Its threads log what they raise, each with a traceback; it comes out of a save's result too.
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
    """Has nothing said of writes of TensorStore's threads that end after the save that they were part of has failed."""
    tell = sys.unraisablehook

    def tell_others(found: sys.UnraisableHookArgs) -> None:
        if not (isinstance(found.exc_value, RuntimeError) and str(found.exc_value) == "Event loop is closed"):
            tell(found)

    sys.unraisablehook = tell_others


def import_tfds() -> ModuleType:
    """TensorFlow Datasets without TensorFlow, and without its progress bars and its advice on OpenCV."""
    import absl.logging
    import tensorflow_datasets as tfds

    tfds.disable_progress_bar()
    absl.logging.set_verbosity(absl.logging.ERROR)
    return tfds


def data_folder(given: str | pathlib.Path | None) -> pathlib.Path:
    """Where data sets are: the folder given, or TFDS's own (TFDS_DATA_DIR, else ~/tensorflow_datasets)."""
    return pathlib.Path(given or import_tfds().core.constants.DATA_DIR).expanduser()


def prepared_builder(name: str, folder: pathlib.Path) -> Any | None:
    """TFDS's builder of a data set in this folder, None if it is not there.

    Of any version, as far as none is named: by itself TFDS looks for that of its own code alone.
    """
    tfds = import_tfds()
    version = {} if ":" in name else {"version": "*.*.*"}
    try:
        builder = tfds.builder(name, data_dir=folder, **version)
    except tfds.core.DatasetNotFoundError:
        return None
    return builder if builder.is_prepared() else None


def allreduce(payload: jax.Array, *, comm: MPI.Intracomm) -> jax.Array:
    """mpi4jax's sum over a communicator, by MPI_Allreduce, in jit on one device."""
    import mpi4jax
    from mpi4py import MPI

    return mpi4jax.allreduce(payload, op=MPI.SUM, comm=comm)


def send(payload: jax.Array, *, dest: int, comm: MPI.Intracomm) -> None:
    """mpi4jax's blocking send, in jit on one device."""
    import mpi4jax

    mpi4jax.send(payload, dest=dest, comm=comm)


def recv(like: jax.Array, *, source: int, comm: MPI.Intracomm) -> jax.Array:
    """mpi4jax's blocking receive of an array like this one, in jit on one device."""
    import mpi4jax

    return mpi4jax.recv(like, source=source, comm=comm)


def sendrecv(payload: jax.Array, like: jax.Array, *, source: int, dest: int, comm: MPI.Intracomm) -> jax.Array:
    """mpi4jax's blocking exchange, in jit on one device: sends the payload, receives an array like `like`."""
    import mpi4jax

    return mpi4jax.sendrecv(payload, like, source=source, dest=dest, comm=comm)
