"""A training step and its parts, as separate programs for `jaxdp.bench step` to time."""

from __future__ import annotations

import dataclasses
import functools
import os
import pathlib
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from jaxdp.collectives.choice import SEGMENT_BYTES
from jaxdp.collectives.config import AllreduceConfig
from jaxdp.optim.config import OptimizerConfig
from jaxdp.runtime.world import World

if TYPE_CHECKING:
    from jaxdp.data.batch import Batch
    from jaxdp.placement import Placement


class Model(NamedTuple):
    """Defaults of a model.

    Attributes:
      options: options of the model.
      image_size: default height and width in pixels.
      num_classes: number of classes.
    """

    options: dict[str, Any]
    image_size: int
    num_classes: int


_RESNET = {"zero_gamma": True, "norm_momentum": 0.9, "norm_epsilon": 1e-5}
MODELS = {
    "cnn": Model({"width": 64}, 32, 10),
    "resnet18": Model({"stem": "cifar", **_RESNET}, 32, 10),
    "resnet50": Model({"stem": "imagenet", **_RESNET}, 224, 1000),
}
_RATE = 1e-3
# The stream that measures the goodput: bytes of a message, messages in flight, and duration.
_STREAM_BYTES, _STREAM_MESSAGES, _STREAM_SECONDS = 2**20, 4, 0.3
_PROGRESS_THREAD = "jaxdp-progress"


@dataclasses.dataclass(frozen=True)
class Setting:
    """The configuration of a step, as given by the flags of `jaxdp.bench step`."""

    engine: str = "native"
    model: str = "resnet18"
    image_size: int | None = None
    batch: int = 24
    dtype: str = "float32"
    algorithm: str = "multicolor"
    wire: str = "float32"
    bucket: int = 4_000_000


class Parts(NamedTuple):
    """The programs to time, and facts about the step.

    Attributes:
      programs: functions by name; each dispatches a program and returns its results, which may not be ready yet.
      step_on: runs the step on a given batch and returns its metrics.
      num_parameters: number of parameters of the model.
      bucket_bytes: bytes of each bucket of the step.
      flops: FLOPs of forward and backward on a batch, counting 2 per multiply-add.
      engine: engine that runs the step.
    """

    programs: dict[str, Callable[[], Any]]
    step_on: Callable[[Batch], Any]
    num_parameters: int
    bucket_bytes: list[int]
    flops: float
    engine: Placement


def make_parts(setting: Setting, world: World) -> Parts:
    """Makes the programs of a step; all ranks must call it together.

    The programs are `step`, `forward` (forward pass and loss), `compute` (forward, backward and update) and `plain` (a
    hand-written loop). Only `step` communicates; the other programs run on the first device of this rank.

    Args:
      setting: configuration of the step.
      world: all ranks.
    """
    import jax
    import optax

    from jaxdp.collectives import run_native
    from jaxdp.collectives.buckets import Buckets
    from jaxdp.data.batch import Batch
    from jaxdp.models.cpu.forms import count_flops
    from jaxdp.models.network import Network
    from jaxdp.optim.factory import make_optimizer
    from jaxdp.placement import make_placement
    from jaxdp.step.forward_backward import forward_backward, reduced_order, reduced_shapes
    from jaxdp.step.state import TrainState
    from jaxdp.step.task import Task
    from jaxdp.step.update import apply_gradients

    engine = make_placement(setting.engine, world)
    model = MODELS[setting.model]
    size = setting.image_size or model.image_size
    shape = (size, size, 3)
    network, params, stats = Network.create(
        setting.model,
        model.options | {"dtype": setting.dtype},
        image_shape=shape,
        num_classes=model.num_classes,
        seed=0,
    )
    task = Task(network, (0.5,), (0.25,), setting.batch * world.size, padded=False)
    rule = OptimizerConfig(name="sgd", momentum=0.9, weight_decay=1e-4)
    optimizer = make_optimizer(rule, optax.constant_schedule(_RATE), params)
    first_state = TrainState.create(params, stats, optimizer)
    layout = Buckets.plan(
        reduced_shapes(first_state), bucket_bytes=setting.bucket, order=reduced_order(task, first_state, shape)
    )
    config = allreduce_config(setting.engine, setting.algorithm, setting.wire, bucket_bytes=setting.bucket)
    allreduce = engine.make_allreduce(config, world, layout, None)
    rng = np.random.default_rng(world.rank)
    about = np.zeros((setting.batch, 4), np.int32)
    about[:, 0], about[:, 1] = rng.integers(0, model.num_classes, setting.batch), 1
    batch = Batch(rng.integers(0, 256, (setting.batch, *shape), np.uint8), about)

    # `forward`, `compute` and `plain` run on the first device of this rank only.
    device = jax.local_devices()[0]

    def fresh() -> TrainState:
        return jax.device_put(jax.tree.map(np.array, first_state), device)

    mine = (fresh().params, fresh().stats, jax.device_put(batch, device))
    forward = jax.jit(functools.partial(_loss, task))
    native = run_native.engine_of(world)
    stamps = [native.plan_without_messages(bucket.size, bucket.dtype) for bucket in layout.buckets]

    def compute(state: TrainState, batch: Batch) -> Any:
        buckets = layout.pack(forward_backward(task, state.params, state.stats, batch))
        if device.platform == "cpu":
            buckets = run_native.allreduce_all(buckets, stamps)
        return apply_gradients(task, optimizer, state, layout.unpack(buckets))

    update = jax.jit(compute, donate_argnums=0)
    plain = _plain_step(task, optimizer)
    step = engine.train_step(task, optimizer, layout, allreduce)

    placed = engine.place(batch)
    states = {"compute": fresh(), "plain": fresh(), "step": engine.replicate(fresh())}

    def going_on(name: str, function: Callable[..., Any], images: Batch) -> Any:
        states[name], values = function(states[name], images)
        return states[name], values

    programs: dict[str, Callable[[], Any]] = {
        "forward": lambda: forward(*mine),
        "compute": lambda: going_on("compute", update, mine[2]),
        "plain": lambda: going_on("plain", plain, mine[2]),
        "step": lambda: going_on("step", step, placed),
    }
    return Parts(
        programs=programs,
        step_on=lambda images: going_on("step", step, images)[1],
        num_parameters=sum(leaf.size for leaf in jax.tree.leaves(params)),
        bucket_bytes=layout.sizes,
        flops=count_flops(functools.partial(forward_backward, task), *mine),
        engine=engine,
    )


