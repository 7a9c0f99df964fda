import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jobs import NEWEST_JAX

from jaxdp.collectives.buckets import Buckets, gradient_ready_order

pytestmark = NEWEST_JAX

TREE = {
    "a": np.arange(6, dtype=np.float32).reshape(2, 3),
    "b": {"c": np.float32(7.0).reshape(()), "d": np.arange(5, dtype=np.float32)},
    "e": {},
    "f": np.arange(40, dtype=np.float32).reshape(4, 10),
}


@pytest.mark.parametrize("bucket_bytes", [1, 4, 24, 100, 10**6])
def test_unpack_inverts_pack(bucket_bytes):
    layout = Buckets.plan(TREE, bucket_bytes=bucket_bytes)
    back = jax.jit(lambda tree: layout.unpack(layout.pack(tree)))(TREE)
    assert jax.tree.structure(back) == jax.tree.structure(TREE)
    jax.tree.map(np.testing.assert_array_equal, back, TREE)


def test_last_leaves_come_first_and_full_buckets_are_closed():
    layout = Buckets.plan(TREE, bucket_bytes=24)
    assert layout.members == ((3,), (2, 1), (0,))
    assert layout.sizes == [bucket.nbytes for bucket in layout.pack(TREE)] == [160, 24, 24]


def test_leaves_follow_a_given_order():
    layout = Buckets.plan(TREE, bucket_bytes=24, order=[1, 0, 3, 2])
    assert layout.members == ((1, 0), (3,), (2,))


def test_gradients_of_later_layers_are_ready_first():
    """The names of the layers, which determine the order of the leaves, do not matter."""
    layers = {"b": 0, "c": 1, "a": 2}
    params = {name: jnp.ones((3, 3)) for name in layers}

    def loss_and_gradient(params, x):
        def loss(params):
            y = x
            for name in layers:
                y = jnp.tanh(y @ params[name])
            return y.sum()

        value, gradient = jax.value_and_grad(loss)(params)
        return {"gradient": gradient, "loss": value, "zero": jnp.zeros(())}

    names = ["a", "b", "c", "loss", "zero"]
    order = [names[index] for index in gradient_ready_order(loss_and_gradient, params, jnp.ones((2, 3)))]
    assert [name for name in order if name in layers] == ["a", "c", "b"]
    assert order.index("loss") < order.index("a")


def test_each_bucket_has_one_dtype():
    layout = Buckets.plan({"x": jnp.ones(3), "y": jnp.ones(3, jnp.int32), "z": jnp.ones(3)}, bucket_bytes=100)
    assert layout.members == ((2, 0), (1,))
