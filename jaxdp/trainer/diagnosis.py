"""Checks whether training can run here, alone or under mpirun, and says how to fix each problem."""

from __future__ import annotations

import ctypes
import os
import pathlib
import tempfile
from typing import Any

from jaxdp.collectives.engine_library import check_library
from jaxdp.data import memory
from jaxdp.runtime import mpi_libraries, process
from jaxdp.runtime.exit_codes import USER_ERROR
from jaxdp.runtime.world import AgreedExit, World
from jaxdp.trainer import preflight

_THREAD_LEVELS = {0: "single", 1: "funneled", 2: "serialized", 3: "multiple"}


class Findings:
    """Collects what was found; rank 0 prints each finding at once.

    Args:
      world: all ranks, which run each check together.
    """

    def __init__(self, world: World):
        self._world = world
        self.to_do: list[str] = []

    def tell(self, name: str, text: str) -> None:
        """Prints a line about a checked item."""
        if self._world.is_root:
            print(f"  {name:20}{text}", flush=True)

    def warn(self, text: str) -> None:
        """Prints a problem with which training still works."""
        self.tell("  warning", text)

    def need(self, text: str) -> None:
        """Prints a problem that prevents training, and adds it to the to-do list."""
        self.to_do.append(text)
        self.tell("  ERROR", text)

    def same(self, name: str, value: Any, remedy: str) -> None:
        """Prints a value, and checks that it is the same on all ranks."""
        self.tell(name, str(value))
        difference = self._world.difference(value)
        if difference is not None:
            self.need(f"{name} is not the same on all ranks: {difference}: {remedy}")


def examine(workdir: pathlib.Path, world: World) -> None:
    """Prints what training would use here, and "ready" or a to-do list; all ranks call it together.

    Args:
      workdir: folder in which runs will be saved.
      world: all ranks.

    Raises:
      AgreedExit: the to-do list is not empty.
    """
    found = Findings(world)
    found.tell("world", _hosts(world))
    for name, value in preflight.software(world).items():
        found.same(name, value, preflight.REMEDY)
    _mpi(found, world)
    _cores(found, world)
    _devices(found, world)
    _memory(found, world)
    _network(found, world)
    _workdir(found, world, workdir)
    if world.is_root:
        print("\n".join(["to do:", *(f"  - {text}" for text in found.to_do)]) if found.to_do else "ready", flush=True)
    if found.to_do:
        raise AgreedExit(USER_ERROR)


def _hosts(world: World) -> str:
    ranks_of: dict[int, list[int]] = {leader: [] for leader in world.leaders}
    for rank, leader in enumerate(world.leaders):
        ranks_of[leader].append(rank)
    ranks = "1 rank" if world.size == 1 else f"{world.size} ranks"
    return f"{ranks}: " + ", ".join(f"{_span(node)} on {world.hosts[node[0]]}" for node in ranks_of.values())


def _span(ranks: list[int]) -> str:
    if ranks == list(range(ranks[0], ranks[-1] + 1)) and len(ranks) > 1:
        return f"{ranks[0]} to {ranks[-1]}"
    return ", ".join(map(str, ranks))


def _mpi(found: Findings, world: World) -> None:
    from mpi4py import MPI

    # World has already refused any level that is too low.
    found.tell("MPI threads", _THREAD_LEVELS[MPI.Query_thread()])
    found.same("MPI library", mpi_libraries.loaded_library(), preflight.REMEDY)
    for engine in ("native", "mpi4jax"):
        error = None
        try:
            check_library(engine)
        except ValueError as mistake:
            error = str(mistake)
        for text in sorted({text for text in world.allgather(error) if text}):
            # A single process sends no messages.
            (found.warn if world.size == 1 else found.need)(text)


