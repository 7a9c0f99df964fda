"""C++: the native engine, which moves the messages of many allreduces at once, beside the computation; and more.

`engine.h` says what the engine does, `doors.cc` holds the functions of it that this module calls. These need no MPI:
`rows.cc` copies rows of images, `convolutions.cc` has oneDNN compute convolutions, `normalisation.cc` and `pooling.cc`
are layers of models.
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
# Libraries that it is linked with, by the packages that bring them, in the order of their needs.
_SHARED = (
    ("tbb", "libtbb.so.12"),
    ("intel-cmplr-lib-rt", "libintlc.so.5"),
    ("intel-cmplr-lib-rt", "libimf.so"),
    ("onednn-cpu-tbb", "libdnnl.so.3"),
)


@functools.cache
def engine(mpi: str) -> ctypes.CDLL:
    """The compiled engine, its functions with their types.

    Args:
      mpi: name of the MPI library that is open, as `mpi4py.MPI.get_vendor` has it.

    Raises:
      ValueError: it has not been built for this MPI.
    """
    return _load("_engine_openmpi" if mpi == "Open MPI" else "_engine_mpich", _ENGINE, f" with {mpi}'s mpicc")


@functools.cache
def rows() -> ctypes.CDLL:
    """The compiled copies of rows.

    Raises:
      ValueError: they have not been built.
    """
    return _load("_rows", _ROWS, "")


@functools.cache
def layers() -> ctypes.CDLL:
    """The compiled layers.

    Raises:
      ValueError: they have not been built.
    """
    return _load("_layers", {}, "")


@functools.cache
def convolutions() -> ctypes.CDLL | None:
    """The compiled convolutions; None where oneDNN is not installed, or was not when this was built."""
    shared = _shared()
    if shared is None:
        return None
    # What ours asks for by name is then there; the linker would not look where the packages are.
    for path in shared:
        ctypes.CDLL(path)
    return _load("_convolutions", _CONVOLUTIONS, "")


def onednn() -> str | None:
    """The version of oneDNN, where convolutions are its; loads nothing."""
    return importlib.metadata.version("onednn-cpu-tbb") if _shared() else None


def _shared() -> list[str] | None:
    """The files of `_SHARED`; None unless all are there, and what is linked with them."""
    if importlib.util.find_spec("jaxdp.native._convolutions") is None:
        return None
    try:
        return [
            str(next(file for file in importlib.metadata.files(package) or [] if file.name == name).locate())
            for package, name in _SHARED
        ]
    except importlib.metadata.PackageNotFoundError:
        return None


def _load(name: str, functions: dict[str, tuple[Any, list[Any]]], by: str) -> ctypes.CDLL:
    found = importlib.util.find_spec(f"jaxdp.native.{name}")
    if found is None or found.origin is None:
        raise ValueError(f"the native part of jaxdp is not built{by}: run ./launch/setup (or pip install .)")
    loaded = ctypes.CDLL(found.origin)
    for function_name, (result, arguments) in functions.items():
        function = getattr(loaded, function_name)
        function.restype, function.argtypes = result, arguments
    return loaded
