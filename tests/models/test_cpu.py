"""Tests of the kernels that replace operations of XLA on CPUs."""

import functools
import os
import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jobs import NEWEST_JAX

from jaxdp import native
from jaxdp.models.cpu import convolution
from jaxdp.models.cpu.convolution import convolve
from jaxdp.models.cpu.forms import count_flops, without_cpu_kernels
from jaxdp.models.cpu.pooling import max_pool
from jaxdp.models.layers import Conv

pytestmark = NEWEST_JAX

# Options of `convolve`, as nnx.Conv passes them.
OPTIONS = {"lhs_dilation": (1, 1), "rhs_dilation": (1, 1), "dimension_numbers": ("NHWC", "HWIO", "NHWC")}


def gradients(function, *arguments, weights):
    """Returns the gradients of the weighted sum of the outputs with respect to all arguments."""
    return jax.jit(jax.grad(lambda *of: jnp.sum(function(*of) * weights), argnums=range(len(arguments))))(*arguments)


NEEDS_ONEDNN = pytest.mark.skipif(native.convolutions() is None, reason="oneDNN is not installed")


@pytest.mark.parametrize(
    ("size", "kernel", "strides", "padding"),
    [
        ((7, 9), (3, 3), (1, 1), 1),
        ((8, 8), (3, 3), (2, 2), 1),
        ((9, 7), (7, 7), (2, 2), 3),
        ((9, 8), (5, 2), (1, 2), ((2, 1), (0, 3))),
        ((11, 11), (2, 3), (3, 1), "SAME"),
        ((8, 9), (3, 3), (2, 3), "VALID"),
        ((8, 8), (1, 1), (2, 2), 0),
        ((8, 8), (1, 1), (1, 1), 1),
        ((8, 9), (1, 1), (1, 1), 0),
        ((9, 8), (1, 1), (2, 3), 0),
    ],
)
@pytest.mark.parametrize(("dtype", "error"), [("float32", 1e-4), ("bfloat16", 0.1)])
@pytest.mark.parametrize("batch", [1, 3])
def test_convolutions_and_their_gradients_match_xla(size, kernel, strides, padding, batch, dtype, error):
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=(batch, *size, 4)), jnp.float32)
    conv = Conv(4, 5, kernel, strides=strides, padding=padding, dtype=dtype, rngs=nnx.Rngs(0))
    graph, state = nnx.split(conv)

    def apply(x, state):
        return nnx.merge(graph, state)(x)

    with without_cpu_kernels():
        y = apply(x, state)
        weights = rng.normal(size=y.shape).astype(np.float32)
        expected = gradients(apply, x, state, weights=weights)
    found = apply(x, state)
    assert (found.shape, found.dtype) == (y.shape, dtype)
    np.testing.assert_allclose(np.float32(found), np.float32(y), rtol=error, atol=error)
    ours = gradients(apply, x, state, weights=weights)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=error, atol=error), ours, expected)


def text(x, kernel, **options):
    """Returns the text of the lowered program that computes a convolution's gradients."""
    given = {"strides": (1, 1), "padding": ((1, 1), (1, 1))} | OPTIONS | options
    return (
        jax.jit(jax.grad(lambda *of: jnp.sum(convolve(*of, **given) ** 2), argnums=(0, 1))).lower(x, kernel).as_text()
    )


@NEEDS_ONEDNN
def test_onednn_is_used_only_where_supported(monkeypatch):
    x, kernel = jnp.ones((2, 16, 16, 4)), jnp.ones((3, 3, 4, 4))
    assert text(x, kernel).count("@jaxdp_convolution") == 3
    with without_cpu_kernels():
        assert "jaxdp_convolution" not in text(x, kernel)
    assert "jaxdp_convolution" not in text(x.astype("float16"), kernel.astype("float16"))
    assert "jaxdp_convolution" not in text(x, kernel, lhs_dilation=(2, 2))
    assert "jaxdp_convolution" not in text(x, kernel[:, :, :2], feature_group_count=2)
    monkeypatch.setattr(convolution, "_dtypes", lambda: ("float32",))
    assert "jaxdp_convolution" not in text(x.astype("bfloat16"), kernel.astype("bfloat16"))


def test_xla_is_used_if_onednn_is_not_installed(monkeypatch):
    monkeypatch.setattr(native, "convolutions", lambda: None)
    monkeypatch.setattr(convolution, "_dtypes", convolution._dtypes.__wrapped__)
    assert "jaxdp_convolution" not in text(jnp.ones((2, 16, 16, 4)), jnp.ones((3, 3, 4, 4)))


