import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jobs import NEWEST_JAX

from jaxdp.optim.config import OptimizerConfig
from jaxdp.optim.factory import kernels, make_optimizer

pytestmark = NEWEST_JAX

RATES = [0.5, 0.25, 0.125, 0.1]
CONFIG = OptimizerConfig(
    name="lars",
    momentum=0.9,
    weight_decay=0.01,
    trust_coefficient=0.02,
    beta1=0.8,
    beta2=0.95,
    epsilon=1e-3,
)


def tree(seed):
    rng = np.random.default_rng(seed)
    return {"kernel": rng.standard_normal((3, 4)), "bias": rng.standard_normal(4), "scale": rng.standard_normal(4)}


def run(config, params, gradients):
    """Yields the parameters after each step in float64; dtypes are promoted only for optax's AdamW, which needs it."""
    with jax.enable_x64(True), jax.numpy_dtype_promotion("standard" if config.name == "adamw" else "strict"):
        optimizer = make_optimizer(config, lambda step: jnp.asarray(RATES, jnp.float64)[step], params)
        params = jax.tree.map(jnp.asarray, params)
        state = optimizer.init(params)
        for gradient in gradients:
            updates, state = optimizer.update(jax.tree.map(jnp.asarray, gradient), state, params)
            params = optax.apply_updates(params, updates)
            yield jax.tree.map(np.asarray, params)


def test_lars_matches_the_equation_in_the_paper():
    params, gradients = tree(0), [tree(seed) for seed in range(1, 5)]
    velocity = {name: np.zeros_like(value) for name, value in params.items()}
    expected = dict(params)
    for rate, gradient, after in zip(RATES, gradients, run(CONFIG, params, gradients), strict=True):
        for name, w in expected.items():
            g = gradient[name]
            if name == "kernel":
                norms = np.linalg.norm(w), np.linalg.norm(g)
                local_rate = 0.02 * norms[0] / (norms[1] + 0.01 * norms[0])
                velocity[name] = 0.9 * velocity[name] + rate * local_rate * (g + 0.01 * w)
            else:
                velocity[name] = 0.9 * velocity[name] + rate * g
            expected[name] = w - velocity[name]
            np.testing.assert_allclose(after[name], expected[name], rtol=1e-13)


def test_local_rate_is_one_if_a_norm_is_zero():
    gradient = {"kernel": np.ones((2, 2))}
    (after,) = run(CONFIG, {"kernel": np.zeros((2, 2))}, [gradient])
    np.testing.assert_array_equal(after["kernel"], -0.5 * gradient["kernel"])
    (after,) = run(CONFIG, gradient, [{"kernel": np.zeros((2, 2))}])
    np.testing.assert_allclose(after["kernel"], gradient["kernel"] * (1 - 0.5 * 0.01), rtol=1e-15)


def test_sgd_applies_rate_outside_velocity_and_decays_only_kernels():
    config = dataclasses.replace(CONFIG, name="sgd")
    params, gradients = tree(0), [tree(seed) for seed in range(1, 5)]
    velocity = {name: np.zeros_like(value) for name, value in params.items()}
    expected = dict(params)
    for rate, gradient, after in zip(RATES, gradients, run(config, params, gradients), strict=True):
        for name, w in expected.items():
            decay = 0.01 * w if name == "kernel" else 0.0
            velocity[name] = 0.9 * velocity[name] + gradient[name] + decay
            expected[name] = w - rate * velocity[name]
            np.testing.assert_allclose(after[name], expected[name], rtol=1e-13)


def test_adamw_matches_the_algorithm_in_the_paper():
    config = dataclasses.replace(CONFIG, name="adamw")
    params, gradients = tree(0), [tree(seed) for seed in range(1, 5)]
    first, second = ({name: np.zeros_like(value) for name, value in params.items()} for _ in range(2))
    expected = dict(params)
    steps = enumerate(zip(RATES, gradients, run(config, params, gradients), strict=True), 1)
    for count, (rate, gradient, after) in steps:
        for name, w in expected.items():
            first[name] = 0.8 * first[name] + 0.2 * gradient[name]
            second[name] = 0.95 * second[name] + 0.05 * gradient[name] ** 2
            direction = first[name] / (1 - 0.8**count) / (np.sqrt(second[name] / (1 - 0.95**count)) + 1e-3)
            expected[name] = w - rate * (direction + (0.01 * w if name == "kernel" else 0.0))
            np.testing.assert_allclose(after[name], expected[name], rtol=1e-9)


@pytest.mark.parametrize("name", ["sgd", "lars", "adamw"])
def test_decay_biases_and_norms_decays_and_scales_vectors(name):
    params, gradient = tree(0), jax.tree.map(np.zeros_like, tree(0))
    (after,) = run(dataclasses.replace(CONFIG, name=name), params, [gradient])
    (asked,) = run(dataclasses.replace(CONFIG, name=name, decay_biases_and_norms=True), params, [gradient])
    np.testing.assert_array_equal(after["bias"], params["bias"])
    np.testing.assert_array_equal(asked["kernel"], after["kernel"])
    np.testing.assert_allclose(asked["bias"], params["bias"] * (1 - 0.5 * 0.01), rtol=1e-12)


@pytest.mark.parametrize("name", ["sgd", "lars", "adamw"])
def test_gradients_are_clipped_by_their_global_norm(name):
    params, gradient = tree(0), tree(1)
    norm = np.sqrt(sum(np.sum(leaf**2) for leaf in gradient.values()))
    plain, clipped = (dataclasses.replace(CONFIG, name=name, clip_norm=limit) for limit in (None, norm / 4))
    quarter = jax.tree.map(lambda leaf: leaf / 4, gradient)
    for given, expected in [(gradient, quarter), (quarter, quarter)]:
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-9),
            next(run(clipped, params, [given])),
            next(run(plain, params, [expected])),
        )


def test_biases_and_normalisation_parameters_are_not_kernels():
    from jaxdp.models.network import Network

    options = {"stage_sizes": (1, 1), "width": 2, "stem": "cifar", "zero_gamma": True}
    options |= {"norm_momentum": 0.9, "norm_epsilon": 1e-5}
    _, params, _ = Network.create("resnet", options, image_shape=(8, 8, 3), num_classes=10, seed=0)
    assert kernels(params) == jax.tree_util.tree_map_with_path(lambda path, _: path[-1].key == "kernel", params)
