"""Times the way of buckets by the host, as those of GPUs go: each leg by itself, and all of them bucket by bucket.

The legs: parts of buckets from the local devices to pinned host memory, over the ranks, and back to the devices. Beside
them, in the same repetitions, stand a copy of as many bytes in host memory, which no leg can be expected to beat on
CPU devices, and MPI's own allreduce on them. Bytes are those of all buckets of one rank. Sums are checked.
"""

from __future__ import annotations

import argparse
import dataclasses
import pathlib
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from jaxdp import compat, parse
from jaxdp.bench.step_parts import allreduce_config
from jaxdp.collectives.algorithms import ALGORITHMS
from jaxdp.collectives.choice import AUTO, MPI
from jaxdp.world import World


@dataclasses.dataclass(frozen=True)
class Row:
    """One leg.

    Attributes:
      leg: its name.
      devices: local ones, their number and kind.
      ranks: their number.
      num_bytes: of all buckets of a rank.
      median_s: of the slowest rank.
      gb_s: num_bytes over that time, in 10^9 bytes a second.
      seconds: of each repetition.
    """

    leg: str
    devices: str
    ranks: int
    num_bytes: int
    median_s: float
    gb_s: float
    seconds: list[float]


def main(words: Sequence[str], world: World) -> None:
    """Measures, and has rank 0 print and write the rows."""
    arguments = parse.on_all_ranks(make_parser(), words, lambda found: _check(found, world), world)
    if arguments is None:
        return
    compat.prepare_process(threads=world.threads, gpus=world.gpus)
    rows = _measure(arguments, world)
    if world.is_root:
        print(_table(rows), flush=True)
    with world.together():
        if world.is_root and arguments.json:
            parse.write_json(arguments.json, {"rows": [dataclasses.asdict(row) for row in rows]})


def make_parser() -> parse.Parser:
    """The flags of this benchmark."""
    parser = parse.Parser("jaxdp.bench staging", description=__doc__, allow_abbrev=False)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    add = parser.add_argument
    add("--bucket", type=parse.size, default=parse.size("4M"), help="bytes of a float32 bucket; default 4M")
    add("--buckets", type=parse.number, default=25, help="how many; default %(default)s")
    add("--algorithm", choices=(*ALGORITHMS, MPI, AUTO), default="halving_doubling", help="default %(default)s")
    add("--repeat", type=parse.number, default=10, help="repetitions, interleaved; default %(default)s")
    add("--json", type=pathlib.Path, help="a file for the rows")
    return parser


def _check(arguments: argparse.Namespace, world: World) -> None:
    if world.size < 2:
        raise ValueError("buckets cross between 2 ranks or more, this world has 1: start it with mpirun -n 2")
    parse.check_writable(arguments.json)


def _measure(arguments: argparse.Namespace, world: World) -> list[Row]:
    import jax

    from jaxdp.collectives.buckets import Buckets
    from jaxdp.engines.local import LocalEngine
    from jaxdp.engines.staging import Staging

    engine = LocalEngine.create("native", world.size)
    bucket = jax.ShapeDtypeStruct((-(-arguments.bucket // 4),), np.float32)
    layout = Buckets.plan([bucket] * arguments.buckets, bucket_bytes=1)
    config = allreduce_config("native", arguments.algorithm, "float32", bucket_bytes=1)
    staging = Staging(engine.mesh, engine.host)
    cross = staging.crossing(engine.make_allreduce(config, world, layout, None))

    def mine(rank: int) -> np.ndarray:
        return np.arange(-(-bucket.size // engine.num_devices) * engine.num_devices, dtype=np.float32) % 64 + rank

    on_devices = staging.give([np.split(mine(world.rank), engine.num_devices)] * arguments.buckets)
    leave = jax.jit(lambda parts: parts, out_shardings=staging.pinned)
    pinned = leave(on_devices)
    on_host = staging.take(pinned)
    expected = sum(mine(rank) for rank in range(world.size))
    for total in staging.give(cross(on_host)):
        assert np.array_equal(total, expected), "sums of small whole numbers are exact"

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
    # The first two repetitions compile, and let connections warm up.
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
        rows.append(Row(leg, devices, world.size, sum(layout.sizes), median, gb_s, seconds.tolist()))
    return rows


def _table(rows: Sequence[Row]) -> str:
    first = rows[0]
    lines = [f"{first.ranks} ranks, {first.devices} a rank, {first.num_bytes:,} bytes a rank"]
    lines += [f"  {row.leg:26} {row.median_s * 1e3:9.2f} ms {row.gb_s:8.2f} GB/s" for row in rows]
    return "\n".join(lines)
