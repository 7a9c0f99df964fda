"""Builds jaxdp/native, with the engine for the MPI of the compiler wrapper $MPICC, or else mpicc on the PATH."""

import importlib.util
import os
import pathlib
import shlex
import subprocess
import tempfile
from importlib.metadata import PackageNotFoundError, distribution

from setuptools import Extension, setup


def mpicc(*arguments: str) -> str:
    """Runs the MPI compiler wrapper and returns its output."""
    wrapper = os.environ.get("MPICC", "mpicc")
    try:
        return subprocess.run(
            [*shlex.split(wrapper), *arguments], stdin=subprocess.DEVNULL, capture_output=True, text=True, check=True
        ).stdout
    except (OSError, subprocess.CalledProcessError) as error:
        raise SystemExit(f"building jaxdp needs MPI's mpicc, but {wrapper!r} fails: set MPICC ({error})") from None


def mpi_flags() -> tuple[list[str], list[str]]:
    """The flags that the wrapper adds for compiling, and for linking."""
    flags = shlex.split(mpicc("-show"))[1:]
    compiling = [flag for flag in flags if flag.startswith(("-I", "-D"))]
    return compiling, [flag for flag in flags if flag not in compiling]


def mpi_abi() -> str:
    """The ABI of the MPI library, "mpich" or "openmpi".

    Each ABI has a separate engine, so one checkout can serve environments with either MPI.
    """
    macros = mpicc("-E", "-dM", "-include", "mpi.h", "-x", "c", os.devnull)
    return "openmpi" if "define OPEN_MPI " in macros else "mpich"


def xla_headers() -> str:
    """The folder of XLA's FFI headers, which jaxlib contains; found without importing JAX."""
    found = importlib.util.find_spec("jaxlib")
    if found is None or found.origin is None:
        raise SystemExit("building jaxdp needs jaxlib's headers, but jaxlib is not installed: pip install jax first")
    return str(pathlib.Path(found.origin).parent / "include")


def found_onednn() -> tuple[list[str], list[str]] | None:
    """The flags for compiling and linking with oneDNN and TBB (its threads); None if not installed."""
    packages = ("onednn-devel-cpu-tbb", "onednn-cpu-tbb", "tbb-devel", "tbb")
    try:
        files = [file for package in packages for file in distribution(package).files or []]
    except PackageNotFoundError:
        return None

    def where(end: str) -> pathlib.Path:
        return pathlib.Path(next(file for file in files if file.as_posix().endswith(end)).locate()).resolve()

    headers = ("/include/oneapi/dnnl/dnnl.hpp", "/include/oneapi/tbb/task_arena.h")
    compiling = [flag for header in headers for flag in ("-isystem", str(where(header).parents[2]))]
    return compiling, [str(where(library)) for library in ("/libdnnl.so.3", "/libtbb.so.12")]


compiling, linking = mpi_flags()
common = ["-std=c++17", "-O3", "-Wall", "-Wextra", "-pthread", "-fvisibility=hidden"]
extensions = [
    Extension(
        f"jaxdp.native._engine_{mpi_abi()}",
        sources=[f"jaxdp/native/{name}.cc" for name in ("arithmetic", "c_api", "engine")],
        depends=[f"jaxdp/native/{name}.h" for name in ("arithmetic", "engine", "vectorised")],
        extra_compile_args=[*common, *compiling, "-isystem", xla_headers()],
        extra_link_args=["-pthread", *linking],
        language="c++",
    ),
    Extension(
        "jaxdp.native._rows",
        sources=["jaxdp/native/rows.cc"],
        extra_compile_args=common,
        extra_link_args=["-pthread"],
        language="c++",
    ),
    Extension(
        "jaxdp.native._layers",
        sources=[f"jaxdp/native/{name}.cc" for name in ("normalisation", "ordering", "pooling")],
        depends=[f"jaxdp/native/{name}.h" for name in ("threads", "vectorised")],
        extra_compile_args=[*common, "-isystem", xla_headers()],
        extra_link_args=["-pthread"],
        language="c++",
    ),
]
# These packages exist for x86 only. Other CPUs use XLA's own convolutions.
if onednn := found_onednn():
    extensions.append(
        Extension(
            "jaxdp.native._convolutions",
            sources=["jaxdp/native/convolutions.cc"],
            depends=["jaxdp/native/operation.h"],
            extra_compile_args=[*common, *onednn[0], "-isystem", xla_headers()],
            # No rpath: the importer of this module first loads these libraries from where they are installed.
            extra_link_args=onednn[1],
            language="c++",
        )
    )
# In the default folder, build/, a build would reuse what an earlier one has left there, e.g. an engine for another MPI.
with tempfile.TemporaryDirectory() as folder:
    setup(ext_modules=extensions, options={"build": {"build_base": folder}})
