"""Tests of the layers that several models share."""

import contextlib
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxdp.models.cpu.forms import without_cpu_kernels
from jaxdp.models.layers import BatchNorm, batch_statistics_over


@pytest.mark.parametrize("num_real", [None, 3])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("options", [{}, {"use_scale": False, "use_bias": False}])
@pytest.mark.parametrize(("adds", "relu"), [(False, False), (False, True), (True, False), (True, True)])
def test_batch_normalisation_matches_flax(dtype, options, num_real, adds, relu):
    """Compares output, running statistics and gradients in C++ and in XLA, for inputs that are not centred on 0."""
    rng = np.random.default_rng(0)
    # Large enough to be split over threads; the odd sizes are no multiples of a vector or block size.
    x = jnp.asarray(rng.normal(2.0, 3.0, (5, 61, 59, 6)), dtype)
    weights = jnp.asarray(rng.normal(size=x.shape), jnp.float32)
    # Keeps the sums away from 0, where a ReLU would turn rounding errors into large differences.
    shortcut = jnp.asarray(rng.choice([-20.0, 20.0], x.shape), dtype) if adds else None
    mask = None if num_real is None else jnp.arange(5)[:, None, None, None] < num_real
    if mask is not None:
        weights = weights * mask

    def ours(norm, x, shortcut, **given):
        return norm(x, **given, shortcut_BX=shortcut, relu=relu)

    def flax(norm, x, shortcut, **given):
        y = norm(x, **given)
        y = y if shortcut is None else y + shortcut
        return nnx.relu(y) if relu else y

    found = []
    for kind, apply, form in (
        (nnx.BatchNorm, flax, contextlib.nullcontext),
        (BatchNorm, ours, contextlib.nullcontext),
        (BatchNorm, ours, without_cpu_kernels),
    ):
        norm = kind(6, momentum=0.9, epsilon=1e-3, dtype=dtype, rngs=nnx.Rngs(0), **options)
        if norm.scale is not None:
            norm.scale[...] = jnp.linspace(0.5, 2.0, 6)
            norm.bias[...] = jnp.linspace(-1.0, 1.0, 6)
        graph, params, stats = nnx.split(norm, nnx.Param, ...)

        def loss(params, x, shortcut, apply=apply, graph=graph, stats=stats):
            norm = nnx.merge(graph, params, stats, copy=True)
            y = apply(norm, x, shortcut, use_running_average=False, mask=mask)
            return jnp.sum(y.astype(jnp.float32) * weights), (y, nnx.state(norm, nnx.BatchStat))

        with form():
            gradients, (y, after) = jax.jit(jax.grad(loss, argnums=(0, 1, 2), has_aux=True))(params, x, shortcut)
        assert y.dtype == dtype
        still = apply(nnx.merge(graph, params, after), x, shortcut, use_running_average=True)
        found.append([y, still, *map(nnx.to_pure_dict, (after, gradients[0])), gradients[1:]])
    close = {"rtol": 1e-4, "atol": 1e-4} if dtype == "float32" else {"rtol": 0.02, "atol": 0.05}
    for one in found[1:]:
        jax.tree.map(lambda a, b: np.testing.assert_allclose(np.float32(a), np.float32(b), **close), one, found[0])


def test_cpu_norm_kernel_is_used_only_where_supported():
    def text(dtype, *, layer_dtype=None, **given):
        x = jnp.zeros((2, 3, 4, 6), dtype)
        graph, state = nnx.split(BatchNorm(6, dtype=layer_dtype, rngs=nnx.Rngs(0)))

        def total(x, state):
            return jnp.sum(nnx.merge(graph, state, copy=True)(x, **given) ** 2)

        return jax.jit(jax.grad(total)).lower(x, state).as_text()

    assert text("float32").count("@jaxdp_norm") == 4
    assert "jaxdp_norm" not in text("float16")
    assert "jaxdp_norm" not in text("bfloat16", layer_dtype="float32")
    assert "jaxdp_norm" not in text("float32", shortcut_BX=jnp.zeros((2, 3, 4, 6), "bfloat16"))
    with batch_statistics_over(lambda array: array):
        assert "jaxdp_norm" not in text("float32")
    with without_cpu_kernels():
        assert "jaxdp_norm" not in text("float32")


def test_each_device_uses_its_own_batch_statistics():
    mesh = jax.make_mesh((2,), ("d",), axis_types=(jax.sharding.AxisType.Auto,))
    split, same = jax.P("d"), jax.P()
    x = jnp.asarray(np.random.default_rng(0).normal(size=(4, 8, 8, 3)), jnp.float32)
    graph, params, stats = nnx.split(BatchNorm(3, rngs=nnx.Rngs(0)), nnx.Param, ...)

    def gradient(params, stats, x):
        def total(params, x):
            norm = nnx.merge(graph, params, stats, copy=True)
            return jnp.sum(jnp.sin(norm(x, shortcut_BX=x, relu=True)))

        return jax.grad(total, argnums=(0, 1))(params, x)

    def gradient_of_all(params, stats, x):
        params, stats = jax.tree.map(lambda leaf: jax.lax.pcast(leaf, "d", to="varying"), (params, stats))
        of_params, of_x = gradient(params, stats, x)
        return jax.lax.psum(of_params, "d"), of_x

    mapped = jax.shard_map(gradient_of_all, mesh=mesh, in_specs=(same, same, split), out_specs=(same, split))
    of_params, of_x = jax.jit(mapped)(params, stats, x)
    halves = [gradient(params, stats, half) for half in (x[:2], x[2:])]
    jax.tree.map(
        functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-5),
        (of_params, of_x),
        (jax.tree.map(jnp.add, halves[0][0], halves[1][0]), jnp.concatenate([half[1] for half in halves])),
    )


def test_eval_mode_uses_running_statistics():
    x = jnp.linspace(1.0, 2.0, 12).reshape(2, 6)
    norm = BatchNorm(6, rngs=nnx.Rngs(0))
    norm.eval()
    np.testing.assert_array_equal(norm(x), norm(x, use_running_average=True))
    np.testing.assert_array_equal(norm.mean[...], np.zeros(6))
    norm.train()
    assert np.any(norm(x) != norm(x, use_running_average=True))
