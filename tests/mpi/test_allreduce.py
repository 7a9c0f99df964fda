"""Compares the mpi4jax and mpi4py executors with the oracle, bit for bit."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdp.collectives import run_mpi4jax, run_mpi4py, run_numpy
from jaxdp.collectives.algorithms import ALGORITHMS, multicolor
from jaxdp.collectives.schedule import Move, Schedule


def payloads(size, num_elements, dtype):
    return [np.random.default_rng(rank).standard_normal(num_elements).astype(dtype) for rank in range(size)]


def run(world, schedule, values, **options):
    return np.asarray(
        jax.jit(lambda x: run_mpi4jax.allreduce(x, schedule=schedule, comm=world.device_comm, **options))(
            values[world.rank]
        )
    )


def schedules(size):
    """Returns the schedules of all algorithms and options, each once: in small worlds many are the same."""
    distinct = {}
    for schedule in _all_schedules(size):
        columns = (schedule.round_starts, schedule.src, schedule.dst, schedule.chunk, schedule.reduce)
        distinct.setdefault((schedule.num_chunks, *(column.tobytes() for column in columns)), schedule)
    return list(distinct.values())


def _all_schedules(size):
    for name, algorithm in ALGORITHMS.items():
        several = {
            "multicolor": [{"colors": k, "arity": a} for k in range(1, size + 1) for a in {1, 2, k}],
            "hierarchical": [
                {"inner": inner, "outer": "ring", "ranks_per_node": node}
                for node in range(1, size + 1)
                for inner in ("direct", "binomial")
                if size % node == 0
            ],
        }.get(name, [{}])
        for options in several:
            yield algorithm.schedule(size, **options)


def random_schedule(size, seed):
    """Random moves: many into one rank, cycles, duplicates, values that change in the round in which they are sent."""
    rng = np.random.default_rng(seed)
    rounds = []
    for _ in range(3 if size > 1 else 0):
        pairs = [rng.choice(size, 2, replace=False) for _ in range(rng.integers(12))]
        rounds.append([Move(int(a), int(b), int(rng.integers(2)), bool(rng.integers(2))) for a, b in pairs])
    return Schedule.from_rounds(size, 2, rounds)


@pytest.mark.parametrize(("num_elements", "num_segments"), [(1, 3), (7, 1), (10_003, 3)])
def test_every_algorithm_matches_the_oracle_bit_for_bit(world, num_elements, num_segments):
    values = payloads(world.size, num_elements, np.float32)
    for schedule in schedules(world.size):
        expected = run_numpy.allreduce(schedule, values)[world.rank]
        np.testing.assert_array_equal(run(world, schedule, values, num_segments=num_segments), expected)


@pytest.mark.parametrize("num_elements", [1, 7, 10_003])
def test_mpi4py_executor_matches_the_oracle(world, num_elements):
    values = payloads(world.size, num_elements, np.float32)
    for schedule in schedules(world.size):
        expected = run_numpy.allreduce(schedule, values)[world.rank]
        result = run_mpi4py.allreduce(values[world.rank], schedule=schedule, comm=world.host_comm, num_segments=3)
        np.testing.assert_array_equal(result, expected)


@pytest.mark.parametrize("wire", [jnp.bfloat16, jnp.float16])
def test_16_bit_wire_matches_the_oracle_on_all_ranks(world, wire):
    values = payloads(world.size, 1_003, np.float32)
    # The two wires differ only in type, so float16 runs every other schedule only.
    for schedule in schedules(world.size)[:: 1 if wire == jnp.bfloat16 else 2]:
        expected = run_numpy.allreduce(schedule, values, on_wire=lambda x: x.astype(wire).astype(x.dtype))
        assert all(replica.tobytes() == expected[0].tobytes() for replica in expected)
        np.testing.assert_array_equal(run(world, schedule, values, num_segments=2, wire=wire), expected[world.rank])


def test_float64_matches_the_oracle(world):
    schedule = multicolor(world.size, colors=1, arity=2)
    values = payloads(world.size, 500, np.float64)
    with jax.enable_x64(True):
        result = run(world, schedule, values)
    assert result.dtype == np.float64
    np.testing.assert_array_equal(result, run_numpy.allreduce(schedule, values)[world.rank])


@pytest.mark.parametrize("seed", range(10))
def test_random_schedule_matches_the_oracle_without_deadlock(world, seed):
    schedule = random_schedule(world.size, seed)
    values = payloads(world.size, 33, np.float32)
    expected = run_numpy.allreduce(schedule, values)[world.rank]
    np.testing.assert_array_equal(run(world, schedule, values), expected)


def test_one_program_runs_repeatedly(world):
    schedule = multicolor(world.size, colors=world.size, arity=2)
    summed = jax.jit(lambda x: run_mpi4jax.allreduce(x, schedule=schedule, comm=world.device_comm))
    values = jnp.full(10, float(world.rank + 1))
    for _ in range(3):
        values = summed(values) / world.size
    np.testing.assert_allclose(np.asarray(values), (world.size + 1) / 2, rtol=1e-6)