def _cores(found: Findings, world: World) -> None:
    cores = world.allgather((world.leaders[world.rank], frozenset(os.sched_getaffinity(0)), world.threads))
    threads = sorted({of_rank[2] for of_rank in cores})
    found.tell("cores", " to ".join(map(str, dict.fromkeys((threads[0], threads[-1])))) + " per rank")
    found.tell("CPU", preflight.cpu())
    if difference := world.difference(preflight.cpu()):
        found.warn(f"CPU models differ, and the slowest sets the pace: {difference}")
    for leader in sorted({*world.leaders}):
        here = [mine for of_leader, mine, _ in cores if of_leader == leader]
        together = frozenset().union(*here)
        if len(here) > 1 and len(together) == 1:
            found.need(
                f"all {len(here)} ranks on the host of rank {leader} are bound to core {min(together)}: start them "
                "with `mpirun --bind-to none` (Slurm: --cpu-bind=none), or bind each rank to separate cores"
            )
        elif len(here) > len(together):
            found.warn(f"{len(here)} ranks share the {len(together)} cores of the host of rank {leader}")


def _devices(found: Findings, world: World) -> None:
    process.prepare_process(threads=world.threads, gpus=world.gpus)
    import jax

    kinds = world.allgather(f"{jax.local_device_count()} x {jax.local_devices()[0].device_kind}")
    for kind in dict.fromkeys(kinds):
        found.tell("devices", f"{kind} on {_span([rank for rank, other in enumerate(kinds) if other == kind])}")
    gpus = world.allgather(world.gpus)
    for rank, share in enumerate(gpus):
        if share.names:
            found.tell("GPUs", f"rank {rank}: {', '.join(share.names)}")
    if shared := [rank for rank, share in enumerate(gpus) if share.ranks > 1]:
        found.warn(f"ranks {_span(shared)} share GPUs with other ranks: start one rank per GPU")
    if difference := world.difference(jax.local_device_count()):
        found.need(f"ranks have different numbers of devices: {difference}: give every rank the same number")
    preloaded = os.environ.get("LD_PRELOAD")
    keeps = hasattr(ctypes.CDLL(None), "mallopt") and not preloaded
    found.tell("allocator", "glibc, which keeps freed memory" if keeps else f"{preloaded or 'not glibc'}")
    if not keeps:
        found.warn("jaxdp cannot make this allocator keep freed memory: page faults may slow down large transfers")


def _memory(found: Findings, world: World) -> None:
    free, where = memory.free_bytes(shared=world.local_size > 1)
    least, rank, where = min(zip(world.allgather(free), range(world.size), world.allgather(where), strict=True))
    found.tell("memory", f"{least / 2**30:.1f} GiB free for data, {where}, on the host with the least (rank {rank})")


def _network(found: Findings, world: World) -> None:
    if world.size == 1:
        found.tell("network", "none: one rank")
        return
    from jaxdp.collectives.measure import measure_network

    network = measure_network(world)
    links = {"": network.between}
    if network.ranks_per_node > 1:
        links = {" on another host": network.between, " on the same host": network.inside}
    for which, link in links.items():
        gbit = 8e-9 / link.beta if link.beta else float("inf")
        found.tell(
            "network", f"{link.alpha * 1e6:.1f} us and {gbit:.3g} Gbit/s to the next rank{which}, all ranks at once"
        )


def _workdir(found: Findings, world: World, workdir: pathlib.Path) -> None:
    seen: list[int] = []
    probe, error = None, None
    if world.is_root:
        try:
            workdir.mkdir(parents=True, exist_ok=True)
            probe = tempfile.mkdtemp(prefix=".doctor-", dir=workdir)
        except OSError as mistake:
            error = str(mistake)
    probe, error = world.bcast((probe, error))
    if probe is None:
        found.need(f"{workdir} cannot be written on rank 0: {error}: choose another --workdir")
        return
    mine = pathlib.Path(probe, str(world.rank))
    try:
        mine.write_text("x")
    except OSError as mistake:
        error = str(mistake)
    errors = world.allgather(error)
    if world.is_root:
        seen = [int(path.name) for path in pathlib.Path(probe).iterdir()]
        for path in pathlib.Path(probe).iterdir():
            path.unlink()
        pathlib.Path(probe).rmdir()
    missing = [rank for rank in range(world.size) if rank not in world.bcast(seen)]
    if missing:
        why = next((text for text in errors if text), "rank 0 does not see the files written there")
        found.need(f"{workdir} is not shared with rank {_span(missing)}: {why}: use a folder that all hosts share")
    else:
        found.tell("workdir", f"{workdir.absolute()}, written by all ranks")
