"""Training steps over all ranks against the same steps on one device of one rank."""

import jax
import numpy as np
import optax
import pytest
from mpi4py import MPI

from jaxdp.collectives.allreduce import Allreduce
from jaxdp.collectives.buckets import Buckets
from jaxdp.collectives.choice import Choice
from jaxdp.config import OptimizerConfig
from jaxdp.data import feed
from jaxdp.data.order import Deal, Order, even_bounds
from jaxdp.data.source import Split
from jaxdp.engines.local import LocalEngine
from jaxdp.models.network import Network
from jaxdp.optim.factory import make_optimizer
from jaxdp.state import TrainState, fingerprint
from jaxdp.step import Task, reduced_shapes

NUM_EXAMPLES = 200
TREES = Choice("multicolor", colors=2, arity=2, segment_bytes=1000)
NORM = {"norm_momentum": 0.9, "norm_epsilon": 1e-5}
MODELS = {
    "cnn": {"width": 4},
    "resnet": {"stage_sizes": (1, 1), "width": 2, "stem": "cifar", "zero_gamma": False} | NORM,
}


def share(rank, num_ranks):
    bounds = even_bounds(NUM_EXAMPLES, num_ranks)
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (NUM_EXAMPLES, 8, 8, 1), np.uint8)
    labels = rng.integers(0, 10, NUM_EXAMPLES).astype(np.int32)
    mine = slice(bounds[rank], bounds[rank + 1])
    return Split(bounds, images[mine], labels[mine])


def train(model, *, device_comm, data_comm, devices, batch_size, steps, dtype, optimizer="sgd", choice=TREES):
    """The losses, and the fingerprint of the state after every step."""
    network, params, stats = Network.create(model, MODELS[model], image_shape=(8, 8, 1), num_classes=10, seed=0)
    params, stats = jax.tree.map(lambda leaf: leaf.astype(dtype), (params, stats))
    engine = LocalEngine.create(device_comm.size, jax.devices()[:devices])
    rule = OptimizerConfig(optimizer, 0.9, False, 1e-3, 0.02)
    chain = make_optimizer(rule, optax.constant_schedule(0.05), params)
    deal = Deal(batch_size, data_comm.size, devices)
    state = engine.replicate(TrainState.create(params, stats, chain))
    task = Task(network, (0.5,), (0.25,), batch_size, deal.padded)
    layout = Buckets.plan(reduced_shapes(state), bucket_bytes=10_000)
    step = engine.train_step(task, chain, layout, Allreduce([choice] * len(layout.members), device_comm))
    losses, prints = [], []
    for batch in feed.batches(
        share(data_comm.rank, data_comm.size),
        order=Order(NUM_EXAMPLES, batch_size, 0),
        deal=deal,
        comm=data_comm,
        steps=range(steps),
        steps_per_exchange=7,
    ):
        state, metrics = step(state, engine.place(batch))
        losses.append(float(metrics["loss"]))
        prints.append(fingerprint(state))
    return np.array(losses), prints


@pytest.mark.parametrize(("devices", "batch_size", "optimizer"), [(1, 13, "sgd"), (2, 5, "lars")])
def test_the_number_of_ranks_changes_nothing_but_rounding(world, devices, batch_size, optimizer):
    """In float64, where 25 steps leave no room for anything else."""
    common = {"batch_size": batch_size, "steps": 25, "dtype": np.float64, "optimizer": optimizer}
    with jax.enable_x64(True):
        alone, _ = train("cnn", device_comm=MPI.COMM_SELF, data_comm=MPI.COMM_SELF, devices=1, **common)
        together, _ = train("cnn", device_comm=world.device_comm, data_comm=world.data_comm, devices=devices, **common)
    np.testing.assert_allclose(together, alone, rtol=1e-11)


@pytest.mark.parametrize(
    ("model", "devices", "batch_size", "choice"),
    [
        ("cnn", 3, 5, TREES),
        ("resnet", 1, 13, TREES),
        ("resnet", 3, 5, Choice("mpi")),
        ("cnn", 1, 13, Choice("halving_doubling", wire="bfloat16")),
    ],
)
def test_replicas_have_equal_bits_after_every_step(world, model, devices, batch_size, choice):
    """Also where a device has no real example (5 examples on up to 12 devices)."""
    losses, prints = train(
        model,
        device_comm=world.device_comm,
        data_comm=world.data_comm,
        devices=devices,
        batch_size=batch_size,
        steps=8,
        dtype=np.float32,
        choice=choice,
    )
    assert np.isfinite(losses).all()
    assert len(set(prints)) == 8
    assert all(others == prints for others in world.allgather(prints))
