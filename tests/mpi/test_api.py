import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxdp
from jaxdp.collectives import proof
from jaxdp.collectives.choice import Choice


def tree(rank):
    return {
        "matrix": np.arange(6, dtype=np.float32).reshape(2, 3) + rank,
        "nested": [rank, {"half": jnp.full(5, rank, jnp.bfloat16), "flag": jnp.array([True, rank == 0])}],
        "empty": (),
        "scalar": 0.5 * rank,
        "complex": jnp.array([1 + 1j * rank]),
        "none": None,
    }


def expected(size, op):
    ranks = np.arange(size)
    scale = size if op == "mean" else 1
    return {
        "matrix": (np.arange(6).reshape(2, 3) * size + ranks.sum()).astype(np.float32) / np.float32(scale),
        "nested": [
            ranks.sum() / scale if op == "mean" else ranks.sum(),
            {
                "half": np.full(5, ranks.sum() / scale).astype(jnp.bfloat16),
                "flag": np.array([size, 1]) / scale if op == "mean" else np.array([size, 1]),
            },
        ],
        "empty": (),
        "scalar": 0.5 * ranks.sum() / scale,
        "complex": np.array([size + 1j * ranks.sum()]) / scale,
        "none": None,
    }


@pytest.mark.parametrize("op", ["mean", "sum"])
@pytest.mark.parametrize("inside_jit", [False, True])
def test_any_pytree_is_reduced_over_all_ranks(world, op, inside_jit):
    reduce = lambda tree: jaxdp.allreduce(tree, world, op=op)  # noqa: E731
    result = (jax.jit(reduce) if inside_jit else reduce)(tree(world.rank))
    wanted = expected(world.size, op)
    assert jax.tree.structure(result) == jax.tree.structure(wanted)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(np.asarray(a), b, rtol=1e-6), result, wanted)
    assert result["nested"][1]["half"].dtype == jnp.bfloat16
    assert result["nested"][0].dtype == (jnp.float32 if op == "mean" else jnp.int32)


@pytest.mark.parametrize("settings", [{"algorithm": "ring"}, {"algorithm": "mpi"}, {"algorithm": "auto"}])
def test_every_algorithm_gives_the_same_mean(world, settings):
    values = jnp.arange(1000.0) * (world.rank + 1)
    result = jaxdp.allreduce(values, world, bucket_bytes=1000, **settings)
    np.testing.assert_allclose(result, np.arange(1000) * (world.size + 1) / 2, rtol=1e-6)


def test_16_bit_wire_gives_identical_results_on_all_ranks(world):
    values = jnp.asarray(np.random.default_rng(world.rank).standard_normal(1000), jnp.float32)
    result = np.asarray(jaxdp.allreduce(values, world, wire="bfloat16"))
    assert result.dtype == np.float32
    assert len(set(world.allgather(result.tobytes()))) == 1
    exact = np.mean(world.allgather(np.asarray(values)), axis=0)
    assert 1e-7 < np.abs(result - exact).max() < 0.05


def test_results_stay_on_the_devices_of_the_arguments(world):
    device = jax.devices()[2]
    result = jaxdp.allreduce(jax.device_put(jnp.ones(3), device), world)
    assert result.devices() == {device}


def test_broadcast_returns_the_values_of_rank_0(world):
    mine = {"a": np.arange(3.0) + world.rank, "b": [world.rank, jnp.full((2, 2), world.rank, jnp.int32)]}
    result = jaxdp.broadcast(mine, world)
    np.testing.assert_array_equal(result["a"], np.arange(3.0))
    assert int(result["b"][0]) == 0
    np.testing.assert_array_equal(result["b"][1], np.zeros((2, 2)))
    with pytest.raises(ValueError, match="broadcast cannot be called inside jit"):
        jax.jit(lambda x: jaxdp.broadcast(x, world))(jnp.ones(2))


def test_gradients_are_averaged_in_an_optax_chain(world):
    optimizer = optax.chain(jaxdp.average_gradients(world), optax.sgd(0.5))
    params = {"w": jnp.zeros(3)}
    updates, _ = jax.jit(optimizer.update)({"w": jnp.full(3, float(world.rank))}, optimizer.init(params))
    np.testing.assert_allclose(updates["w"], -0.5 * (world.size - 1) / 2, rtol=1e-6)


def test_one_rank_may_recompile_its_step_alone(world):
    """For example for a smaller last batch: the recompiling rank must not wait for the other ranks to recompile."""
    step = jax.jit(lambda batch: jaxdp.allreduce(batch.sum(), world, op="sum"))
    assert float(step(jnp.ones(4))) == 4 * world.size
    last = 3 if world.rank == 0 else 4
    assert float(step(jnp.ones(last))) == 4 * world.size - 1


def test_rank_0_verifies_the_schedules_once(world, monkeypatch):
    verified = []
    monkeypatch.setattr(proof, "verify", lambda schedule, *, wire_rounds: verified.append((schedule, wire_rounds)))
    mixed = {"wide": jnp.ones(33), "narrow": jnp.ones(33, jnp.bfloat16)}
    for _ in range(2):
        jaxdp.allreduce(mixed, world, algorithm="ring")
    ring = Choice("ring").schedule(world.size)
    assert sorted(verified, key=lambda found: found[1]) == ([(ring, False), (ring, True)] if world.is_root else [])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"op": "max"}, "op must be 'mean' or 'sum', not 'max'"),
        ({"algorithm": "rings"}, "algorithm must be one of multicolor, ring, .*, not 'rings'"),
        ({"algorithm": "mpi", "wire": "float16"}, "algorithm 'mpi' does not support wire 'float16': choose another"),
        ({"wire": "int8"}, "wire must be one of float32, bfloat16, float16, not 'int8'"),
    ],
)
def test_unknown_argument_is_rejected(world, arguments, message):
    with pytest.raises(ValueError, match=message):
        jaxdp.allreduce(jnp.ones(2), world, **arguments)


@pytest.mark.parametrize("leaf", ["text", jnp.ones(2, jnp.float8_e4m3fn), jax.random.key(0)])
def test_non_numeric_leaf_is_rejected_by_name(world, leaf):
    with pytest.raises(ValueError, match=r"\['layer'\] is of type"):
        jaxdp.allreduce({"layer": leaf}, world)
