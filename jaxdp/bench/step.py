"""Times a whole training step and its parts, which say how fast it could be.

The floor of a step on a network is the forward pass, the backward pass until the first bucket is ready, and then the
longer of the rest of the backward pass and the transfer: bytes on the wire over the goodput of a plain MPI stream. All
is measured in one run, interleaved, on the slowest rank. With --peers=.venv-peers/bin/python (made by launch/peers) so
is torch's step of the same model on one rank, compiled or eager: images channels_last, bfloat16 by autocast.

One engine a run, as engines disturb one another: compare them by runs in turn.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import functools
import pathlib
import time
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from jaxdp import compat, parse
from jaxdp.bench import step_parts, trace
from jaxdp.bench.peers import check_python, running_steps
from jaxdp.collectives.algorithms import ALGORITHMS
from jaxdp.collectives.choice import AUTO, MPI, WIRES
from jaxdp.config import ENGINES
from jaxdp.world import World

_TORCH_HAS = ("resnet50",)


@dataclasses.dataclass(frozen=True)
class Row:
    """A step and its parts: medians over the repetitions, in seconds, on the slowest rank.

    Attributes:
      engine, model: what ran.
      ranks, batch: their number, and images a rank.
      gradient_bytes: of all buckets.
      buckets: how many.
      forward_s: the forward pass and its loss.
      first_bucket_s: from there until the first bucket is ready.
      compute_s: forward, backward and update, all on one rank, nothing crossing; when buckets are ready is seen there.
      transfer_s: 2 (p - 1) / p x bytes over the goodput of a plain MPI stream.
      floor_s: forward + first bucket + max(rest, transfer).
      step_s: the whole step.
      plain_s: the same model in a hand-written JAX loop, nothing crossing: gradient of the mean loss, update.
      goodput_gbit_s: of the stream.
      p95_step_s: of the whole step.
      progress_share: of a core, used by the native engine's thread in the step, on the busiest rank.
      tflop_s: of a rank in the whole step, counting those of forward and backward.
      peer: the fastest of the peers.
      peer_s: its step.
      seconds: of each repetition of the step.
    """

    engine: str
    model: str
    ranks: int
    batch: int
    gradient_bytes: int
    buckets: int
    forward_s: float
    first_bucket_s: float
    compute_s: float
    transfer_s: float
    floor_s: float
    step_s: float
    plain_s: float
    goodput_gbit_s: float
    p95_step_s: float
    progress_share: float
    tflop_s: float
    peer: str | None
    peer_s: float | None
    seconds: list[float]


def main(words: Sequence[str], world: World) -> None:
    """Measures, and has rank 0 print and write the row."""
    arguments = parse.on_all_ranks(make_parser(), words, _check, world)
    if arguments is None:
        return
    compat.prepare_process(threads=world.threads, gpus=world.gpus)
    row, spans = _measure(arguments, world)
    if world.is_root:
        print(_text(row), flush=True)
    with world.together():
        if world.is_root:
            _write(arguments, row, spans)


def _write(arguments: argparse.Namespace, row: Row, spans: list[list[trace.Span]]) -> None:
    if arguments.json:
        parse.write_json(arguments.json, {"rows": [dataclasses.asdict(row)]})
    if arguments.trace:
        trace.write(arguments.trace, spans)
    if arguments.plot:
        from jaxdp.bench import plots

        plots.step(row, spans[0], arguments.plot)


def make_parser() -> parse.Parser:
    """The flags of this benchmark."""
    parser = parse.Parser("jaxdp.bench step", description=__doc__, allow_abbrev=False)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    add = parser.add_argument
    add("--engine", choices=ENGINES, help="default %(default)s")
    add("--model", choices=tuple(step_parts.MODELS), help="default %(default)s")
    add("--image_size", type=parse.number, help="height and width; default 32, or 224 for resnet50")
    add("--dtype", choices=("float32", "bfloat16"), help="in which the model computes; default %(default)s")
    add("--batch", type=parse.number, help="images a rank; default %(default)s")
    add("--algorithm", choices=(*ALGORITHMS, MPI, AUTO), help="default %(default)s")
    add("--wire", choices=tuple(WIRES), help="what float32 is on the wire")
    add("--bucket", type=parse.size, help="with which a bucket is closed; default %(default)s")
    add("--repeat", type=parse.number, default=10, help="repetitions, interleaved; default 10")
    add("--peers", type=pathlib.Path, help="a Python with torch and torchvision, to measure it beside; one rank only")
    add("--json", type=pathlib.Path, help="a file for the row")
    add("--plot", type=pathlib.Path, help="a file for a picture of rank 0's last step; native only")
    add("--trace", type=pathlib.Path, help="a file for the last step in Chrome's trace format; native only")
    parser.set_defaults(**dataclasses.asdict(step_parts.Setting()))
    return parser


def _check(arguments: argparse.Namespace) -> None:
    parse.check_writable(arguments.json, arguments.trace, arguments.plot)
    check_python(arguments.peers)
    if arguments.peers is not None and arguments.model not in _TORCH_HAS:
        raise ValueError(
            f"--peers is for models that torchvision has, which {arguments.model!r} of this benchmark is not: use "
            f"--model={_TORCH_HAS[0]}"
        )
    if (arguments.trace or arguments.plot) and arguments.engine != "native":
        raise ValueError(f"--trace and --plot show the buckets of the native engine, not those of {arguments.engine}")
    if arguments.wire != "float32" and arguments.engine == "xla":
        raise ValueError(f"--wire {arguments.wire} is not for JAX's own collectives, which send what they sum")
    if arguments.wire != "float32" and arguments.algorithm == MPI:
        raise ValueError(f"--wire {arguments.wire} is not for MPI's own allreduce, which sends what it sums")


def _measure(arguments: argparse.Namespace, world: World) -> tuple[Row, list[list[trace.Span]]]:
    fields = [field.name for field in dataclasses.fields(step_parts.Setting)]
    parts = step_parts.make_parts(step_parts.Setting(**{name: getattr(arguments, name) for name in fields}), world)
    with contextlib.ExitStack() as stack:
        peers: dict[str, Callable[[], float]] = {}
        if arguments.peers is not None:
            size = arguments.image_size or step_parts.MODELS[arguments.model].image_size
            torch = stack.enter_context(
                running_steps(
                    arguments.peers,
                    model=arguments.model,
                    batch=arguments.batch,
                    image_size=size,
                    dtype=arguments.dtype,
                    threads=world.threads,
                )
            )
            peers = {way: functools.partial(torch.measure, way) for way in torch.ways}
        return _timed(arguments, parts, peers, world)


def _timed(
    arguments: argparse.Namespace,
    parts: step_parts.Parts,
    peers: Mapping[str, Callable[[], float]],
    world: World,
) -> tuple[Row, list[list[trace.Span]]]:
    import jax

    from jaxdp.collectives import run_native

    native = run_native.engine_of(world)
    of_peers: dict[str, list[float]] = {way: [] for way in peers}
    timed: dict[str, list[float]] = {name: [] for name in ("first", *parts.programs)}
    goodputs, progress = [], 0.0
    of_step = (0.0, 0.0)
    # The same order on all ranks, another one each time: what runs before a program decides what is in its caches.
    orders = np.random.default_rng(0)
    # The first two repetitions compile, and let connections warm up.
    for repetition in range(-2, arguments.repeat):
        for name in orders.permutation(list(parts.programs)):
            world.barrier()
            start, used = time.perf_counter(), step_parts.progress_seconds()
            jax.block_until_ready(parts.programs[name]())
            end = time.perf_counter()
            if name == "step":
                of_step = (start, end)
            if repetition >= 0:
                timed[name].append(end - start)
                if name == "step":
                    progress += step_parts.progress_seconds() - used
                if name == "compute":
                    # On an accelerator no bucket leaves before the program of all of them has ended.
                    ready = [event.start_s for event in native.events() if event.start_s >= start] or [end]
                    timed["first"].append(min(ready) - start)
        for way, measure in peers.items():
            seconds_of_peer = measure()
            if repetition >= 0:
                of_peers[way].append(seconds_of_peer)
        if repetition >= 0:
            goodputs.append(step_parts.goodput(world))
    spans = trace.of_step(of_step, parts.engine.num_devices, world) if arguments.trace or arguments.plot else []
    seconds = {name: np.max(world.allgather(of_rank), axis=0) for name, of_rank in timed.items()}
    median = {name: float(np.median(values)) for name, values in seconds.items()}
    goodput = float(np.median(goodputs)) if world.size > 1 else 0.0
    num_bytes = sum(parts.bucket_bytes) * WIRES[arguments.wire] // WIRES["float32"]
    transfer = 2 * (world.size - 1) / world.size * num_bytes * 8e-9 / goodput if world.size > 1 else 0.0
    peer = min(of_peers, key=lambda way: np.median(of_peers[way]), default=None)
    until_first = max(median["forward"], median["first"])
    row = Row(
        engine=arguments.engine,
        model=arguments.model,
        ranks=world.size,
        batch=arguments.batch,
        gradient_bytes=sum(parts.bucket_bytes),
        buckets=len(parts.bucket_bytes),
        forward_s=median["forward"],
        first_bucket_s=until_first - median["forward"],
        compute_s=median["compute"],
        transfer_s=transfer,
        floor_s=until_first + max(median["compute"] - until_first, transfer),
        step_s=median["step"],
        plain_s=median["plain"],
        goodput_gbit_s=goodput,
        p95_step_s=float(np.percentile(seconds["step"], 95)),
        progress_share=max(world.allgather(progress / sum(timed["step"]))),
        tflop_s=parts.flops / median["step"] * 1e-12,
        peer=peer,
        peer_s=None if peer is None else float(np.median(of_peers[peer])),
        seconds=seconds["step"].tolist(),
    )
    return row, spans


def _text(row: Row) -> str:
    times = {
        "forward": row.forward_s,
        "first bucket": row.first_bucket_s,
        "compute": row.compute_s,
        "transfer": row.transfer_s,
        "floor": row.floor_s,
        "step": row.step_s,
        "p95": row.p95_step_s,
        "by hand": row.plain_s,
    }
    return (
        f"{row.engine}, {row.model}, {row.batch} images a rank, {row.ranks} ranks, {row.gradient_bytes:,} bytes in "
        f"{row.buckets} buckets, stream {row.goodput_gbit_s:.3f} Gbit/s\n"
        + "  ".join(f"{name} {seconds * 1e3:.1f} ms" for name, seconds in times.items())
        + f"  step / floor {row.step_s / row.floor_s:.3f}  step / by hand {row.step_s / row.plain_s:.3f}"
        + f"  {row.tflop_s:.4g} TFLOP/s"
        + (f"  {row.peer} {row.peer_s * 1e3:.1f} ms, {row.peer_s / row.step_s:.3f} of it" if row.peer_s else "")
        + (f"  progress thread {row.progress_share:.2f} of a core" if row.engine == "native" else "")
    )
