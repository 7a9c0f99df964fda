"""Builds jaxdp/native, the engine against the MPI of a compiler wrapper: MPICC, else mpicc on the PATH."""

import importlib.util
import os
import pathlib
import shlex
import subprocess

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


compiling, linking = mpi_flags()
common = ["-std=c++17", "-O3", "-Wall", "-Wextra", "-pthread", "-fvisibility=hidden"]
setup(
    ext_modules=[
        Extension(
            f"jaxdp.native._engine_{mpi_abi()}",
            sources=[f"jaxdp/native/{name}.cc" for name in ("arithmetic", "doors", "engine")],
            depends=[f"jaxdp/native/{name}.h" for name in ("arithmetic", "engine")],
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
    ]
)
