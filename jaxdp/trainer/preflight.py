"""Checks what all ranks must have in common, before the first gradient is exchanged."""

from __future__ import annotations

import hashlib
import importlib.metadata
import pathlib
import platform
import re
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from jaxdp import __version__, native
from jaxdp.collectives.engine_library import agree_on_library
from jaxdp.step.state import named_leaves

if TYPE_CHECKING:
    from jaxdp.runtime.world import World

REMEDY = "use one environment, made by launch/setup, on all hosts"
_PACKAGES = ("jax", "jaxlib", "flax", "optax", "mpi4jax", "mpi4py", "numpy", "orbax-checkpoint", "tensorflow-datasets")


def check_software(world: World, *, engine: str) -> None:
    """Ends the job with one message unless all ranks run the same software; warns if their CPUs differ.

    Different CPUs or numbers of cores do not affect the result, but the slowest rank sets the pace.

    Args:
      world: all ranks.
      engine: engine of the job, which must use the MPI library of mpi4py.
    """
    agree_on_library(engine, world)
    _require_equal(world, software(world), REMEDY)
    hardware = {"CPU model": cpu(), "number of cores per rank": world.threads}
    for what, value in hardware.items():
        difference = world.difference(value)
        if difference is not None and world.is_root:
            print(f"jaxdp: warning: the {what} is not the same on all ranks: {difference}", file=sys.stderr)


def software(world: World) -> dict[str, str]:
    """Returns the versions of all software that must be the same on all ranks, by name."""
    versions = {package: importlib.metadata.version(package) for package in _PACKAGES}
    return {
        "jaxdp": __version__,
        "code of jaxdp": code_hash(pathlib.Path(__file__).parents[1]),
        "Python": platform.python_version(),
        "MPI": world.library,
        **versions,
        "oneDNN": native.onednn() or "not installed",
    }


def check_parts(world: World, *, params: Any, num_devices: int, data: str) -> None:
    """Ends the job with one message unless model, data set and number of devices are the same on all ranks.

    Args:
      world: all ranks.
      params: parameters of the model, as arrays or their shapes.
      num_devices: number of devices of this rank.
      data: fingerprint of the data set.
    """
    arrays = {f"parameter {name}": f"{leaf.dtype}{list(leaf.shape)}" for name, leaf in named_leaves(params).items()}
    parts = {"number of local devices": num_devices, "data set": data, "number of parameters": len(arrays)}
    _require_equal(world, parts | arrays, "check what differs between the hosts")


def _require_equal(world: World, values: Mapping[str, Any], remedy: str) -> None:
    # If nothing differs, one small message is enough.
    if world.difference(hashlib.sha256(repr(values).encode()).hexdigest()) is None:
        return
    # The names may differ too.
    first = world.bcast(list(values))
    for what in first:
        world.require_equal(what, values.get(what), remedy)
    world.require_equal("list of compared values", list(values), remedy)


def code_hash(package: pathlib.Path) -> str:
    """Returns a hash of the names and contents of all Python and C++ files in a folder."""
    digest = hashlib.sha256()
    # In a checkout jaxdp/configs is a symbolic link, which rglob does not follow.
    folders = (package, package / "configs")
    paths = {path for folder in folders for kind in ("*.py", "*.cc", "*.h") for path in folder.rglob(kind)}
    for path in sorted(paths):
        digest.update(path.relative_to(package).as_posix().encode() + path.read_bytes())
    return digest.hexdigest()[:12]


def cpu() -> str:
    """Returns the model name of this host's CPU."""
    found = re.search("^model name\\s*: (.*)", pathlib.Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    return found[1] if found else platform.machine()
