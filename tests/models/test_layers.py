"""What several models are made of."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxdp.models.layers import BatchNorm


@pytest.mark.parametrize("num_real", [None, 3])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("options", [{}, {"use_scale": False, "use_bias": False}])
def test_batch_normalisation_is_that_of_flax(dtype, options, num_real):
    """What it gives, its running statistics and its gradients, of values that are not around 0."""
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(2.0, 3.0, (5, 4, 3, 6)), dtype)
    weights = jnp.asarray(rng.normal(size=x.shape), jnp.float32)
    mask = None if num_real is None else jnp.arange(5)[:, None, None, None] < num_real
    if mask is not None:
        weights = weights * mask
    found = []
    for kind in (BatchNorm, nnx.BatchNorm):
        norm = kind(6, momentum=0.9, epsilon=1e-3, dtype=dtype, rngs=nnx.Rngs(0), **options)
        if norm.scale is not None:
            norm.scale[...] = jnp.linspace(0.5, 2.0, 6)
            norm.bias[...] = jnp.linspace(-1.0, 1.0, 6)
        graph, params, stats = nnx.split(norm, nnx.Param, ...)

        def loss(params, x, graph=graph, stats=stats):
            norm = nnx.merge(graph, params, stats, copy=True)
            y = norm(x, use_running_average=False, mask=mask)
            return jnp.sum(y.astype(jnp.float32) * weights), (y, nnx.state(norm, nnx.BatchStat))

        gradients, (y, after) = jax.grad(loss, argnums=(0, 1), has_aux=True)(params, x)
        assert y.dtype == dtype
        still = nnx.merge(graph, params, after)(x, use_running_average=True)
        found.append([y, still, *map(nnx.to_pure_dict, (after, gradients[0])), gradients[1]])
    close = {"rtol": 1e-4, "atol": 1e-4} if dtype == "float32" else {"rtol": 0.02, "atol": 0.05}
    jax.tree.map(lambda a, b: np.testing.assert_allclose(np.float32(a), np.float32(b), **close), *found)


def test_evaluation_may_be_a_setting_of_the_layer():
    x = jnp.linspace(1.0, 2.0, 12).reshape(2, 6)
    norm = BatchNorm(6, rngs=nnx.Rngs(0))
    norm.eval()
    np.testing.assert_array_equal(norm(x), norm(x, use_running_average=True))
    np.testing.assert_array_equal(norm.mean[...], np.zeros(6))
    norm.train()
    assert np.any(norm(x) != norm(x, use_running_average=True))
