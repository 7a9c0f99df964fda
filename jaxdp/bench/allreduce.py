"""Times allreduces over all ranks and compares them with each other, with MPI's own and with the predicted times.

Reports the bus bandwidth 2 (p - 1) / p x bytes / time, as the OSU and NCCL tests do: the bandwidth of a link on which
an allreduce that sends the fewest possible bytes takes this time. A repetition lasts until the last rank is done.
Every rank checks every result. Payloads hold small integers, so every sum is exact.
"""

from __future__ import annotations

import argparse
import dataclasses
import pathlib
import time
from collections.abc import Sequence
from typing import Any

import numpy as np

from jaxdp.bench.allreduce_programs import LARGEST_EXACT, Contender, Program, make_payload, make_program
from jaxdp.bench.rows import AllreduceRow
from jaxdp.cli import parsing, start
from jaxdp.collectives import auto
from jaxdp.collectives.algorithms import ALGORITHMS
from jaxdp.collectives.choice import SEGMENT_BYTES, Choice
from jaxdp.collectives.config import AUTO, ENGINES, MPI, WIRES
from jaxdp.collectives.cost import NetworkModel
from jaxdp.collectives.measure import measure_network
from jaxdp.runtime import jax_compat, process
from jaxdp.runtime.world import World

_NAMES = (*ALGORITHMS, MPI, AUTO)


def main(words: Sequence[str] | None = None) -> None:
    """Runs the benchmark on every rank; rank 0 prints and writes the rows."""
    start.on_ranks(make_parser(), _run, words, check=_check)


def _run(arguments: argparse.Namespace, world: World) -> None:
    process.prepare_process(threads=world.threads, gpus=world.gpus)
    network = measure_network(world)
    if "xla" in arguments.engine:
        jax_compat.initialize_distributed()
    if world.is_root:
        print(_header(world, network), flush=True)
    rows: list[AllreduceRow] = []
    for size in arguments.sizes:
        found = _measure(_contenders(arguments, size, world), size, network, arguments.repeat, world)
        rows += found
        if world.is_root:
            print(_table(found), flush=True)
    with world.agree_or_exit():
        if world.is_root:
            _write(arguments, rows, network, world)


def _write(arguments: argparse.Namespace, rows: list[AllreduceRow], network: NetworkModel, world: World) -> None:
    if arguments.json:
        document = {
            "rows": [dataclasses.asdict(row) for row in rows],
            "ranks": world.size,
            "ranks_per_node": world.ranks_per_node,
            "network": dataclasses.asdict(network),
        }
        parsing.write_json(arguments.json, document)
    if arguments.plot:
        from jaxdp.bench import plots

        plots.allreduce(rows, arguments.plot, ranks=world.size)


def make_parser() -> parsing.Parser:
    """Returns the parser of the command line of this benchmark."""
    parser = parsing.Parser(
        "bench allreduce",
        __doc__,
        examples=("mpirun -n 4 jaxdp bench allreduce --sizes=1M,25M --algorithms=ring,multicolor",),
    )
    add = parser.add_argument
    add("--sizes", type=parsing.sizes, default="64K,1M,25M", help="payload sizes")
    add("--algorithms", type=parsing.names, default="all", help=f"all, or some of {', '.join(_NAMES)}")
    add("--colors", type=parsing.numbers, default="2,4", help="numbers of multicolor trees, one row each")
    add("--arity", type=parsing.numbers, help="arities of multicolor trees, one row each; default: colors")
    add("--segment", type=parsing.size, help="size of pipelined segments; default: 65536, or 262144 for mpi4jax")
    add("--wire", choices=tuple(WIRES), default="float32", help="format of float32 values on the wire")
    add(
        "--engine",
        type=parsing.names,
        default="native",
        help=f"some of {', '.join(ENGINES)}, with xla only on its own",
    )
    add("--repeat", type=int, default=10, help="repetitions, interleaved")
    add("--json", type=pathlib.Path, help="write the rows to this file")
    add("--plot", type=pathlib.Path, help="plot time over size to this file, e.g. allreduce.png")
    return parser


def _check(arguments: argparse.Namespace, world: World) -> None:
    if world.size < 2:
        raise ValueError("the allreduce benchmark needs at least 2 ranks, this job has 1: start it with mpirun -n 2")
    if world.size > LARGEST_EXACT:
        raise ValueError(f"sums are exact up to {LARGEST_EXACT} ranks, but this job has {world.size}: start fewer")
    if arguments.repeat < 1:
        raise ValueError(f"--repeat must be at least 1, not {arguments.repeat}")
    for name in arguments.algorithms:
        if name not in ("all", *_NAMES):
            raise ValueError(f"unknown algorithm {name!r} in --algorithms: choose from all, {', '.join(_NAMES)}")
    for engine in arguments.engine:
        if engine not in ENGINES:
            raise ValueError(f"unknown engine {engine!r} in --engine: choose from {', '.join(ENGINES)}")
    if "xla" in arguments.engine and len(arguments.engine) > 1:
        raise ValueError("--engine=xla slows down every other engine in the same job: measure it in a separate job")
    parsing.check_writable(arguments.json, arguments.plot)
    if min(arguments.colors) > world.size:
        raise ValueError(
            f"{min(arguments.colors)} colors need at least {min(arguments.colors)} ranks, but this job has "
            f"{world.size}: reduce --colors"
        )


