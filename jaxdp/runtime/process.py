"""Settings of this process that must come before JAX opens its back ends."""

from __future__ import annotations

import ctypes
import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from jaxdp.runtime.gpus import Share


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
