"""The C++ parts of jaxdp: the native allreduce engine and CPU kernels.

The engine sends the messages of many allreduces concurrently, overlapped with computation. `engine.h` documents it, and
`c_api.cc` defines the C functions that this module calls. The CPU kernels need no MPI: `rows.cc` copies rows of images,
`convolutions.cc` computes convolutions with oneDNN, `normalisation.cc` and `pooling.cc` implement layers of models, and
`ordering.cc` orders the parts of a program. `handlers` makes programs call them.
"""

from __future__ import annotations

import ctypes
import functools
import importlib.metadata
import importlib.util
from typing import Any

import numpy as np
from numpy.ctypeslib import ndpointer

_TABLE = ndpointer(np.int64, flags="C_CONTIGUOUS")
_ENGINE: dict[str, tuple[Any, list[Any]]] = {
    "jaxdp_open": (ctypes.c_void_p, [ctypes.c_int]),
    "jaxdp_serve_programs": (None, [ctypes.c_void_p]),
    "jaxdp_stop": (None, [ctypes.c_void_p]),
    "jaxdp_add_plan": (
        ctypes.c_int64,
        [
            *(ctypes.c_void_p, ctypes.c_char_p, ctypes.c_char_p, ctypes.c_int64, ctypes.c_int64),
            *(_TABLE, ctypes.c_int64, _TABLE, ctypes.c_int64, ctypes.c_int, ctypes.c_bool),
        ],
    ),
    "jaxdp_allreduce": (
        ctypes.c_int,
        [
            *(ctypes.c_void_p, ctypes.c_int64, ctypes.c_void_p, ctypes.c_void_p),
            *(ctypes.c_char_p, ctypes.c_int64),
        ],
    ),
    "jaxdp_events": (ctypes.c_int64, [ctypes.c_void_p, _TABLE, ctypes.c_int64, ctypes.c_int64]),
    "jaxdp_counts": (None, [ctypes.c_void_p, _TABLE]),
}
_ROWS: dict[str, tuple[Any, list[Any]]] = {
    "jaxdp_copy_rows": (
        ctypes.c_int,
        [
            *(ctypes.c_void_p, ctypes.c_int64, ctypes.c_void_p),
            *(ctypes.c_void_p, ctypes.c_int64, ctypes.c_void_p),
            *(ctypes.c_int64, ctypes.c_int64, ctypes.c_int),
        ],
    ),
}
_CONVOLUTIONS: dict[str, tuple[Any, list[Any]]] = {"jaxdp_has_bfloat16": (ctypes.c_bool, [])}
# Shared libraries that the convolutions need, as (package, file name); each comes after its own dependencies.
_SHARED = (
    ("tbb", "libtbb.so.12"),
    ("intel-cmplr-lib-rt", "libintlc.so.5"),
    ("intel-cmplr-lib-rt", "libimf.so"),
    ("onednn-cpu-tbb", "libdnnl.so.3"),
)


@functools.cache
def engine(mpi: str) -> ctypes.CDLL:
    """Loads the compiled allreduce engine.

    Args:
      mpi: name of the MPI library in use, as returned by `mpi4py.MPI.get_vendor`.

    Raises:
      ValueError: the engine has not been built for this MPI.
    """
    return _load(engine_path(mpi), _ENGINE)


def engine_path(mpi: str) -> str:
    """Returns the path of the shared library that `engine` loads, with the same argument and error."""
    return _path("_engine_openmpi" if mpi == "Open MPI" else "_engine_mpich", f" with {mpi}'s mpicc")


@functools.cache
def rows() -> ctypes.CDLL:
    """Loads the compiled function that copies rows.

    Raises:
      ValueError: it has not been built.
    """
    return _load(_path("_rows"), _ROWS)


@functools.cache
def layers() -> ctypes.CDLL:
    """Loads the compiled layers.

    Raises:
      ValueError: the layers have not been built.
    """
    return _load(_path("_layers"), {})


@functools.cache
def convolutions() -> ctypes.CDLL | None:
    """Loads the compiled convolutions; None if oneDNN is not installed, or was not when jaxdp was built."""
    shared = _shared()
    if shared is None:
        return None
    # Load the dependencies first, because the dynamic linker does not search the folders of Python packages.
    for path in shared:
        ctypes.CDLL(path)
    return _load(_path("_convolutions"), _CONVOLUTIONS)


def onednn() -> str | None:
    """Returns the version of oneDNN if it computes convolutions, None if not; loads nothing."""
    return importlib.metadata.version("onednn-cpu-tbb") if _shared() else None


def _shared() -> list[str] | None:
    """Returns the paths of the files of `_SHARED`; None unless they are installed and the convolutions are built."""
    if importlib.util.find_spec("jaxdp.native._convolutions") is None:
        return None
    paths = []
    for package, name in _SHARED:
        try:
            files = importlib.metadata.files(package) or []
        except importlib.metadata.PackageNotFoundError:
            return None
        found = next((file for file in files if file.name == name), None)
        if found is None:
            return None
        paths.append(str(found.locate()))
    return paths


def _path(name: str, by: str = "") -> str:
    found = importlib.util.find_spec(f"jaxdp.native.{name}")
    if found is None or found.origin is None:
        raise ValueError(f"the native part of jaxdp is not built{by}: run ./launch/setup (or pip install .)")
    return found.origin


def _load(path: str, functions: dict[str, tuple[Any, list[Any]]]) -> ctypes.CDLL:
    loaded = ctypes.CDLL(path)
    for function_name, (result, arguments) in functions.items():
        function = getattr(loaded, function_name)
        function.restype, function.argtypes = result, arguments
    return loaded
