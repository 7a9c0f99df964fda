"""Checks that everything that sends messages in a job loads the same MPI library.

mpi4py loads its library at run time; mpi4jax and the native engine are linked to the library that they were built with.
With two libraries in one process, each has its own ranks, and messages between them are lost.
"""

from __future__ import annotations

import ctypes
import os
import pathlib
import re
import struct
from collections.abc import Iterator

# Constants and layouts of 64-bit ELF files (elf.h).
_PT_LOAD, _PT_DYNAMIC = 1, 2
_DT_NEEDED, _DT_STRTAB = 1, 5
_HEADER = struct.Struct("=16s2HI3QI6H")
_SEGMENT = struct.Struct("=2I6Q")
_ENTRY = struct.Struct("=qQ")

# Also matches the libraries of MPI's Fortran and C++ interfaces.
_MPI = re.compile(r"libmpi[^/]*\.so[.\d]*")


def loaded_library() -> str:
    """Returns the file name of the MPI library that this process has loaded; call it after importing mpi4py.MPI."""
    names = {pathlib.Path(line.split()[-1]).name for line in pathlib.Path("/proc/self/maps").read_text().splitlines()}
    return ", ".join(sorted(filter(_MPI.fullmatch, names))) or "none that is a shared library"


def other_library(binary: pathlib.Path) -> str | None:
    """Returns the MPI library that a shared library is linked to, unless it is the one that mpi4py has loaded.

    The dynamic linker takes a library that is loaded already for any that has the same name (SONAME), wherever its file
    is. A shared library that is linked to no shared MPI library, e.g. to a static one, cannot be judged.

    Args:
      binary: path of a shared library.

    Returns:
      The name of the other MPI library; None if the shared library uses the loaded one, or cannot be judged.
    """
    names = list(filter(_MPI.fullmatch, needed_libraries(binary)))
    return None if not names or any(map(_is_loaded, names)) else names[0]


def needed_libraries(binary: pathlib.Path) -> list[str]:
    """Returns the names of the libraries that a shared library is linked to, without loading it."""
    with binary.open("rb") as file:
        return list(_needed(file.read()))


def _needed(content: bytes) -> Iterator[str]:
    header = _HEADER.unpack_from(content)
    segments = [_SEGMENT.unpack_from(content, header[5] + index * header[9]) for index in range(header[10])]
    offset, size = next((segment[2], segment[5]) for segment in segments if segment[0] == _PT_DYNAMIC)
    entries = list(_ENTRY.iter_unpack(content[offset : offset + size]))
    names = next(value for tag, value in entries if tag == _DT_STRTAB)
    # The table of names is given by its address in memory.
    names += next(
        segment[2] - segment[3]
        for segment in segments
        if segment[0] == _PT_LOAD and segment[3] <= names < segment[3] + segment[5]
    )
    for tag, value in entries:
        if tag == _DT_NEEDED:
            start = names + value
            yield content[start : content.index(b"\0", start)].decode()


def _is_loaded(name: str) -> bool:
    try:
        ctypes.CDLL(name, mode=os.RTLD_NOLOAD)
    except OSError:
        return False
    return True
