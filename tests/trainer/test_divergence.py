import jax.numpy as jnp
import numpy as np
import pytest

from jaxdp.trainer.divergence import _word, first_divergent


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
    found = {int(_word(values))}
    for place in range(bits.size):
        for bit in range(width):
            other = bits.copy()
            other.flat[place] ^= np.array(1 << bit, other.dtype)
            found.add(int(_word(jnp.asarray(other.view(values.dtype)))))
    # Almost all changes of one bit give distinct hashes, which also differ from the original hash.
    assert len(found) > bits.size * width * 0.99
    assert int(_word(values)) == int(_word(jnp.array(values)))


def test_hash_depends_on_the_order_of_values():
    values = jnp.arange(64, dtype=jnp.float32)
    assert int(_word(values)) != int(_word(values[::-1]))
