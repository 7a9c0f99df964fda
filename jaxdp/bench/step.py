"""Times a training step and its parts, and derives a lower bound (the floor) for the time of the step.

The floor is the sum of the forward pass, the backward pass until the first bucket is ready, and the longer of the rest
of the computation and the transfer. The transfer time is the bytes on the wire divided by the goodput of a plain MPI
stream. Everything is measured in one job, interleaved, on the slowest rank. --peers=.venv-peers/bin/python (created by
launch/peers) also times PyTorch's step of the same model on one rank, compiled and eager, with channels_last images and
autocast for bfloat16.

Each job measures one engine, because engines disturb each other. To compare engines, alternate jobs.
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

from jaxdp.bench import step_parts, trace
from jaxdp.bench.peers import check_python, running_steps
from jaxdp.bench.rows import StepRow
from jaxdp.cli import parsing, start
from jaxdp.collectives.algorithms import ALGORITHMS
from jaxdp.collectives.config import AUTO, ENGINES, MPI, WIRES
from jaxdp.runtime import process
from jaxdp.runtime.world import World

_TORCH_HAS = ("resnet50",)


def main(words: Sequence[str] | None = None) -> None:
    """Runs the benchmark on every rank; rank 0 prints and writes the row."""
    start.on_ranks(make_parser(), _run, words, check=lambda given, _: _check(given))


def _run(arguments: argparse.Namespace, world: World) -> None:
    process.prepare_process(threads=world.threads, gpus=world.gpus)
    row, spans = _measure(arguments, world)
    if world.is_root:
        print(_text(row), flush=True)
    with world.agree_or_exit():
        if world.is_root:
            _write(arguments, row, spans)


def _write(arguments: argparse.Namespace, row: StepRow, spans: list[list[trace.Span]]) -> None:
    if arguments.json:
        parsing.write_json(arguments.json, {"rows": [dataclasses.asdict(row)]})
    if arguments.trace:
        trace.write(arguments.trace, spans)
    if arguments.plot:
        from jaxdp.bench import plots

        plots.step(row, spans[0], arguments.plot)


def make_parser() -> parsing.Parser:
    """Returns the parser of the command line of this benchmark."""
    parser = parsing.Parser(
        "bench step", __doc__, examples=("mpirun -n 2 jaxdp bench step --engine=native --model=resnet18",)
    )
    add = parser.add_argument
    add("--engine", choices=ENGINES, help="engine that sums the gradients")
    add("--model", choices=tuple(step_parts.MODELS), help="model to train")
    add("--image_size", type=parsing.number, help="height and width of the images; default: 32, or 224 for resnet50")
    add("--dtype", choices=("float32", "bfloat16"), help="compute dtype of the model")
    add("--batch", type=parsing.number, help="images per rank")
    add("--algorithm", choices=(*ALGORITHMS, MPI, AUTO), help="algorithm of the allreduce")
    add("--wire", choices=tuple(WIRES), help="format of float32 values on the wire")
    add("--bucket", type=parsing.size, help="target size of a bucket")
    add("--repeat", type=parsing.number, default=10, help="repetitions, interleaved")
    add("--peers", type=pathlib.Path, help="a Python with torchvision, to time torch too; no mpirun")
    add("--json", type=pathlib.Path, help="write the row to this file")
    add("--plot", type=pathlib.Path, help="plot rank 0's last step to this file; native only")
    add("--trace", type=pathlib.Path, help="write the last step as a Chrome trace; native only")
    parser.set_defaults(**dataclasses.asdict(step_parts.Setting()))
    return parser


def _check(arguments: argparse.Namespace) -> None:
    parsing.check_writable(arguments.json, arguments.trace, arguments.plot)
    check_python(arguments.peers)
    if arguments.peers is not None and arguments.model not in _TORCH_HAS:
        raise ValueError(
            f"--peers cannot measure --model={arguments.model!r}, which torchvision does not have: use "
            f"--model={_TORCH_HAS[0]}"
        )
    if (arguments.trace or arguments.plot) and arguments.engine != "native":
        raise ValueError(f"--trace and --plot need --engine=native, not {arguments.engine}: only it records buckets")
    if arguments.wire != "float32" and arguments.engine == "xla":
        raise ValueError(f"--engine=xla does not support --wire={arguments.wire}: use --wire=float32")
    if arguments.wire != "float32" and arguments.algorithm == MPI:
        raise ValueError(f"--algorithm=mpi does not support --wire={arguments.wire}: use --wire=float32")


def _measure(arguments: argparse.Namespace, world: World) -> tuple[StepRow, list[list[trace.Span]]]:
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
) -> tuple[StepRow, list[list[trace.Span]]]:
    import jax

    from jaxdp.collectives import run_native

    native = run_native.engine_of(world)
    of_peers: dict[str, list[float]] = {way: [] for way in peers}
    timed: dict[str, list[float]] = {name: [] for name in ("first", *parts.programs)}
    goodputs, progress = [], 0.0
    of_step = (0.0, 0.0)
    # Shuffle the programs, alike on all ranks, because the preceding program determines what is in the caches.
    orders = np.random.default_rng(0)
    # The first two repetitions compile the programs and warm up connections.
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
                    # On an accelerator no bucket is sent before the program that computes all of them has ended.
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
    row = StepRow(
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


def _text(row: StepRow) -> str:
    times = {
        "forward": row.forward_s,
        "first bucket": row.first_bucket_s,
        "compute": row.compute_s,
        "transfer": row.transfer_s,
        "floor": row.floor_s,
        "step": row.step_s,
        "p95": row.p95_step_s,
        "hand-written": row.plain_s,
    }
    return (
        f"{row.engine}, {row.model}, {row.batch} images per rank, {row.ranks} ranks, {row.gradient_bytes:,} bytes in "
        f"{row.buckets} buckets, stream {row.goodput_gbit_s:.3f} Gbit/s\n"
        + "  ".join(f"{name} {seconds * 1e3:.1f} ms" for name, seconds in times.items())
        + f"  step / floor {row.step_s / row.floor_s:.3f}  step / hand-written {row.step_s / row.plain_s:.3f}"
        + f"  {row.tflop_s:.4g} TFLOP/s"
        + (f"  {row.peer} {row.peer_s * 1e3:.1f} ms ({row.peer_s / row.step_s:.3f} of the step)" if row.peer_s else "")
        + (f"  progress thread {row.progress_share:.2f} cores" if row.engine == "native" else "")
    )