def allreduce_config(engine: str, algorithm: str, wire: str, *, bucket_bytes: int) -> AllreduceConfig:
    """Returns the config of an allreduce with default options."""
    return AllreduceConfig(
        engine=engine,
        algorithm=algorithm,
        segment_bytes=SEGMENT_BYTES.get(engine, SEGMENT_BYTES["native"]),
        wire=wire,
        bucket_bytes=bucket_bytes,
    )


def _loss(task: Any, params: Any, stats: Any, batch: Batch) -> Any:
    import jax.numpy as jnp

    from jaxdp.step.losses import cross_entropy

    logits_BK, _ = task.network.apply(params, stats, task.normalise(batch.image_BHWC), train=True)
    return jnp.mean(cross_entropy(logits_BK, batch.label_B))


def _plain_step(task: Any, optimizer: Any) -> Callable[..., Any]:
    """Returns the training step that a user would write by hand for one device."""
    import jax
    import optax

    from jaxdp.step.losses import cross_entropy

    def loss_of(params: Any, stats: Any, batch: Batch) -> Any:
        logits_BK, stats = task.network.apply(params, stats, task.normalise(batch.image_BHWC), train=True)
        return cross_entropy(logits_BK, batch.label_B).mean(), stats

    def step(state: Any, batch: Batch) -> Any:
        (loss, stats), gradient = jax.value_and_grad(loss_of, has_aux=True)(state.params, state.stats, batch)
        updates, opt_state = optimizer.update(gradient, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        return state.replace(step=state.step + 1, params=params, stats=stats, opt_state=opt_state), loss

    return jax.jit(step, donate_argnums=0)


def goodput(world: World) -> float:
    """Returns the Gbit/s of the slowest of the streams from each even rank to the next rank; 0.0 for a single rank."""
    comm = world.host_comm
    peer = world.rank ^ 1
    if peer >= world.size:
        speeds = world.allgather(None)
    else:
        buffers = [np.zeros(_STREAM_BYTES, np.uint8) for _ in range(_STREAM_MESSAGES)]
        done, start = 0, 0.0
        more = np.ones(1, np.uint8)
        # The first round warms up the connection and is not timed.
        for repetition in range(10_000):
            if repetition == 1:
                start = time.perf_counter()
            transfer = comm.Irecv if world.rank % 2 else comm.Isend
            for request in [transfer(buffer, peer, 1) for buffer in buffers]:
                request.Wait()
            if repetition > 0:
                done += _STREAM_BYTES * _STREAM_MESSAGES
            # The receiver ends the stream, because it knows when the bytes have arrived.
            if world.rank % 2:
                more[0] = repetition == 0 or time.perf_counter() - start < _STREAM_SECONDS
                comm.Send(more, peer, 2)
            else:
                comm.Recv(more, peer, 2)
            if not more[0]:
                break
        speeds = world.allgather(done * 8e-9 / (time.perf_counter() - start))
    return min((speed for speed in speeds if speed is not None), default=0.0)


def progress_seconds() -> float:
    """Returns the CPU seconds that the native engine's progress thread has used so far."""
    stat = _progress_thread() / "stat"
    # Field 3, the state, follows the name in brackets. Fields 14 and 15 are user and system time (proc(5)).
    fields = stat.read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@functools.cache
def _progress_thread() -> pathlib.Path:
    tasks = pathlib.Path("/proc/self/task").iterdir()
    return next(task for task in tasks if (task / "comm").read_text().strip() == _PROGRESS_THREAD)
