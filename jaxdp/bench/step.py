"""Times a whole training step and its parts, which say how fast it could be.

The floor of a step on a network is the forward pass, the backward pass until the first bucket is ready, and then the
longer of the rest of the backward pass and the transfer: bytes on the wire over the goodput of a plain MPI stream. All
is measured in one run, interleaved, on the slowest rank.

One engine a run, as engines disturb one another: compare them by runs in turn.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import pathlib
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from jaxdp import compat
from jaxdp.bench import parse
from jaxdp.collectives.algorithms import ALGORITHMS
from jaxdp.collectives.choice import AUTO, MPI, WIRES
from jaxdp.config import ENGINES, AllreduceConfig, OptimizerConfig
from jaxdp.world import World

if TYPE_CHECKING:
    from jaxdp.step import Batch

# What a model needs beside its name.
_OPTIONS: dict[str, dict[str, Any]] = {
    "cnn": {"width": 64},
    "resnet18": {"stem": "cifar", "zero_gamma": True, "norm_momentum": 0.9, "norm_epsilon": 1e-5},
}
_NUM_CLASSES = 10
_RATE = 1e-3
# Of the stream that tells the goodput: messages that are under way together, and for how long it runs.
_STREAM_BYTES, _STREAM_MESSAGES, _STREAM_SECONDS = 2**20, 4, 0.3


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
    seconds: list[float]


def main(words: Sequence[str], world: World) -> None:
    """Measures, and has rank 0 print and write the row."""
    arguments = parse.on_all_ranks(make_parser(), words, _check, world)
    if arguments is None:
        return
    compat.prepare_process(threads=world.threads)
    row, spans = _measure(arguments, world)
    if world.is_root:
        print(_text(row), flush=True)
    with world.together():
        if world.is_root:
            _write(arguments, row, spans)


def _write(arguments: argparse.Namespace, row: Row, spans: list[list[Span]]) -> None:
    if arguments.json:
        parse.write_json(arguments.json, {"rows": [dataclasses.asdict(row)]})
    if arguments.trace:
        _write_trace(arguments.trace, spans)
    if arguments.plot:
        from jaxdp.bench import plots

        plots.step(row, spans[0], arguments.plot)


def make_parser() -> parse.Parser:
    """The flags of this benchmark."""
    parser = parse.Parser("jaxdp.bench step", description=__doc__, allow_abbrev=False)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    add = parser.add_argument
    add("--engine", choices=ENGINES, default="native", help="default native")
    add("--model", choices=tuple(_OPTIONS), default="resnet18", help="default resnet18")
    add("--image_size", type=parse.number, default=32, help="height and width; default 32")
    add("--batch", type=parse.number, default=16, help="images a rank; default 16")
    add("--algorithm", choices=(*ALGORITHMS, MPI, AUTO), default="multicolor", help="default multicolor")
    add("--wire", choices=tuple(WIRES), default="float32", help="what float32 is on the wire")
    add("--bucket", type=parse.size, default=4_000_000, help="with which a bucket is closed; default 4M")
    add("--repeat", type=parse.number, default=10, help="repetitions, interleaved; default 10")
    add("--json", type=pathlib.Path, help="a file for the row")
    add("--plot", type=pathlib.Path, help="a file for a picture of rank 0's last step; native only")
    add("--trace", type=pathlib.Path, help="a file for the last step in Chrome's trace format; native only")
    return parser


def _check(arguments: argparse.Namespace) -> None:
    parse.check_writable(arguments.json, arguments.trace, arguments.plot)
    if (arguments.trace or arguments.plot) and arguments.engine != "native":
        raise ValueError(f"--trace and --plot show the buckets of the native engine, not those of {arguments.engine}")
    if arguments.algorithm == MPI and arguments.engine == "native":
        raise ValueError("--algorithm mpi has no schedule for the native engine: see --engine")


def _measure(arguments: argparse.Namespace, world: World) -> tuple[Row, list[list[Span]]]:
    import jax
    import optax

    from jaxdp.collectives import run_native
    from jaxdp.collectives.buckets import Buckets
    from jaxdp.engines import make_engine
    from jaxdp.models.network import Network
    from jaxdp.optim.factory import make_optimizer
    from jaxdp.state import TrainState
    from jaxdp.step import Batch, Task, apply_gradients, forward_backward, reduced_order, reduced_shapes

    engine = make_engine(arguments.engine, world)
    shape = (arguments.image_size, arguments.image_size, 3)
    network, params, stats = Network.create(
        arguments.model, _OPTIONS[arguments.model], image_shape=shape, num_classes=_NUM_CLASSES, seed=0
    )
    task = Task(network, (0.5,), (0.25,), arguments.batch * world.size, padded=False)
    optimizer = make_optimizer(OptimizerConfig("sgd", 0.9, False, 1e-4, 0.0), optax.constant_schedule(_RATE), params)
    first_state = TrainState.create(params, stats, optimizer)
    layout = Buckets.plan(
        reduced_shapes(first_state), bucket_bytes=arguments.bucket, order=reduced_order(task, first_state, shape)
    )
    config = AllreduceConfig(
        engine=arguments.engine,
        algorithm=arguments.algorithm,
        colors=None,
        arity=None,
        inner="direct",
        outer="multicolor",
        ranks_per_node=None,
        segment_bytes=2**16 if arguments.engine == "native" else 2**18,
        wire=arguments.wire,
        bucket_bytes=arguments.bucket,
    )
    allreduce = engine.make_allreduce(config, world, layout, None)
    rng = np.random.default_rng(world.rank)
    batch = Batch(
        rng.integers(0, 256, (arguments.batch, *shape), np.uint8),
        rng.integers(0, _NUM_CLASSES, arguments.batch).astype(np.int32),
        np.ones(arguments.batch, bool),
    )

    # The parts run on the first device of this rank, by themselves.
    device = jax.local_devices()[0]

    def fresh() -> TrainState:
        return jax.device_put(jax.tree.map(np.array, first_state), device)

    mine = (fresh().params, fresh().stats, jax.device_put(batch, device))
    forward = jax.jit(functools.partial(_loss, task))
    native = run_native.engine_of(world)
    stamps = [native.plan_without_messages(bucket.size, bucket.dtype) for bucket in layout.buckets]

    def compute(state: TrainState, batch: Batch) -> Any:
        buckets = layout.pack(forward_backward(task, state.params, state.stats, batch))
        return apply_gradients(optimizer, state, layout.unpack(run_native.allreduce_all(buckets, stamps)))

    update = jax.jit(compute, donate_argnums=0)
    plain = _plain_step(task, optimizer)
    step = engine.train_step(task, optimizer, layout, allreduce)

    placed = engine.place(batch)
    states = {"compute": fresh(), "plain": fresh(), "step": engine.replicate(fresh())}

    def going_on(name: str, function: Callable[..., Any], images: Batch) -> Any:
        states[name], values = function(states[name], images)
        return states[name], values

    parts: dict[str, Callable[[], Any]] = {
        "forward": lambda: forward(*mine),
        "compute": lambda: going_on("compute", update, mine[2]),
        "plain": lambda: going_on("plain", plain, mine[2]),
        "step": lambda: going_on("step", step, placed),
    }
    timed: dict[str, list[float]] = {name: [] for name in ("first", *parts)}
    goodputs = []
    marks = (0.0, 0.0)
    # The first two repetitions compile, and let connections warm up.
    for repetition in range(-2, arguments.repeat):
        for name, part in parts.items():
            world.barrier()
            start = time.perf_counter()
            jax.block_until_ready(part())
            marks = (start, time.perf_counter())
            if repetition >= 0:
                timed[name].append(marks[1] - marks[0])
                if name == "compute":
                    ready = [event.start_s for event in native.events() if event.start_s >= start]
                    timed["first"].append(min(ready) - start)
        if repetition >= 0:
            goodputs.append(_goodput(world))
    spans = _spans(marks, engine.num_devices, world) if arguments.trace or arguments.plot else []
    seconds = {name: np.max(world.allgather(of_rank), axis=0) for name, of_rank in timed.items()}
    median = {name: float(np.median(values)) for name, values in seconds.items()}
    goodput = float(np.median(goodputs)) if world.size > 1 else 0.0
    num_bytes = sum(layout.sizes) * WIRES[arguments.wire] // WIRES["float32"]
    transfer = 2 * (world.size - 1) / world.size * num_bytes * 8e-9 / goodput if world.size > 1 else 0.0
    until_first = max(median["forward"], median["first"])
    row = Row(
        engine=arguments.engine,
        model=arguments.model,
        ranks=world.size,
        batch=arguments.batch,
        gradient_bytes=sum(layout.sizes),
        buckets=len(layout.members),
        forward_s=median["forward"],
        first_bucket_s=until_first - median["forward"],
        compute_s=median["compute"],
        transfer_s=transfer,
        floor_s=until_first + max(median["compute"] - until_first, transfer),
        step_s=median["step"],
        plain_s=median["plain"],
        goodput_gbit_s=goodput,
        p95_step_s=float(np.percentile(seconds["step"], 95)),
        seconds=seconds["step"].tolist(),
    )
    return row, spans


def _loss(task: Any, params: Any, stats: Any, batch: Batch) -> Any:
    import jax.numpy as jnp

    from jaxdp.losses import cross_entropy

    logits_BK, _ = task.network.apply(params, stats, task.normalise(batch.image_BHWC), train=True)
    return jnp.mean(cross_entropy(logits_BK, batch.label_B))


def _plain_step(task: Any, optimizer: Any) -> Callable[..., Any]:
    """The loop that one would write by hand for one device."""
    import jax
    import optax

    from jaxdp.losses import cross_entropy

    def loss_of(params: Any, stats: Any, batch: Batch) -> Any:
        logits_BK, stats = task.network.apply(params, stats, task.normalise(batch.image_BHWC), train=True)
        return cross_entropy(logits_BK, batch.label_B).mean(), stats

    def step(state: Any, batch: Batch) -> Any:
        (loss, stats), gradient = jax.value_and_grad(loss_of, has_aux=True)(state.params, state.stats, batch)
        updates, opt_state = optimizer.update(gradient, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        return state.replace(step=state.step + 1, params=params, stats=stats, opt_state=opt_state), loss

    return jax.jit(step, donate_argnums=0)


def _goodput(world: World) -> float:
    """Gbit/s of a stream from every even rank to the next one, the slowest of them; 0.0 for one rank."""
    comm = world.host_comm
    peer = world.rank ^ 1
    if peer >= world.size:
        speeds = world.allgather(None)
    else:
        buffers = [np.zeros(_STREAM_BYTES, np.uint8) for _ in range(_STREAM_MESSAGES)]
        done, start = 0, 0.0
        more = np.ones(1, np.uint8)
        # The first round opens the window of the connection.
        for repetition in range(10_000):
            if repetition == 1:
                start = time.perf_counter()
            transfer = comm.Irecv if world.rank % 2 else comm.Isend
            for request in [transfer(buffer, peer, 1) for buffer in buffers]:
                request.Wait()
            if repetition > 0:
                done += _STREAM_BYTES * _STREAM_MESSAGES
            # The receiver, which knows when bytes have come, ends it.
            if world.rank % 2:
                more[0] = repetition == 0 or time.perf_counter() - start < _STREAM_SECONDS
                comm.Send(more, peer, 2)
            else:
                comm.Recv(more, peer, 2)
            if not more[0]:
                break
        speeds = world.allgather(done * 8e-9 / (time.perf_counter() - start))
    return min((speed for speed in speeds if speed is not None), default=0.0)


class Span(NamedTuple):
    """What took place from one moment to another, in seconds from the start of the step."""

    name: str
    start_s: float
    end_s: float


def _spans(marks: tuple[float, float], num_devices: int, world: World) -> list[list[Span]]:
    """Of every rank: the last step, and its buckets from when they were ready until they had crossed."""
    from jaxdp.collectives import run_native

    start, end = marks
    mine = [Span("step", 0.0, end - start)]
    events = [event for event in run_native.engine_of(world).events() if event.start_s >= start]
    first = min((event.plan for event in events), default=0)
    for event in sorted(events):
        bucket, device = divmod(event.plan - first, num_devices)
        name = f"bucket {bucket}" + f", device {device}" * (num_devices > 1)
        mine.append(Span(name, event.start_s - start, event.end_s - start))
    return world.allgather(mine)


def _write_trace(path: pathlib.Path, spans: list[list[Span]]) -> None:
    """In Chrome's trace format: a process a rank, a line a bucket."""
    events = [
        {
            "name": span.name,
            "ph": "X",
            "pid": rank,
            "tid": line,
            "ts": span.start_s * 1e6,
            "dur": (span.end_s - span.start_s) * 1e6,
        }
        for rank, of_rank in enumerate(spans)
        for line, span in enumerate(of_rank)
    ]
    parse.write_json(path, {"traceEvents": events, "displayTimeUnit": "ms"})


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
    )
