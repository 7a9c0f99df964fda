"""The mpi4jax executor against the oracle, bit for bit."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdp.collectives import run_mpi4jax, run_numpy
from jaxdp.collectives.algorithms import multicolor
from jaxdp.collectives.schedule import Move, Schedule


def payloads(size, num_elements, dtype):
    return [np.random.default_rng(rank).standard_normal(num_elements).astype(dtype) for rank in range(size)]


def run(world, schedule, values):
    return np.asarray(
        jax.jit(lambda x: run_mpi4jax.allreduce(x, schedule=schedule, comm=world.device_comm))(values[world.rank])
    )


@pytest.mark.parametrize("num_elements", [1, 2, 7, 1000, 100_003])
def test_multicolor_gives_the_bits_of_the_oracle(world, num_elements):
    for colors in range(1, world.size + 1):
        for arity in {1, 2, colors}:
            schedule = multicolor(world.size, colors=colors, arity=arity)
            values = payloads(world.size, num_elements, np.float32)
            expected = run_numpy.allreduce(schedule, values)[world.rank]
            np.testing.assert_array_equal(run(world, schedule, values), expected)


def test_float64(world):
    schedule = multicolor(world.size, colors=1, arity=2)
    values = payloads(world.size, 500, np.float64)
    with jax.enable_x64(True):
        result = run(world, schedule, values)
    assert result.dtype == np.float64
    np.testing.assert_array_equal(result, run_numpy.allreduce(schedule, values)[world.rank])


@pytest.mark.parametrize("seed", range(10))
def test_any_schedule_runs_as_in_the_oracle_without_deadlock(world, seed):
    """Random moves: many into one rank, circles, the same move twice, values that change in the round they are sent."""
    rng = np.random.default_rng(seed)
    rounds = []
    for _ in range(3 if world.size > 1 else 0):
        pairs = [rng.choice(world.size, 2, replace=False) for _ in range(rng.integers(12))]
        rounds.append([Move(int(a), int(b), int(rng.integers(2)), bool(rng.integers(2))) for a, b in pairs])
    schedule = Schedule.from_rounds(world.size, 2, rounds)
    values = payloads(world.size, 33, np.float32)
    expected = run_numpy.allreduce(schedule, values)[world.rank]
    np.testing.assert_array_equal(run(world, schedule, values), expected)


def test_repeated_runs_of_one_program(world):
    schedule = multicolor(world.size, colors=world.size, arity=2)
    summed = jax.jit(lambda x: run_mpi4jax.allreduce(x, schedule=schedule, comm=world.device_comm))
    values = jnp.full(10, float(world.rank + 1))
    for _ in range(3):
        values = summed(values) / world.size
    np.testing.assert_allclose(np.asarray(values), (world.size + 1) / 2, rtol=1e-6)
