"""Times the input pipeline from RAM to the devices, and how long training steps wait for it.

The data is synthetic and held in RAM, with a part of it on each node. Batches pass through the exchange between nodes,
the gathering of rows and the feed, as in training, at full speed. A plain copy of the same number of bytes is timed in
the same run for comparison. --step runs the feed together with training steps of a model and reports the share of time
in which the steps wait for data. --peers=.venv-peers/bin/python (created by launch/peers) also times Grain and torch's
DataLoader on the same records in RAM, and reports the fastest of several settings of each. --load=NAME times loading a
data set from its files into RAM, compared with reading the raw files.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import functools
import itertools
import pathlib
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from jaxdp.bench import step_parts
from jaxdp.bench.peers import check_python, running_loaders
from jaxdp.cli import parsing, start
from jaxdp.data.nodes import Group
from jaxdp.data.order import BatchSplit, Order
from jaxdp.runtime import process
from jaxdp.runtime.world import World

if TYPE_CHECKING:
    from jaxdp.data.batch import Batch
    from jaxdp.data.feed import Prefetcher
    from jaxdp.data.split import Split
from jaxdp.bench.rows import InputRow

_CHANNELS = 3
_NUM_CLASSES = 10
_PREFETCH, _EXCHANGE_STEPS = 2, 16
_WARMUP = 4


def main(words: Sequence[str] | None = None) -> None:
    """Runs the benchmark on every rank; rank 0 prints and writes the rows."""
    start.on_ranks(make_parser(), _run, words, check=lambda given, _: _check(given))


def _run(arguments: argparse.Namespace, world: World) -> None:
    process.prepare_process(threads=world.threads, gpus=world.gpus)
    measures: list[Callable[[argparse.Namespace, World], list[InputRow]]]
    measures = [functools.partial(_measure, size) for size in arguments.sizes]
    if arguments.load is not None:
        measures.append(_loaded)
    rows: list[InputRow] = []
    for measure in measures:
        found = measure(arguments, world)
        rows += found
        if world.is_root:
            print("\n".join(map(_text, found)), flush=True)
    with world.agree_or_exit():
        if world.is_root and arguments.json:
            parsing.write_json(arguments.json, {"rows": [dataclasses.asdict(row) for row in rows], "ranks": world.size})


def _check(arguments: argparse.Namespace) -> None:
    parsing.check_writable(arguments.json)
    check_python(arguments.peers)
    if arguments.steps <= _WARMUP:
        raise ValueError(f"--steps must be larger than the {_WARMUP} warm-up steps, not {arguments.steps}")


def make_parser() -> parsing.Parser:
    """Returns the parser of the command line of this benchmark."""
    parser = parsing.Parser("bench input", __doc__, examples=("mpirun -n 2 jaxdp bench input --sizes=32,224",))
    add = parser.add_argument
    add("--sizes", type=parsing.numbers, default="32,224", help="image heights and widths")
    add("--batch", type=parsing.number, default=128, help="images per rank")
    add("--bytes", type=parsing.size, default="1G", help="size of the data over all nodes")
    add("--repeat", type=parsing.number, default=5, help="repetitions, interleaved")
    add("--steps", type=parsing.number, default=64, help="batches per repetition")
    add("--step", action="store_true", help="also measure stalls of training steps, of --model")
    add("--model", choices=tuple(step_parts.MODELS), default="resnet18", help="model of --step")
    add("--peers", type=pathlib.Path, help="a Python with Grain or torch, to time their loaders too; no mpirun")
    add("--load", help="name of a prepared data set, to time its loading too")
    add("--stored_size", type=parsing.number, help="size to which the images of --load are resized")
    add("--json", type=pathlib.Path, help="write the rows to this file")
    return parser


def _measure(size: int, arguments: argparse.Namespace, world: World) -> list[InputRow]:
    import jax

    from jaxdp.data.load import check_memory, read
    from jaxdp.data.storage import Pixels
    from jaxdp.data.synthetic import PREFIX, open_synthetic
    from jaxdp.placement import make_placement

    engine = make_placement("native", world)
    image_bytes = size * size * _CHANNELS
    count = max(arguments.batch * world.size, arguments.bytes // image_bytes)
    source = open_synthetic(f"{PREFIX}{count}:1:{size}:{_NUM_CLASSES}")
    group = Group.of(world, 1).opened(world.data_comm)
    check_memory(source, world, {"train": group})
    split = read(source, "train", world, group)
    assert isinstance(split.images, Pixels), "a synthetic source is read as decoded images"
    images_NHWC = split.images.images_NHWC

    def fed(place: Callable[[Batch], Batch]) -> float:
        ahead = feed_of(split, group, arguments, world, engine.num_devices, place)
        start = time.perf_counter()
        for batch in ahead:
            jax.block_until_ready(batch.image_BHWC)
        return time.perf_counter() - start

    repetitions = itertools.count()
    ways: dict[str, Callable[[], float]] = {
        "jaxdp": lambda: fed(engine.place),
        "jaxdp on the host": lambda: fed(lambda batch: batch),
        "memcpy": lambda: _copy(images_NHWC, arguments, next(repetitions)),
    }
    with contextlib.ExitStack() as stack:
        if arguments.peers is not None:
            peers = stack.enter_context(running_loaders(arguments.peers, images_NHWC, arguments.batch, arguments.steps))
            ways |= {way: functools.partial(peers.measure, way) for way in peers.ways}
        # The first round warms up and selects the two fastest settings of each loader.
        chosen = _fastest({name: way() for name, way in ways.items()}, most=2)
        timed: dict[str, list[float]] = {name: [] for name in chosen}
        for _ in range(arguments.repeat):
            for name in chosen:
                world.barrier()
                timed[name].append(ways[name]())
    crossing = _crossing_images(split, arguments, world) * image_bytes
    slowest = {name: float(np.median(np.max(world.allgather(seconds), axis=0))) for name, seconds in timed.items()}
    rates = {name: arguments.steps * arguments.batch / slowest[name] for name in _fastest(slowest, most=1)}
    rows = [
        InputRow(name, size, rate, rate * image_bytes, None, crossing if name.startswith("jaxdp") else 0.0)
        for name, rate in rates.items()
    ]
    if arguments.step:
        rate, stalled = _beside_steps(split, group, size, arguments, world)
        rows.append(InputRow("jaxdp beside a step", size, rate, rate * image_bytes, stalled, crossing))
    return rows


def _fastest(seconds: dict[str, float], *, most: int) -> list[str]:
    """Returns the fastest settings of each loader, from times by name; names have the form "LOADER: SETTING"."""
    settings: dict[str, list[str]] = {}
    for name in sorted(seconds, key=seconds.__getitem__):
        settings.setdefault(name.split(":")[0], []).append(name)
    return [name for name in seconds if name in settings[name.split(":")[0]][:most]]


def _loaded(arguments: argparse.Namespace, world: World) -> list[InputRow]:
    from jaxdp.bench.loading import measure
    from jaxdp.data.tfds_source import open_tfds

    with world.agree_or_exit():
        source = open_tfds(arguments.load, None, {"train": "train", "test": "train"}, arguments.stored_size)
    loaded = measure(source, "train", world, repeat=arguments.repeat)
    size, count = source.image_shape[0], source.sizes["train"]
    return [InputRow(way.loader, size, count / way.seconds, way.file_bytes / way.seconds, None, 0.0) for way in loaded]


def feed_of(
    split: Split,
    group: Group,
    arguments: argparse.Namespace,
    world: World,
    num_devices: int,
    place: Callable[[Batch], Batch],
) -> Prefetcher[Batch]:
    """Returns a feed of the batches of the benchmark, as in training on `num_devices` local devices."""
    from jaxdp.data import feed

    host_batches = feed.batches(
        split,
        order=_order(split, arguments, world),
        batch_split=BatchSplit(arguments.batch * world.size, world.size, num_devices),
        rank=world.rank,
        group=group,
        comm=world.data_comm,
        steps=range(arguments.steps),
        steps_per_exchange=_EXCHANGE_STEPS,
    )
    return feed.Prefetcher(host_batches, place, depth=_PREFETCH)


def _order(split: Split, arguments: argparse.Namespace, world: World) -> Order:
    return Order(split.num_examples, arguments.batch * world.size, seed=0)


def _copy(images_NHWC: np.ndarray, arguments: argparse.Namespace, repetition: int) -> float:
    """Returns the seconds for plain copies of the same number of batches, each to preallocated memory."""
    batch, steps = arguments.batch, arguments.steps
    into = [np.zeros((batch, *images_NHWC.shape[1:]), np.uint8) for _ in range(_PREFETCH + 1)]
    # Copy different images in every repetition if possible, because recently copied images are in the cache.
    starts = (np.arange(steps) + steps * repetition) * batch % max(1, len(images_NHWC) - batch)
    start = time.perf_counter()
    for step, first in enumerate(starts.tolist()):
        np.copyto(into[step % len(into)], images_NHWC[first : first + batch])
    return time.perf_counter() - start


def _crossing_images(split: Split, arguments: argparse.Namespace, world: World) -> float:
    """Returns the mean number of images per step that this rank receives from other nodes."""
    ids = _order(split, arguments, world).examples(0, arguments.steps)
    mine = ids[:, world.rank * arguments.batch : (world.rank + 1) * arguments.batch]
    return float(np.sum(split.node_of(mine) != split.node)) / arguments.steps


def _beside_steps(
    split: Split, group: Group, size: int, arguments: argparse.Namespace, world: World
) -> tuple[float, float]:
    """Returns the images per second and rank in training, and the share of time in which steps wait for data."""
    import jax

    parts = step_parts.make_parts(
        step_parts.Setting(model=arguments.model, image_size=size, batch=arguments.batch), world
    )
    # The first steps compile.
    for _ in range(2):
        jax.block_until_ready(parts.programs["step"]())
    world.barrier()
    ahead = feed_of(split, group, arguments, world, parts.engine.num_devices, parts.engine.place)
    start, done = 0.0, None
    for step, batch in enumerate(ahead):
        if step == _WARMUP:
            start, _ = time.perf_counter(), ahead.take_waited()
        after = parts.step_on(batch)
        # As in training, dispatch a step before waiting for the previous one.
        jax.block_until_ready(done)
        done = after
    jax.block_until_ready(done)
    seconds, waited = time.perf_counter() - start, ahead.take_waited()
    rate = (arguments.steps - _WARMUP) * arguments.batch / seconds
    return min(world.allgather(rate)), max(world.allgather(waited / seconds))


def _text(row: InputRow) -> str:
    words = [
        f"{row.loader}, {row.image_size}x{row.image_size}",
        f"{row.images_per_second:,.0f} images/s per rank",
        f"{row.bytes_per_second / 1e9:.3f} GB/s",
    ]
    if row.crossing_bytes_per_step:
        words.append(f"{row.crossing_bytes_per_step / 1e6:.2f} MB per step from other nodes")
    if row.stall_fraction is not None:
        words.append(f"steps wait {row.stall_fraction:.2%} of the time")
    return "  ".join(words)
