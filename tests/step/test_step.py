import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jobs import NEWEST_JAX

from jaxdp.data.batch import Batch
from jaxdp.models.network import Network
from jaxdp.optim.config import OptimizerConfig
from jaxdp.optim.factory import make_optimizer
from jaxdp.step.evaluate import evaluate_batch
from jaxdp.step.forward_backward import forward_backward
from jaxdp.step.losses import cross_entropy, hits, top5_hits
from jaxdp.step.state import TrainState
from jaxdp.step.task import Task
from jaxdp.step.update import apply_gradients

pytestmark = NEWEST_JAX


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
def test_gradient_is_that_of_the_mean_loss_over_real_examples(size, real):
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


def test_device_without_real_examples_contributes_nothing():
    constants, params, stats = task(True, 4)
    reduced = forward(constants)(params, stats, batch(2, 0))
    assert all((leaf == 0).all() for leaf in jax.tree.leaves(reduced))


def test_evaluation_sums_over_real_examples():
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


def test_cross_entropy_and_hits_match_numpy():
    logits = jnp.array([[2.0, 0.0, 0.0], [0.0, 3.0, 0.0]])
    labels = jnp.array([0, 2])
    expected = np.log(np.exp(logits).sum(axis=1)) - np.array([2.0, 0.0])
    np.testing.assert_allclose(cross_entropy(logits, labels), expected, rtol=1e-6)
    assert hits(logits, labels).tolist() == [1.0, 0.0]
    assert cross_entropy(logits.astype(jnp.bfloat16), labels).dtype == jnp.float32


@pytest.mark.parametrize(("size", "real"), [(6, 6), (6, 5), (6, 2)])
def test_microbatches_add_up_to_the_whole_batch(size, real):
    constants, params, stats = task(size != real, real)
    examples = batch(size, real)
    whole = forward(constants)(params, stats, examples)
    for parts in (2, 3):
        found = forward(dataclasses.replace(constants, microbatches=parts))(params, stats, examples)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), found, whole)


def test_label_smoothing_spreads_the_target_over_all_classes():
    logits = np.random.default_rng(0).standard_normal((3, 5)).astype(np.float32)
    labels = np.array([4, 0, 2])
    target = 0.9 * np.eye(5)[labels] + 0.1 / 5
    expected = -np.sum(target * np.asarray(jax.nn.log_softmax(logits)), axis=-1)
    np.testing.assert_allclose(cross_entropy(logits, labels, smoothing=0.1), expected, rtol=1e-5)


# Size of an array that XLA processes with vector instructions: its maximum was once not NaN although an element was.
LARGE = 70_001


def state_and_sums(decay):
    params = {"a": jnp.array([1.0, 2.0]), "b": jnp.full(LARGE, 3.0)}
    optimizer = optax.sgd(1.0, momentum=0.5)
    state = TrainState.create(params, {"mean": jnp.zeros(1)}, optimizer, averages=decay is not None)
    constants = dataclasses.replace(task(False, 1)[0], average_decay=decay)
    good = {
        "gradient": {"a": jnp.array([0.1, 0.2]), "b": jnp.full(LARGE, 0.3)},
        "stats": {"mean": jnp.ones(1)},
        "metrics": {"loss": jnp.float32(1), "accuracy": jnp.float32(0)},
    }
    return jax.jit(functools.partial(apply_gradients, constants, optimizer)), state, good


@pytest.mark.parametrize(
    ("where", "name", "culprit"), [("gradient", "b", 1), ("gradient", "a", 0), ("stats", "mean", 2)]
)
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_non_finite_step_changes_nothing_and_names_the_array(where, name, culprit, value):
    step, state, good = state_and_sums(0.9)
    leaf = good[where][name]
    bad = good | {where: good[where] | {name: leaf.at[leaf.size // 2].set(value)}}
    state, values = step(state, good)
    assert (int(values["skipped"]), int(values["culprit"])) == (0, -1)
    after = state
    for skipped in (1, 2):
        after, values = step(after, bad)
        assert (int(values["skipped"]), int(values["culprit"])) == (skipped, culprit)
    assert int(after.step) == 3
    for part in ("params", "stats", "opt_state", "average"):
        jax.tree.map(np.testing.assert_array_equal, getattr(after, part), getattr(state, part))
    after, values = step(after, good)
    assert int(values["skipped"]) == int(after.skipped) == 0
    assert after.params["a"][0] != state.params["a"][0]


def test_parameter_average_is_evaluated_and_its_decay_warms_up():
    step, state, good = state_and_sums(0.25)
    mean = np.array(state.params["a"])
    for count in range(6):
        state, _ = step(state, good)
        decay = min(0.25, (1 + count) / (10 + count))
        mean = decay * mean + (1 - decay) * np.array(state.params["a"])
        np.testing.assert_allclose(state.evaluated["a"], mean, rtol=1e-6)
    plain = state_and_sums(None)[1]
    assert plain.average == {}
    assert plain.evaluated is plain.params


def test_label_among_the_five_largest_logits_is_a_hit():
    logits = jnp.array([[9.0, 8, 7, 6, 5, 4, 3]] * 3 + [[np.nan] * 7])
    assert top5_hits(logits, jnp.array([0, 4, 5, 0])).tolist() == [1, 1, 0, 0]


def test_norms_and_trust_ratios_are_computed_at_their_interval():
    rule = OptimizerConfig(name="lars", weight_decay=0.01, trust_coefficient=0.02)
    params = {"bias": jnp.array([3.0, 4.0]), "kernel": jnp.full((2, 2), 2.0)}
    optimizer = make_optimizer(rule, optax.constant_schedule(0.5), params)
    state = TrainState.create(params, {}, optimizer)
    constants = dataclasses.replace(task(False, 1)[0], norms_every=2)
    step = jax.jit(functools.partial(apply_gradients, constants, optimizer))
    gradient = {"bias": jnp.array([0.0, 0.5]), "kernel": jnp.ones((2, 2))}
    reduced = {"gradient": gradient, "stats": {}, "metrics": {"loss": jnp.float32(1), "accuracy": jnp.float32(0)}}
    state, first = step(state, reduced)
    assert all((values == 0).all() for values in first["norms"].values())
    before = np.linalg.norm(state.params["kernel"])
    state, second = step(state, reduced)
    found = {kind: values.tolist() for kind, values in second["norms"].items()}
    assert found["parameter_norm"] == pytest.approx([np.hypot(3.0, 4.0 - 0.5 * 0.5), before])
    assert found["gradient_norm"] == pytest.approx([0.5, 2.0])
    assert found["trust_ratio"] == pytest.approx([1.0, 0.02 * before / (2.0 + 0.01 * before)])


def test_microbatches_run_in_sequence_without_a_loop():
    """Running in sequence saves memory. XLA's convolutions on a CPU are slow in loops."""
    constants, params, stats = task(False, 256)
    network, params, stats = Network.create("cnn", {"width": 8}, image_shape=(8, 8, 1), num_classes=10, seed=0)
    memory = {}
    for parts in (1, 4):
        program = forward(dataclasses.replace(constants, network=network, microbatches=parts))
        compiled = program.lower(params, stats, batch(256, 256)).compile()
        assert " while(" not in compiled.as_text()
        memory[parts] = compiled.memory_analysis().temp_size_in_bytes
    assert memory[4] < 0.8 * memory[1]
