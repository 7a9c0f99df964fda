"""One rank of a jaxdp job that `jaxdp.bench weak` measures."""

from __future__ import annotations

import argparse
import functools
import os
import pathlib
import time
from collections.abc import Callable, Sequence
from typing import Any

from jaxdp.bench.step_parts import Setting, make_parts
from jaxdp.bench.turns import Turns
from jaxdp.cli import parsing, start
from jaxdp.collectives.config import ENGINES
from jaxdp.runtime import jax_compat, launcher, process
from jaxdp.runtime.world import World


def serve(arguments: argparse.Namespace, world: World) -> None:
    """Builds the programs of a step and measures them on request, on every rank."""
    process.prepare_process(threads=world.threads, gpus=world.gpus)
    jax_compat.use_compilation_cache(rank=world.rank, size=world.size)
    import jax

    setting = Setting(arguments.engine, arguments.model, arguments.image_size, arguments.batch)
    parts = make_parts(setting, world)

    def measured(program: Callable[[], Any]) -> float:
        world.barrier()
        begin = time.perf_counter()
        for _ in range(arguments.steps):
            done = program()
        jax.block_until_ready(done)
        return (time.perf_counter() - begin) / arguments.steps

    Turns(arguments.folder).serve(
        world.rank,
        {
            "parameters": lambda: parts.num_parameters,
            "alone": functools.partial(measured, parts.programs["plain"]),
            "together": functools.partial(measured, parts.programs["step"]),
        },
    )


def main(words: Sequence[str] | None = None) -> None:
    """Serves the benchmark `weak` on every rank."""
    parser = parsing.Parser("bench.weak_member", __doc__)
    parser.add_argument("folder", type=pathlib.Path, help="folder in which turns are asked for and answered")
    parser.add_argument("--engine", choices=ENGINES, required=True, help="engine that sums the gradients")
    parser.add_argument("--model", required=True, help="model to train")
    for name in ("batch", "image_size", "steps"):
        parser.add_argument(f"--{name}", type=parsing.number, required=True, help=f"see `jaxdp bench weak --{name}`")
    # Bind each rank to one core (shared if there are too few), before anything counts the available cores.
    place = launcher.launch_info()
    assert place is not None, "the benchmark must start this program with an MPI launcher"
    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {cores[place.rank % len(cores)]})
    start.on_ranks(parser, serve, words)


if __name__ == "__main__":
    main()
