"""Looks whether training can run here, alone or under mpirun: what is there, what does not fit, and what to do.

  python -m jaxdp.doctor
  mpirun -n 4 python -m jaxdp.doctor --workdir=runs

--workdir=FOLDER  where runs are to be written (default: runs)

Ends with "ready" and code 0, or with a list of what to do and code 2. What is only a warning leaves it ready.
"""

from __future__ import annotations

import argparse
import ctypes
import os
import pathlib
import sys
import tempfile
from collections.abc import Sequence
from typing import Any

from jaxdp import compat, parse, preflight
from jaxdp import world as world_module
from jaxdp.data import memory
from jaxdp.world import AgreedExit, World

_THREAD_LEVELS = {0: "single", 1: "funneled", 2: "serialized", 3: "multiple"}


class Findings:
    """What there is to say: rank 0 prints it as it comes.

    Args:
      world: all ranks, which find everything together.
    """

    def __init__(self, world: World):
        self._world = world
        self.to_do: list[str] = []

    def tell(self, name: str, text: str) -> None:
        """A line about something."""
        if self._world.is_root:
            print(f"  {name:20}{text}", flush=True)

    def warn(self, text: str) -> None:
        """Something that is not as it should be, with which training still works."""
        self.tell("  warning", text)

    def need(self, text: str) -> None:
        """Something without which it does not."""
        self.to_do.append(text)
        self.tell("  ERROR", text)

    def same(self, name: str, value: Any, remedy: str) -> None:
        """Something that must be the same on all ranks."""
        self.tell(name, str(value))
        difference = self._world.difference(value)
        if difference is not None:
            self.need(f"{name} is not the same on all ranks: {difference}: {remedy}")


def examine(words: Sequence[str], world: World) -> None:
    """The command, on every rank."""
    parser = parse.Parser("jaxdp.doctor", description=__doc__, allow_abbrev=False)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--workdir", type=pathlib.Path, default=pathlib.Path("runs"), help="default %(default)s")
    arguments = parse.on_all_ranks(parser, words, lambda _: None, world)
    if arguments is None:
        return
    found = Findings(world)
    found.tell("world", _hosts(world))
    for name, value in preflight.software(world).items():
        found.same(name, value, preflight.REMEDY)
    _mpi(found)
    _cores(found, world)
    _devices(found, world)
    _memory(found, world)
    _network(found, world)
    _workdir(found, world, arguments.workdir)
    if world.is_root:
        print("\n".join(["to do:", *(f"  - {text}" for text in found.to_do)]) if found.to_do else "ready", flush=True)
    if found.to_do:
        raise AgreedExit(world_module.USER_ERROR)


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


def _mpi(found: Findings) -> None:
    from mpi4py import MPI

    # The world has refused any lower one.
    found.tell("MPI threads", _THREAD_LEVELS[MPI.Query_thread()])


def _cores(found: Findings, world: World) -> None:
    cores = world.allgather((world.leaders[world.rank], frozenset(os.sched_getaffinity(0)), world.threads))
    threads = sorted({of_rank[2] for of_rank in cores})
    found.tell("cores", " to ".join(map(str, dict.fromkeys((threads[0], threads[-1])))) + " a rank")
    found.tell("CPU", preflight.cpu())
    if difference := world.difference(preflight.cpu()):
        found.warn(f"CPUs differ, and the slowest sets the pace: {difference}")
    for leader in sorted({*world.leaders}):
        here = [mine for of_leader, mine, _ in cores if of_leader == leader]
        together = frozenset().union(*here)
        if len(here) > 1 and len(together) == 1:
            found.need(
                f"all {len(here)} ranks of a host, from rank {leader} on, are bound to its core {min(together)}: start "
                "them with `mpirun --bind-to none` (Slurm: --cpu-bind=none), or bind each to cores of its own"
            )
        elif len(here) > len(together):
            found.warn(f"{len(here)} ranks of a host share {len(together)} cores, from rank {leader} on")


def _devices(found: Findings, world: World) -> None:
    compat.prepare_process(threads=world.threads, gpus=world.gpus)
    import jax

    kinds = world.allgather(f"{jax.local_device_count()} x {jax.local_devices()[0].device_kind}")
    for kind in dict.fromkeys(kinds):
        found.tell("devices", f"{kind} on {_span([rank for rank, other in enumerate(kinds) if other == kind])}")
    gpus = world.allgather(world.gpus)
    for rank, share in enumerate(gpus):
        if share.names:
            found.tell("GPUs", f"rank {rank}: {', '.join(share.names)}")
    if shared := [rank for rank, share in enumerate(gpus) if share.ranks > 1]:
        found.warn(f"ranks {_span(shared)} share GPUs with others: start as many ranks on a host as it has GPUs")
    if difference := world.difference(jax.local_device_count()):
        found.need(f"ranks have different numbers of devices: {difference}: give each as many")
    preloaded = os.environ.get("LD_PRELOAD")
    keeps = hasattr(ctypes.CDLL(None), "mallopt") and not preloaded
    found.tell("allocator", "glibc, which keeps freed memory" if keeps else f"{preloaded or 'not glibc'}")
    if not keeps:
        found.warn("the allocator is not told to keep freed memory: large transfers may be slower by page faults")


def _memory(found: Findings, world: World) -> None:
    free, where = memory.free_bytes(shared=world.local_size > 1)
    least, rank, where = min(zip(world.allgather(free), range(world.size), world.allgather(where), strict=True))
    found.tell("memory", f"{least / 2**30:.1f} GiB free for data a host, {where}, the least (rank {rank})")


def _network(found: Findings, world: World) -> None:
    if world.size == 1:
        found.tell("network", "none: one rank")
        return
    from jaxdp.collectives.measure import measure_network

    network = measure_network(world)
    links = {"": network.between}
    if network.ranks_per_node > 1:
        links = {" of another host": network.between, " of the same host": network.inside}
    for which, link in links.items():
        gbit = 8e-9 / link.beta if link.beta else float("inf")
        found.tell("network", f"{link.alpha * 1e6:.1f} us and {gbit:.3g} Gbit/s to the next rank{which}, all at once")


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
        found.need(f"{workdir} cannot be written on rank 0: {error}: give another --workdir")
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
        why = next((text for text in errors if text), "what they write there is not seen by rank 0")
        found.need(f"{workdir} is not shared with rank {_span(missing)}: {why}: use a folder that all hosts share")
    else:
        found.tell("workdir", f"{workdir.absolute()}, written by all ranks")


def main() -> None:
    world_module.run(lambda world: examine(sys.argv[1:], world))


if __name__ == "__main__":
    main()
