"""Times the staging of gradient buckets through host memory, as on GPUs: each stage alone, and all bucket by bucket.

The stages are: from the local devices to pinned host memory, the allreduce over the ranks, and back to the devices. Two
baselines are timed in the same repetitions: a copy of the same number of bytes in host memory, which no stage can be
expected to beat on CPU devices, and MPI's own allreduce. Bytes are counted over all buckets of one rank. The sums are
checked.
"""

from __future__ import annotations

import argparse
import dataclasses
import pathlib
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from jaxdp.bench.rows import StagingRow
from jaxdp.bench.step_parts import allreduce_config
from jaxdp.cli import parsing, start
from jaxdp.collectives.algorithms import ALGORITHMS
from jaxdp.collectives.config import AUTO, MPI
from jaxdp.runtime import process
from jaxdp.runtime.world import World


def main(words: Sequence[str] | None = None) -> None:
    """Runs the benchmark on every rank; rank 0 prints and writes the rows."""
    start.on_ranks(make_parser(), _run, words, check=_check)


def _run(arguments: argparse.Namespace, world: World) -> None:
    process.prepare_process(threads=world.threads, gpus=world.gpus)
    rows = _measure(arguments, world)
    if world.is_root:
        print(_table(rows), flush=True)
    with world.agree_or_exit():
        if world.is_root and arguments.json:
            parsing.write_json(arguments.json, {"rows": [dataclasses.asdict(row) for row in rows]})


def make_parser() -> parsing.Parser:
    """Returns the parser of the command line of this benchmark."""
    parser = parsing.Parser(
        "bench staging", __doc__, examples=("mpirun -n 2 jaxdp bench staging --bucket=4M --buckets=25",)
    )
    add = parser.add_argument
    add("--bucket", type=parsing.size, default="4M", help="size of a float32 bucket")
    add("--buckets", type=parsing.number, default=25, help="number of buckets")
    add("--algorithm", choices=(*ALGORITHMS, MPI, AUTO), default="halving_doubling", help="algorithm of the allreduce")
    add("--repeat", type=parsing.number, default=10, help="repetitions, interleaved")
    add("--json", type=pathlib.Path, help="write the rows to this file")
    return parser


def _check(arguments: argparse.Namespace, world: World) -> None:
    if world.size < 2:
        raise ValueError("the staging benchmark needs at least 2 ranks, this job has 1: start it with mpirun -n 2")
    parsing.check_writable(arguments.json)


def _measure(arguments: argparse.Namespace, world: World) -> list[StagingRow]:
    import jax

    from jaxdp.collectives.buckets import Buckets
    from jaxdp.placement.local import LocalPlacement
    from jaxdp.placement.staging import Staging

    engine = LocalPlacement.create("native", world.size)
    bucket = jax.ShapeDtypeStruct((-(-arguments.bucket // 4),), np.float32)
    layout = Buckets.plan([bucket] * arguments.buckets, bucket_bytes=1)
    config = allreduce_config("native", arguments.algorithm, "float32", bucket_bytes=1)
    staging = Staging(engine.mesh, engine.host)
    cross = engine.make_allreduce(config, world, layout, None).of_host_parts()

    def mine(rank: int) -> np.ndarray:
        return np.arange(-(-bucket.size // engine.num_devices) * engine.num_devices, dtype=np.float32) % 64 + rank

    on_devices = staging.give([np.split(mine(world.rank), engine.num_devices)] * arguments.buckets)
    leave = jax.jit(lambda parts: parts, out_shardings=staging.pinned)
    pinned = leave(on_devices)
    on_host = staging.take(pinned)
    expected = sum(mine(rank) for rank in range(world.size))
    for total in staging.give(cross(on_host)):
        assert np.array_equal(total, expected), "sums of small integers must be exact"

    sent, received = (np.ones(sum(layout.sizes) // 4, np.float32) for _ in range(2))
    legs: dict[str, Callable[[], Any]] = {
        "devices to pinned memory": lambda: leave(on_devices),
        "over the ranks": lambda: cross(staging.take(pinned)),
        "host to devices": lambda: staging.give(on_host),
        "all, bucket by bucket": lambda: staging.give(cross(staging.take(leave(on_devices)))),
        "a copy in host memory": lambda: np.copyto(received, sent),
        "MPI's own allreduce": lambda: world.host_comm.Allreduce(sent, received),
    }
    timed: dict[str, list[float]] = {leg: [] for leg in legs}
    # The first two repetitions compile the programs and warm up connections.
    for repetition in range(-2, arguments.repeat):
        for leg, part in legs.items():
            world.barrier()
            start = time.perf_counter()
            jax.block_until_ready(part())
            if repetition >= 0:
                timed[leg].append(time.perf_counter() - start)
    devices = f"{engine.num_devices} x {engine.mesh.devices.flat[0].device_kind}"
    rows = []
    for leg, of_rank in timed.items():
        seconds = np.max(world.allgather(of_rank), axis=0)
        median = float(np.median(seconds))
        gb_s = sum(layout.sizes) * 1e-9 / median
        rows.append(StagingRow(leg, devices, world.size, sum(layout.sizes), median, gb_s, seconds.tolist()))
    return rows


def _table(rows: Sequence[StagingRow]) -> str:
    first = rows[0]
    lines = [f"{first.ranks} ranks, {first.devices} per rank, {first.num_bytes:,} bytes per rank"]
    lines += [f"  {row.leg:26} {row.median_s * 1e3:9.2f} ms {row.gb_s:8.2f} GB/s" for row in rows]
    return "\n".join(lines)
