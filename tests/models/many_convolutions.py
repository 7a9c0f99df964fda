"""Convolutions and their gradients, many of which XLA computes at once: as its own, and the same bits each time."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from jaxdp.models import on_cpu

OPTIONS = {"lhs_dilation": (1, 1), "rhs_dilation": (1, 1), "dimension_numbers": ("NHWC", "HWIO", "NHWC")}


def main() -> None:
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=(4, 9, 9, 8)), jnp.float32)
    kernels = jnp.asarray(rng.normal(size=(16, 3, 3, 8, 8)), jnp.float32)
    convolve = functools.partial(on_cpu.convolve, strides=(1, 1), padding="SAME", **OPTIONS)

    def gradient(kernels):
        return jax.grad(lambda kernels: sum(jnp.sum(jnp.sin(convolve(x, kernel))) for kernel in kernels))(kernels)

    with on_cpu.plain_forms():
        expected = jax.jit(lambda kernels: gradient(kernels))(kernels)
    compiled = jax.jit(gradient)
    first = np.asarray(compiled(kernels))
    np.testing.assert_allclose(first, expected, rtol=1e-4, atol=1e-4)
    for _ in range(200):
        np.testing.assert_array_equal(compiled(kernels), first)


if __name__ == "__main__":
    main()
