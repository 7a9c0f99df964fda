import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdp.placement.local import LocalPlacement
from jaxdp.step.state import TrainState
from jaxdp.trainer.divergence import DivergenceCheck, _word, first_divergent


def hashes(ranks, devices, leaves, *, odd=()):
    table = np.tile(np.arange(leaves, dtype=np.uint32), (ranks, devices, 1))
    for rank, device, leaf in odd:
        table[rank, device, leaf] += 77
    return table


@pytest.mark.parametrize(
    ("shape", "odd", "expected"),
    [
        ((1, 1, 3), [], None),
        ((4, 2, 3), [], None),
        ((4, 2, 3), [(0, 0, 2)], (0, 0, 2)),
        ((4, 2, 3), [(3, 1, 2), (3, 1, 1)], (3, 1, 1)),
        ((5, 1, 3), [(1, 0, 0), (3, 0, 0)], (1, 0, 0)),
        # Two replicas: neither is in the minority, and the second one is named.
        ((2, 1, 3), [(0, 0, 1)], (1, 0, 1)),
    ],
)
def test_minority_replica_is_named_with_its_first_differing_leaf(shape, odd, expected):
    assert first_divergent(hashes(*shape, odd=odd)) == expected


@pytest.mark.parametrize("dtype", ["float32", "int32", "bfloat16", "float16"])
def test_hash_depends_on_every_bit(dtype):
    rng = np.random.default_rng(0)
    values = jnp.asarray(rng.standard_normal((5, 7)) * 100, dtype)
    width = values.dtype.itemsize * 8
    bits = np.array(values).view(f"uint{width}")
    first, found = int(_word(values)), set()
    for place in range(bits.size):
        for bit in range(width):
            other = bits.copy()
            other.flat[place] ^= np.array(1 << bit, other.dtype)
            found.add(int(_word(jnp.asarray(other.view(values.dtype)))))
    assert first not in found
    # Almost all changes of one bit give distinct hashes.
    assert len(found) > bits.size * width * 0.99


def test_hash_depends_on_the_order_of_values():
    values = jnp.arange(64, dtype=jnp.float32)
    assert int(_word(values)) != int(_word(values[::-1]))


class World:
    """Stand-in for `jaxdp.runtime.world.World`: ranks that all hold this rank's state."""

    def __init__(self, size):
        self.size = size

    def allgather(self, value):
        return [value] * self.size


def state_of(kernel, bias):
    params = {"kernel": jnp.asarray(kernel), "bias": jnp.asarray(bias)}
    step, skipped = jnp.full((), 7), jnp.zeros((), jnp.int32)
    return TrainState(step=step, params=params, stats={}, opt_state=(), average={}, skipped=skipped)


def hash_of(state, *, ranks=1, devices=1):
    replicated = LocalPlacement.create("native", ranks, jax.devices()[:devices]).replicate(state)
    return DivergenceCheck(state, World(ranks), dump=None).check(replicated, 7)


KERNEL, BIAS = np.linspace(-1, 1, 12, dtype=np.float32).reshape(3, 4), np.ones((3, 4), np.float32)


@pytest.mark.parametrize(("ranks", "devices"), [(1, 2), (3, 1), (2, 4)])
def test_state_hash_is_the_same_on_any_number_of_replicas(ranks, devices):
    expected = hash_of(state_of(KERNEL, BIAS))
    assert len(expected) == 16
    assert int(expected, 16)
    assert hash_of(state_of(KERNEL, BIAS), ranks=ranks, devices=devices) == expected


def test_state_hash_depends_on_every_bit_name_shape_and_dtype():
    bits = KERNEL.view(np.uint32).copy()
    bits[1, 2] ^= 1
    zeros = np.zeros(4, np.float32)
    found = [
        hash_of(state_of(kernel, bias))
        for kernel, bias in [
            (KERNEL, BIAS),
            (bits.view(np.float32), BIAS),
            (BIAS, KERNEL),
            (KERNEL.reshape(4, 3), BIAS),
            (KERNEL.ravel(), BIAS),
            (zeros, BIAS),
            (zeros.astype(np.int32), BIAS),
        ]
    ]
    assert len(set(found)) == len(found)