def _contenders(arguments: argparse.Namespace, size: int, world: World) -> list[Contender]:
    """Returns the allreduces to compare at one size, always with MPI's own as the baseline.

    The exception is JAX's own allreduce, which is measured alone: once JAX has connected the ranks, all other
    allreduces are slower.
    """
    if "xla" in arguments.engine:
        return [Contender("psum", "xla", None)]
    names = _NAMES if "all" in arguments.algorithms else tuple(dict.fromkeys([*arguments.algorithms, MPI]))
    common: dict[str, Any] = {"wire": arguments.wire}
    found: list[Choice] = []
    for name in names:
        if name in (MPI, AUTO):
            continue
        if name == "multicolor":
            for colors in sorted({min(colors, world.size) for colors in arguments.colors}):
                for arity in arguments.arity or [colors]:
                    found.append(Choice(name, colors=colors, arity=arity, **common))
        elif name == "hierarchical":
            nodes = world.size // (world.ranks_per_node or world.size)
            if 1 < nodes < world.size:
                colors = min(4, nodes)
                levels: dict[str, Any] = {"inner": "direct", "outer": "multicolor", "colors": colors, "arity": colors}
                found.append(Choice(name, ranks_per_node=world.ranks_per_node, **levels, **common))
        else:
            found.append(Choice(name, **common))
    contenders = []
    for engine in arguments.engine:
        segment = arguments.segment or SEGMENT_BYTES[engine]
        contenders += [
            Contender(one.algorithm, engine, dataclasses.replace(one, segment_bytes=segment)) for one in found
        ]
    if AUTO in names:
        for engine in arguments.engine:
            (decision,) = auto.choose([size], arguments.wire, world, engine=engine)
            contenders.append(Contender(AUTO, engine, decision.choice))
    by_mpi = dict.fromkeys([*arguments.engine, "mpi4jax", "mpi4py"])
    return [*contenders, *(Contender(MPI, engine, Choice(MPI)) for engine in by_mpi)]


def _measure(
    contenders: list[Contender], size: int, network: NetworkModel, repeat: int, world: World
) -> list[AllreduceRow]:
    num_elements = max(1, size // 4)
    programs = [make_program(contender, num_elements, world) for contender in contenders]

    def once(program: Program, repetition: int) -> tuple[float, bool]:
        mine, expected = make_payload(num_elements, world, repetition)
        there = program.place(mine)
        world.barrier()
        start = time.perf_counter()
        result = program.run(there)
        seconds = time.perf_counter() - start
        return seconds, bool((program.fetch(result) == expected).all())

    # The first run of each program compiles it and warms up its connections.
    timed = [[once(program, repetition) for program in programs] for repetition in range(-1, repeat)]
    everyone = world.allgather(timed)
    rows = []
    for index, (name, engine, choice) in enumerate(contenders):
        of_ranks = [[repetition[index] for repetition in of_rank] for of_rank in everyone]
        seconds = [max(second for second, _ in of_one) for of_one in zip(*of_ranks, strict=True)][1:]
        median = float(np.median(seconds))
        ours = contenders[index].ours
        rows.append(
            AllreduceRow(
                algorithm=name,
                engine=engine,
                size_bytes=size,
                median_s=median,
                p95_s=float(np.percentile(seconds, 95)),
                busbw_gbit_s=2 * (world.size - 1) / world.size * size * 8 / median / 1e9,
                predicted_s=None if ours is None else ours.predict(world.size, size, network),
                ratio_to_mpi=None,
                exact=all(right for of_rank in of_ranks for _, right in of_rank),
                label=f"{engine} {AUTO}: {choice}" if name == AUTO else f"{engine} {choice or name}",
                wire=choice.wire if choice else "float32",
                segment_bytes=None if ours is None else ours.segment_bytes,
                seconds=seconds,
            )
        )
    mpi = next((row.median_s for row in rows if (row.algorithm, row.engine) == (MPI, "mpi4jax")), None)
    return [dataclasses.replace(row, ratio_to_mpi=mpi and mpi / row.median_s) for row in rows]


def _header(world: World, network: NetworkModel) -> str:
    def link(one: Any) -> str:
        return f"alpha {one.alpha * 1e6:.1f} us, {8e-9 / one.beta:.3f} Gbit/s" if one.beta else "too fast to measure"

    nodes = len(set(world.leaders))
    kinds = f"between nodes {link(network.between)}"
    if network.ranks_per_node > 1:
        kinds += f"; within nodes {link(network.inside)}"
    gamma = f"gamma {network.between.gamma * 1e9:.3f} ns/byte"
    return f"{world.size} ranks on {nodes} node{'s' * (nodes > 1)}, {world.library}; {kinds}; {gamma}"


def _table(rows: list[AllreduceRow]) -> str:
    head = ["algorithm", "bytes", "median", "p95", "Gbit/s", "vs mpi", "predicted", "exact"]
    cells = [
        [
            row.label,
            f"{row.size_bytes:,}",
            f"{row.median_s * 1e3:.2f} ms",
            f"{row.p95_s * 1e3:.2f} ms",
            f"{row.busbw_gbit_s:.3f}",
            "" if row.ratio_to_mpi is None else f"{row.ratio_to_mpi:.2f}",
            "" if row.predicted_s is None else f"{row.predicted_s * 1e3:.2f} ms",
            "yes" if row.exact else "NO",
        ]
        for row in rows
    ]
    widths = [max(len(line[column]) for line in [head, *cells]) for column in range(len(head))]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if column == 0 else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(line, widths, strict=True))
        )
        for line in [head, *cells]
    )
