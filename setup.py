"""Builds jaxdp/native, the engine against the MPI of a compiler wrapper: MPICC, else mpicc on the PATH."""

import importlib.util
import os
import pathlib
import shlex
import subprocess
from importlib.metadata import PackageNotFoundError, distribution

from setuptools import Extension, setup


def mpicc(*arguments: str) -> str:
    """What the MPI's compiler wrapper says."""
    wrapper = os.environ.get("MPICC", "mpicc")
    try:
        return subprocess.run(
            [*shlex.split(wrapper), *arguments], stdin=subprocess.DEVNULL, capture_output=True, text=True, check=True
        ).stdout
    except (OSError, subprocess.CalledProcessError) as error:
        raise SystemExit(f"jaxdp is built with an MPI's mpicc, {wrapper!r} fails: set MPICC ({error})") from None


def mpi_flags() -> tuple[list[str], list[str]]:
    """What the wrapper adds to compile, and to link."""
    flags = shlex.split(mpicc("-show"))[1:]
    compiling = [flag for flag in flags if flag.startswith(("-I", "-D"))]
    return compiling, [flag for flag in flags if flag not in compiling]


def mpi_abi() -> str:
    """Of the two that MPI libraries share. Each has its engine, so that one checkout serves environments of both."""
    macros = mpicc("-E", "-dM", "-include", "mpi.h", "-x", "c", os.devnull)
    return "openmpi" if "define OPEN_MPI " in macros else "mpich"


def xla_headers() -> str:
    """The folder of XLA's FFI headers, which jaxlib brings; importing JAX for it is not needed."""
    found = importlib.util.find_spec("jaxlib")
    if found is None or found.origin is None:
        raise SystemExit("jaxdp is built with the headers of jaxlib, which is not installed: pip install jax first")
    return str(pathlib.Path(found.origin).parent / "include")


def found_onednn() -> tuple[list[str], list[str]] | None:
    """What oneDNN and its threads (TBB) add to compile, and to link, where their packages are installed."""
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
        sources=[f"jaxdp/native/{name}.cc" for name in ("arithmetic", "doors", "engine")],
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
        sources=[f"jaxdp/native/{name}.cc" for name in ("normalisation", "pooling")],
        depends=[f"jaxdp/native/{name}.h" for name in ("threads", "vectorised")],
        extra_compile_args=[*common, "-isystem", xla_headers()],
        extra_link_args=["-pthread"],
        language="c++",
    ),
]
# Other CPUs than x86 have no such packages: XLA's own convolutions serve there.
if onednn := found_onednn():
    extensions.append(
        Extension(
            "jaxdp.native._convolutions",
            sources=["jaxdp/native/convolutions.cc"],
            depends=["jaxdp/native/operation.h"],
            extra_compile_args=[*common, *onednn[0], "-isystem", xla_headers()],
            # Whoever loads this has loaded those, from wherever they are then.
            extra_link_args=onednn[1],
            language="c++",
        )
    )
setup(ext_modules=extensions)
