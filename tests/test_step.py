import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdp.losses import cross_entropy, hits
from jaxdp.models.network import Network
from jaxdp.step import Batch, Task, evaluate_batch, forward_backward


def task(padded, batch_size):
    network, params, stats = Network.create("cnn", {"width": 4}, image_shape=(8, 8, 1), num_classes=10, seed=0)
    return Task(network, (0.5,), (0.25,), batch_size, padded), params, stats


def batch(size, real):
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (size, 8, 8, 1), np.uint8)
    columns = rng.integers(0, 10, size), np.arange(size) < real, np.zeros(size), np.zeros(size)
    return Batch(images, np.stack(columns, axis=1).astype(np.int32))


def forward(constants):
    return jax.jit(functools.partial(forward_backward, constants))


def evaluate(constants):
    return jax.jit(functools.partial(evaluate_batch, constants))


@pytest.mark.parametrize(("size", "real"), [(6, 6), (8, 6)])
def test_the_gradient_is_that_of_the_mean_loss_over_the_real_examples(size, real):
    constants, params, stats = task(size != real, real)
    examples = batch(size, real)
    reduced = forward(constants)(params, stats, examples)

    def mean_loss(params):
        images = (examples.image_BHWC[:real] / np.float32(255) - np.float32(0.5)) / np.float32(0.25)
        logits, _ = constants.network.apply(params, stats, images, train=True)
        losses = -jnp.take_along_axis(jax.nn.log_softmax(logits), examples.label_B[:real, None], axis=1)
        return jnp.mean(losses)

    loss, gradient = jax.value_and_grad(mean_loss)(params)
    np.testing.assert_allclose(reduced["metrics"]["loss"], loss, rtol=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), reduced["gradient"], gradient)


def test_a_device_without_a_real_example_adds_nothing():
    constants, params, stats = task(True, 4)
    reduced = forward(constants)(params, stats, batch(2, 0))
    assert all((leaf == 0).all() for leaf in jax.tree.leaves(reduced))


def test_evaluation_sums_over_the_real_examples():
    constants, params, stats = task(True, 4)
    examples = batch(6, 6)
    whole = evaluate(constants)(params, stats, examples)
    parts = [
        evaluate(constants)(params, stats, jax.tree.map(lambda rows, part=part: rows[part], examples))
        for part in (slice(0, 3), slice(3, 6))
    ]
    padded = evaluate(constants)(params, stats, batch(6, 3))
    for name in ("hits", "loss"):
        np.testing.assert_allclose(sum(part[name] for part in parts), whole[name], rtol=1e-6)
        np.testing.assert_allclose(padded[name], parts[0][name], rtol=1e-6)


def test_losses_and_hits():
    logits = jnp.array([[2.0, 0.0, 0.0], [0.0, 3.0, 0.0]])
    labels = jnp.array([0, 2])
    expected = np.log(np.exp(logits).sum(axis=1)) - np.array([2.0, 0.0])
    np.testing.assert_allclose(cross_entropy(logits, labels), expected, rtol=1e-6)
    assert hits(logits, labels).tolist() == [1.0, 0.0]
    assert cross_entropy(logits.astype(jnp.bfloat16), labels).dtype == jnp.float32
