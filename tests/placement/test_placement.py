import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec
from jobs import NEWEST_JAX

from jaxdp.collectives.allreduce import BlockingAllreduce
from jaxdp.collectives.buckets import Buckets
from jaxdp.collectives.choice import Choice
from jaxdp.data.feed import empty_images, make_batch
from jaxdp.data.order import BatchSplit
from jaxdp.data.rows import Buffers
from jaxdp.models.network import Network
from jaxdp.placement.local import LocalPlacement
from jaxdp.placement.staging import Staging
from jaxdp.step.forward_backward import reduced_shapes
from jaxdp.step.state import TrainState
from jaxdp.step.task import Task

pytestmark = NEWEST_JAX

OPTIONS = {
    "stage_sizes": (1,),
    "width": 4,
    "stem": "cifar",
    "zero_gamma": False,
    "norm_momentum": 0.75,
    "norm_epsilon": 1e-5,
}


class AWorldOfOne:
    size, rank = 1, 0


def step_on(num_devices, images, labels):
    """Runs one step with rate 0. Returns the network, its initial variables, the new state and the metrics."""
    network, params, stats = Network.create("resnet", OPTIONS, image_shape=(8, 8, 1), num_classes=10, seed=0)
    given_up = jax.tree.map(lambda leaf: leaf + 0, (params, stats))
    engine = LocalPlacement.create("mpi4jax", 1, jax.devices()[:num_devices])
    batch_split = BatchSplit(len(labels), 1, num_devices)
    task = Task(network, (0.5,), (0.25,), len(labels), batch_split.padded)
    optimizer = optax.sgd(0.0)
    state = engine.replicate(TrainState.create(*given_up, optimizer))
    places = batch_split.rows_of(0)
    image_BHWC = empty_images(Buffers(num_devices * batch_split.per_device, images.shape[1:]), places)
    image_BHWC[places] = images
    ids = np.arange(len(labels))
    batch = make_batch(image_BHWC, labels, ids, np.zeros_like(ids), places)
    layout = Buckets.plan(reduced_shapes(state), bucket_bytes=1000)
    allreduce = BlockingAllreduce([Choice("ring")] * len(layout.members), AWorldOfOne())
    after, metrics = engine.train_step(task, optimizer, layout, allreduce)(state, engine.place(batch))
    return network, (params, stats), after, metrics


@pytest.mark.parametrize("num_devices", [1, 3, 4])
@pytest.mark.parametrize("num_examples", [3, 7, 12])
def test_running_statistics_average_devices_weighted_by_examples(num_devices, num_examples):
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (num_examples, 8, 8, 1), np.uint8)
    labels = rng.integers(0, 10, num_examples).astype(np.int32)
    network, (params, stats), after, metrics = step_on(num_devices, images, labels)

    expected = jax.tree.map(np.zeros_like, stats)
    losses = []
    bounds = np.arange(num_devices + 1) * num_examples // num_devices
    for first, end in zip(bounds, bounds[1:], strict=False):
        if first < end:
            pixels = (images[first:end] / np.float32(255) - np.float32(0.5)) / np.float32(0.25)
            logits, seen = network.apply(params, stats, pixels, train=True)
            expected = jax.tree.map(lambda sum_, one, n=end - first: sum_ + one * n / num_examples, expected, seen)
            losses += optax.softmax_cross_entropy_with_integer_labels(logits, labels[first:end]).tolist()
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-4, atol=1e-6), after.stats, expected)
    np.testing.assert_allclose(metrics["loss"], np.mean(losses), rtol=1e-4)
    jax.tree.map(np.testing.assert_array_equal, after.params, params)
    assert int(after.step) == 1


def test_every_device_has_the_same_state_after_a_step():
    _, _, after, _ = step_on(4, np.ones((9, 8, 8, 1), np.uint8), np.zeros(9, np.int32))
    for leaf in jax.tree.leaves(after):
        copies = [np.asarray(shard.data).tobytes() for shard in leaf.addressable_shards]
        assert len(copies) == 4
        assert len(set(copies)) == 1


@pytest.mark.parametrize("num_devices", [1, 3])
def test_buckets_are_summed_over_devices_without_copying_pinned_memory(num_devices):
    engine = LocalPlacement.create("native", 2, jax.devices()[:num_devices])
    staging, sizes = Staging(engine.mesh, engine.host), [7, 12]

    def of_device(scale):
        return staging.scatter([scale[0] * jnp.arange(size) for size in sizes])

    axis = PartitionSpec(*engine.mesh.axis_names)
    leave = jax.jit(
        jax.shard_map(of_device, mesh=engine.mesh, in_specs=axis, out_specs=axis), out_shardings=staging.pinned
    )
    pinned = leave(10.0 ** jnp.arange(num_devices))
    assert [part.sharding.memory_kind for part in pinned] == ["pinned_host"] * 2
    taken = staging.take(pinned)
    for bucket, parts in zip(pinned, taken, strict=True):
        for shard, part in zip(bucket.addressable_shards, parts, strict=True):
            assert part.devices() == {engine.host}
            assert part.unsafe_buffer_pointer() == shard.data.unsafe_buffer_pointer()
    back = jax.jit(lambda parts: staging.gather(parts, sizes))(staging.give(taken))
    for bucket, size in zip(back, sizes, strict=True):
        assert len(bucket.addressable_shards) == num_devices
        for shard in bucket.addressable_shards:
            np.testing.assert_array_equal(shard.data, np.arange(size) * sum(10**i for i in range(num_devices)))
