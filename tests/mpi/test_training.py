"""Compares training steps over all ranks with the same steps on one device of one rank."""

import dataclasses
import functools
import time

import jax
import numpy as np
import optax
import pytest
from mpi4py import MPI

from jaxdp.collectives import run_native
from jaxdp.collectives.allreduce import BlockingAllreduce, NativeAllreduce
from jaxdp.collectives.buckets import Buckets
from jaxdp.collectives.choice import Choice
from jaxdp.data import feed
from jaxdp.data.nodes import Group, Nodes
from jaxdp.data.order import BatchSplit, Order
from jaxdp.data.split import Split
from jaxdp.data.storage import Pixels
from jaxdp.models.network import Network
from jaxdp.optim.config import OptimizerConfig
from jaxdp.optim.factory import make_optimizer
from jaxdp.placement.local import AXIS, LocalPlacement
from jaxdp.step.forward_backward import reduced_shapes
from jaxdp.step.state import TrainState, fingerprint
from jaxdp.step.task import Task

NUM_EXAMPLES = 200
TREES = Choice("multicolor", colors=2, arity=2, segment_bytes=1000)
NORM = {"norm_momentum": 0.9, "norm_epsilon": 1e-5}
MODELS = {
    "cnn": {"width": 4},
    "resnet": {"stage_sizes": (1, 1), "width": 2, "stem": "cifar", "zero_gamma": False} | NORM,
}


def share(nodes, rank):
    bounds, node = nodes.bounds(NUM_EXAMPLES), nodes.of_rank[rank]
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (NUM_EXAMPLES, 8, 8, 1), np.uint8)
    labels = rng.integers(0, 10, NUM_EXAMPLES).astype(np.int32)
    held = slice(bounds[node], bounds[node + 1])
    return Split(bounds, node, Pixels(images[held], 1), labels[held], slice(0, 0))


def native(world, layout, choice, devices):
    engine, plans = run_native.engine_of(world), []
    for bucket in layout.buckets:
        size = -(-bucket.size // devices)
        options = {"segment_bytes": choice.segment_bytes, "wire": choice.wire_of(bucket.dtype)}
        of_parts = [engine.plan(choice.schedule(world.size), size, bucket.dtype, **options) for _ in range(devices)]
        plans.append(of_parts[0])
    return NativeAllreduce(plans, AXIS, devices)


def train(
    model,
    *,
    device_comm,
    data_comm,
    devices,
    batch_size,
    steps,
    dtype,
    optimizer="sgd",
    choice=TREES,
    over=None,
    staged=False,
    batch_statistics_of=None,
):
    """Returns the losses and the fingerprints of the state after every step.

    Args:
      over: world of the native engine; None selects mpi4jax.
      staged: whether buckets pass through the host in separate programs, as with an accelerator.
      batch_statistics_of: world whose batch statistics are used; None uses those of each device.
    """
    network, params, stats = Network.create(
        model, MODELS[model] | {"dtype": np.dtype(dtype).name}, image_shape=(8, 8, 1), num_classes=10, seed=0
    )
    params, stats = jax.tree.map(lambda leaf: leaf.astype(dtype), (params, stats))
    engine = LocalPlacement.create("native" if over else "mpi4jax", device_comm.size, jax.devices()[:devices])
    if staged:
        engine = dataclasses.replace(engine, fused=False)
    rule = OptimizerConfig(name=optimizer, weight_decay=1e-3, trust_coefficient=0.02, beta2=0.99)
    chain = make_optimizer(rule, optax.constant_schedule(0.05), params)
    batch_split = BatchSplit(batch_size, data_comm.size, devices)
    state = engine.replicate(TrainState.create(params, stats, chain))
    task = Task(network, (0.5,), (0.25,), batch_size, batch_split.padded)
    if batch_statistics_of is not None:
        task = dataclasses.replace(task, batch_sums=engine.make_batch_sums(batch_statistics_of))
    shapes = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, dtype), reduced_shapes(state))
    layout = Buckets.plan(shapes, bucket_bytes=10_000)
    blocking = BlockingAllreduce([choice] * len(layout.members), device_comm)
    step = engine.train_step(task, chain, layout, native(over, layout, choice, devices) if over else blocking)
    losses, prints = [], []
    # As if every rank were on a separate node.
    nodes = Nodes(tuple(range(data_comm.size)))
    for batch in feed.batches(
        share(nodes, data_comm.rank),
        order=Order(NUM_EXAMPLES, batch_size, 0),
        batch_split=batch_split,
        rank=data_comm.rank,
        group=Group(np.arange(data_comm.size), nodes, data_comm.rank, data_comm),
        comm=data_comm,
        steps=range(steps),
        steps_per_exchange=7,
    ):
        state, metrics = step(state, engine.place(batch))
        losses.append(float(metrics["loss"]))
        prints.append(fingerprint(state))
    return np.array(losses), prints


