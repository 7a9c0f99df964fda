import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdp.collectives.buckets import Buckets

TREE = {
    "a": np.arange(6, dtype=np.float32).reshape(2, 3),
    "b": {"c": np.float32(7.0).reshape(()), "d": np.arange(5, dtype=np.float32)},
    "e": {},
    "f": np.arange(40, dtype=np.float32).reshape(4, 10),
}


@pytest.mark.parametrize("bucket_bytes", [1, 4, 24, 100, 10**6])
def test_a_tree_comes_back_as_it_went_in(bucket_bytes):
    layout = Buckets.plan(TREE, bucket_bytes=bucket_bytes)
    back = jax.jit(lambda tree: layout.unpack(layout.pack(tree)))(TREE)
    assert jax.tree.structure(back) == jax.tree.structure(TREE)
    jax.tree.map(np.testing.assert_array_equal, back, TREE)


def test_the_last_leaves_come_first_and_no_bucket_is_larger_than_asked_but_for_one_leaf():
    layout = Buckets.plan(TREE, bucket_bytes=48)
    assert layout.members == ((3,), (2, 1, 0))
    sizes = [bucket.size * 4 for bucket in layout.pack(TREE)]
    assert sizes == [160, 48]


def test_a_bucket_has_one_dtype():
    layout = Buckets.plan({"x": jnp.ones(3), "y": jnp.ones(3, jnp.int32), "z": jnp.ones(3)}, bucket_bytes=100)
    assert layout.members == ((2, 0), (1,))
