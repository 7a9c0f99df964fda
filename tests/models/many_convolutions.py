"""Checks that many concurrent convolutions and their gradients match XLA and are bit-identical every time."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from jaxdp.models.cpu.convolution import convolve
from jaxdp.models.cpu.forms import without_cpu_kernels


def main() -> None:
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=(4, 9, 9, 8)), jnp.float32)
    kernels = [jnp.asarray(rng.normal(size=(16, size, size, 8, 8)), jnp.float32) for size in (1, 3)]
    options = {"strides": (1, 1), "padding": "SAME", "lhs_dilation": (1, 1), "rhs_dilation": (1, 1)}
    same = functools.partial(convolve, dimension_numbers=("NHWC", "HWIO", "NHWC"), **options)

    def gradient(kernels):
        def total(kernels):
            return sum(jnp.sum(jnp.sin(same(same(x, one), other))) for one, other in zip(*kernels, strict=True))

        return jax.grad(total)(kernels)

    with without_cpu_kernels():
        expected = jax.jit(lambda kernels: gradient(kernels))(kernels)
    compiled = jax.jit(gradient)
    first = compiled(kernels)
    close = functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-3)
    jax.tree.map(close, first, expected)
    for _ in range(200):
        jax.tree.map(np.testing.assert_array_equal, compiled(kernels), first)


if __name__ == "__main__":
    main()