def only_with(ranks, world):
    """Skips the test on other numbers of ranks, because steps take long to compile."""
    if world.size not in ranks:
        pytest.skip(f"for {ranks} ranks")


@functools.cache
def alone(model="cnn", **common):
    """Returns the losses of one rank that trains alone; all ranks call it together, and rank 0 trains for them."""
    losses = None
    if MPI.COMM_WORLD.rank == 0:
        losses, _ = train(model, device_comm=MPI.COMM_SELF, data_comm=MPI.COMM_SELF, devices=1, **common)
    # The other ranks sleep, because a rank that waits in MPI would take the core that rank 0 needs.
    done = MPI.COMM_WORLD.Ibarrier()
    while not done.Test():
        time.sleep(0.02)
    return MPI.COMM_WORLD.bcast(losses)


@pytest.mark.parametrize(
    ("ranks", "engine", "devices", "batch_size", "optimizer", "staged"),
    [
        ({2}, "native", 1, 13, "sgd", False),
        ({3}, "native", 2, 5, "lars", False),
        ({2}, "native", 3, 5, "sgd", True),
        ({3}, "mpi4jax", 2, 5, "sgd", True),
    ],
)
def test_number_of_ranks_changes_losses_only_by_rounding(world, ranks, engine, devices, batch_size, optimizer, staged):
    """Uses float64, in which rounding stays below 1e-11 over 25 steps."""
    only_with(ranks, world)
    common = {"batch_size": batch_size, "steps": 25, "dtype": np.float64, "optimizer": optimizer}
    comms = {"device_comm": world.device_comm, "data_comm": world.data_comm}
    with jax.enable_x64(True):
        over = world if engine == "native" else None
        together, _ = train("cnn", **comms, devices=devices, over=over, staged=staged, **common)
        np.testing.assert_allclose(together, alone(**common), rtol=1e-11)


@pytest.mark.parametrize(
    ("ranks", "engine", "devices", "batch_size"),
    [({2}, "native", 3, 5), ({3}, "mpi4jax", 1, 13)],
)
def test_world_batch_statistics_do_not_depend_on_the_rank_count(world, ranks, engine, devices, batch_size):
    """Also covers devices without a real example (5 examples on 6 devices)."""
    only_with(ranks, world)
    common = {"batch_size": batch_size, "steps": 8, "dtype": np.float64}
    comms = {"device_comm": world.device_comm, "data_comm": world.data_comm}
    over = world if engine == "native" else None
    with jax.enable_x64(True):
        losses, prints = train("resnet", **comms, devices=devices, over=over, batch_statistics_of=world, **common)
        np.testing.assert_allclose(losses, alone("resnet", **common), rtol=1e-9)
    assert all(others == prints for others in world.allgather(prints))


@pytest.mark.parametrize(
    ("ranks", "engine", "model", "devices", "batch_size", "choice"),
    [
        ({2}, "mpi4jax", "resnet", 3, 5, Choice("mpi")),
        ({4}, "mpi4jax", "cnn", 1, 13, Choice("halving_doubling", wire="bfloat16")),
        ({4}, "native", "resnet", 3, 5, Choice("ring")),
        ({2, 3}, "native", "cnn", 1, 13, Choice("halving_doubling", wire="bfloat16")),
    ],
)
def test_replicas_are_bit_identical_after_every_step(world, ranks, engine, model, devices, batch_size, choice):
    """Also covers devices without a real example (5 examples on 12 devices)."""
    only_with(ranks, world)
    losses, prints = train(
        model,
        device_comm=world.device_comm,
        data_comm=world.data_comm,
        devices=devices,
        batch_size=batch_size,
        steps=8,
        dtype=np.float32,
        choice=choice,
        over=world if engine == "native" else None,
    )
    assert np.isfinite(losses).all()
    assert len(set(prints)) == 8
    assert all(others == prints for others in world.allgather(prints))
