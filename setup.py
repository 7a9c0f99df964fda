"""Builds the native engine (jaxdp/native) against the MPI of a compiler wrapper: MPICC, else mpicc on the PATH."""

import importlib.util
import os
import pathlib
import shlex
import subprocess

from setuptools import Extension, setup


def mpi_flags() -> tuple[list[str], list[str]]:
    """What the MPI's compiler wrapper adds to compile, and to link."""
    wrapper = os.environ.get("MPICC", "mpicc")
    try:
        shown = subprocess.run([*shlex.split(wrapper), "-show"], capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError) as error:
        raise SystemExit(f"jaxdp is built with an MPI's mpicc, {wrapper!r} fails: set MPICC ({error})") from None
    flags = shlex.split(shown)[1:]
    compiling = [flag for flag in flags if flag.startswith(("-I", "-D"))]
    return compiling, [flag for flag in flags if flag not in compiling]


def xla_headers() -> str:
    """The folder of XLA's FFI headers, which jaxlib brings; importing JAX for it is not needed."""
    found = importlib.util.find_spec("jaxlib")
    if found is None or found.origin is None:
        raise SystemExit("jaxdp is built with the headers of jaxlib, which is not installed: pip install jax first")
    return str(pathlib.Path(found.origin).parent / "include")


compiling, linking = mpi_flags()
setup(
    ext_modules=[
        Extension(
            "jaxdp.native._engine",
            sources=[f"jaxdp/native/{name}.cc" for name in ("arithmetic", "doors", "engine", "rows")],
            depends=[f"jaxdp/native/{name}.h" for name in ("arithmetic", "engine")],
            extra_compile_args=[
                *("-std=c++17", "-O3", "-Wall", "-Wextra", "-pthread", "-fvisibility=hidden"),
                *compiling,
                *("-isystem", xla_headers()),
            ],
            extra_link_args=["-pthread", *linking],
            language="c++",
        )
    ]
)