@NEEDS_ONEDNN
def test_onednn_error_is_reported():
    x, kernel = jnp.ones((2, 16, 16, 4)), jnp.ones((3, 3, 4, 4))
    like = jax.ShapeDtypeStruct((2, 99, 16, 4), jnp.float32)
    text(x, kernel)  # registers the FFI target
    compute = functools.partial(convolution._by_onednn, 0, like, strides=(1, 1), pads=((1, 1), (1, 1)))
    with pytest.raises(jax.errors.JaxRuntimeError, match="oneDNN convolution failed: could not create"):
        jax.jit(compute)(x, kernel)


def in_a_process(script, threads):
    """Runs a script in a process whose XLA has `threads` threads, and returns its output."""
    environment = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"} | {"NPROC": threads}
    command = [sys.executable, pathlib.Path(__file__).with_name(script)]
    return subprocess.run(command, env=environment, check=True, timeout=60, stdout=subprocess.PIPE, text=True).stdout


@NEEDS_ONEDNN
@pytest.mark.parametrize("threads", ["1", "2", "5"])
def test_concurrent_convolutions_are_correct_and_deterministic(threads):
    in_a_process("many_convolutions.py", threads)


def test_layers_are_bit_identical_for_any_number_of_threads():
    assert len({in_a_process("many_layers.py", threads) for threads in ("1", "2", "5")}) == 1


def test_gradients_over_several_devices_match_one_device():
    mesh = jax.make_mesh((2,), ("d",), axis_types=(jax.sharding.AxisType.Auto,))
    split, same = jax.P("d"), jax.P()
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=(4, 16, 16, 3)), jnp.float32)
    conv = Conv(3, 2, (3, 3), rngs=nnx.Rngs(0))
    graph, state = nnx.split(conv)

    def gradient(x, state):
        state = jax.tree.map(lambda leaf: jax.lax.pcast(leaf, "d", to="varying"), state)
        found = jax.grad(lambda state: jnp.sum(max_pool(nnx.merge(graph, state)(x), (3, 3), (2, 2)) ** 2))(state)
        return jax.lax.psum(found, "d")

    ours = jax.jit(jax.shard_map(gradient, mesh=mesh, in_specs=(split, same), out_specs=same))(x, state)
    whole = jax.grad(lambda state: jnp.sum(max_pool(nnx.merge(graph, state)(x), (3, 3), (2, 2)) ** 2))(state)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4), ours, whole)


@pytest.mark.parametrize(
    ("size", "window", "strides", "padding"),
    [
        ((8, 8), (3, 3), (2, 2), ((1, 1), (1, 1))),
        ((9, 8), (3, 3), (2, 2), "SAME"),
        ((9, 8), (3, 2), (2, 3), "VALID"),
        ((5, 5), (3, 3), (1, 1), "SAME"),
    ],
)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_max_pooling_and_its_gradients_match_xla(size, window, strides, padding, dtype):
    """Many input values are equal, so windows have several maxima."""
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.integers(0, 3, (2, *size, 3)), dtype)
    pool = functools.partial(max_pool, window=window, strides=strides, padding=padding)
    with without_cpu_kernels():
        y = pool(x)
        weights = rng.integers(1, 9, y.shape).astype(dtype)
        expected = gradients(pool, x, weights=weights)
    np.testing.assert_array_equal(pool(x), y)
    np.testing.assert_array_equal(gradients(pool, x, weights=weights)[0], expected[0])


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_max_pooling_propagates_nan_and_infinity(dtype):
    x = jnp.zeros((2, 64, 64, 67), dtype).at[1, 21, 33, 66].set(jnp.nan).at[0, 0, 0, 0].set(jnp.inf)
    pooled = np.float32(max_pool(x, (2, 2), (2, 2)))
    assert np.argwhere(np.isnan(pooled)).tolist() == [[1, 10, 16, 66]]
    assert np.argwhere(np.isinf(pooled)).tolist() == [[0, 0, 0, 0]]


def test_flops_include_custom_kernels():
    x, kernel = jnp.ones((8, 16, 16, 4)), jnp.ones((3, 3, 4, 4))
    given = {"strides": (1, 1), "padding": "VALID"} | OPTIONS
    products = 2 * 8 * 14 * 14 * 9 * 4 * 4
    counted = count_flops(jax.grad(lambda kernel: jnp.sum(convolve(x, kernel, **given))), kernel)
    assert products <= counted < 2.2 * products
