"""C++: the native engine, which moves the messages of many allreduces at once, beside the computation; and rows.

`engine.h` says what the engine does, `doors.cc` holds the functions of it that this module calls; `rows.cc` copies rows
of images.
"""

from __future__ import annotations

import ctypes
import functools
import importlib.util

import numpy as np
from numpy.ctypeslib import ndpointer

_TABLE = ndpointer(np.int64, flags="C_CONTIGUOUS")
_SIGNATURES = {
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
    "jaxdp_copy_rows": (
        ctypes.c_int,
        [
            *(ctypes.c_void_p, ctypes.c_int64, ctypes.c_void_p),
            *(ctypes.c_void_p, ctypes.c_int64, ctypes.c_void_p),
            *(ctypes.c_int64, ctypes.c_int64, ctypes.c_int),
        ],
    ),
}


@functools.cache
def library() -> ctypes.CDLL:
    """The compiled library, its functions with their types.

    Raises:
      ValueError: it has not been built.
    """
    found = importlib.util.find_spec("jaxdp.native._engine")
    if found is None or found.origin is None:
        raise ValueError("the native part of jaxdp is not built: run ./launch/setup (or pip install .)")
    loaded = ctypes.CDLL(found.origin)
    for name, (result, arguments) in _SIGNATURES.items():
        function = getattr(loaded, name)
        function.restype, function.argtypes = result, arguments
    return loaded
