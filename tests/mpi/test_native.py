"""Compares the native engine with the oracle, bit for bit."""

import threading
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from jaxdp.collectives import run_native, run_numpy
from jaxdp.collectives.algorithms import multicolor
from jaxdp.collectives.schedule import Move, Schedule
from tests.mpi.test_allreduce import payloads, random_schedule, schedules


@pytest.fixture(scope="module")
def engine(world):
    return run_native.engine_of(world)


@pytest.mark.parametrize("segment_bytes", [2**20, 1024, 4])
@pytest.mark.parametrize("num_elements", [1, 7, 1_003])
def test_every_algorithm_matches_the_oracle_bit_for_bit(world, engine, num_elements, segment_bytes):
    values = payloads(world.size, num_elements, np.float32)
    for schedule in schedules(world.size):
        plan = engine.plan(schedule, num_elements, np.float32, segment_bytes=segment_bytes)
        expected = run_numpy.allreduce(schedule, values)[world.rank]
        for _ in range(2):
            np.testing.assert_array_equal(engine.allreduce(values[world.rank], plan), expected)


def test_float64_matches_the_oracle(world, engine):
    schedule = multicolor(world.size, colors=1, arity=2)
    values = payloads(world.size, 500, np.float64)
    plan = engine.plan(schedule, 500, np.float64, segment_bytes=256)
    np.testing.assert_array_equal(
        engine.allreduce(values[world.rank], plan), run_numpy.allreduce(schedule, values)[world.rank]
    )


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_mpi_algorithm_sums_many_payloads_at_once(world, engine, dtype):
    """Each rank starts the sums in a different order, and also writes results into the payload."""
    plans = [engine.plan_by_mpi(size, dtype) for size in (1, 1000, 70_000)]
    results = {}

    def work(plan):
        mine = np.arange(plan.num_elements, dtype=dtype) + world.rank
        results[plan.number] = [engine.allreduce(mine, plan), engine.allreduce(mine, plan, out=mine)]

    for repetition in range(3):
        order = np.random.default_rng(1000 * world.rank + repetition).permutation(len(plans))
        threads = [threading.Thread(target=work, args=(plans[index],)) for index in order]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        for plan in plans:
            expected = np.arange(plan.num_elements, dtype=dtype) * world.size + sum(range(world.size))
            for result in results[plan.number]:
                np.testing.assert_array_equal(result, expected)


@pytest.mark.parametrize("wire", ["bfloat16", "float16"])
def test_16_bit_wire_matches_the_oracle_on_all_ranks(world, engine, wire):
    values = payloads(world.size, 1_003, np.float32)
    for schedule in schedules(world.size):
        expected = run_numpy.allreduce(schedule, values, on_wire=lambda x: x.astype(jnp.dtype(wire)).astype(x.dtype))
        plan = engine.plan(schedule, 1_003, np.float32, segment_bytes=512, wire=wire)
        np.testing.assert_array_equal(engine.allreduce(values[world.rank], plan), expected[world.rank])


@pytest.mark.parametrize("seed", range(10))
def test_random_schedule_matches_the_oracle_without_deadlock(world, engine, seed):
    schedule = random_schedule(world.size, seed)
    values = payloads(world.size, 33, np.float32)
    for wire in (None, "bfloat16"):
        plan = engine.plan(schedule, 33, np.float32, segment_bytes=40, wire=wire)
        on_wire = (lambda x: x.astype(jnp.bfloat16).astype(x.dtype)) if wire else (lambda x: x)
        expected = run_numpy.allreduce(schedule, values, on_wire=on_wire)[world.rank]
        np.testing.assert_array_equal(engine.allreduce(values[world.rank], plan), expected)


def test_sum_may_overwrite_its_payload(world, engine):
    for schedule in schedules(world.size):
        plan = engine.plan(schedule, 100, np.float32, segment_bytes=64)
        values = payloads(world.size, 100, np.float32)
        expected = run_numpy.allreduce(schedule, values)[world.rank]
        mine = values[world.rank]
        np.testing.assert_array_equal(engine.allreduce(mine, plan, out=mine), expected)


def test_ranks_may_start_concurrent_sums_in_different_orders(world, engine):
    schedule = multicolor(world.size, colors=min(2, world.size), arity=2)
    sizes = [1 + 997 * index for index in range(12)]
    plans = [engine.plan(schedule, size, np.float32, segment_bytes=1024) for size in sizes]
    values = [payloads(world.size, size, np.float32) for size in sizes]
    results = {}

    def work(index):
        results[index] = engine.allreduce(values[index][world.rank], plans[index])

    for repetition in range(3):
        order = np.random.default_rng(1000 * world.rank + repetition).permutation(len(sizes))
        threads = [threading.Thread(target=work, args=(int(index),)) for index in order]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        for index, of_ranks in enumerate(values):
            np.testing.assert_array_equal(results[index], run_numpy.allreduce(schedule, of_ranks)[world.rank])


def test_several_sums_run_inside_jit(world, engine):
    schedule = multicolor(world.size, colors=min(2, world.size), arity=2)
    plans = [engine.plan(schedule, 5_000, np.float32, segment_bytes=4096) for _ in range(3)]

    @jax.jit
    def step(x):
        parts = [x * (index + 1) for index in range(3)]
        return [run_native.allreduce(part, plan) for part, plan in zip(parts, plans, strict=True)]

    values = payloads(world.size, 5_000, np.float32)
    for _ in range(3):
        for index, result in enumerate(step(values[world.rank])):
            scaled = [value * np.float32(index + 1) for value in values]
            expected = run_numpy.allreduce(schedule, scaled)[world.rank]
            np.testing.assert_array_equal(np.asarray(result), expected)


def test_each_device_in_shard_map_is_summed_separately(world, engine):
    devices = jax.local_devices()
    schedule = multicolor(world.size, colors=1, arity=2)
    plans = [engine.plan(schedule, 64, np.float32, segment_bytes=64) for _ in devices]
    mesh = jax.make_mesh((len(devices),), ("device",), axis_types=(jax.sharding.AxisType.Auto,), devices=devices)
    spec = PartitionSpec("device")

    def on_device(x):
        return run_native.allreduce(x, plans[0], device=jax.lax.axis_index("device"))

    summed = jax.jit(jax.shard_map(on_device, mesh=mesh, in_specs=spec, out_specs=spec))
    values = payloads(world.size, 64 * len(devices), np.float32)
    parts = [np.split(value, len(devices)) for value in values]
    expected = [
        run_numpy.allreduce(schedule, [of_rank[index] for of_rank in parts])[world.rank]
        for index in range(len(devices))
    ]
    np.testing.assert_array_equal(np.asarray(summed(values[world.rank])), np.concatenate(expected))


def test_failed_message_is_named_and_ends_the_engine(world):
    alone = run_native.ProgressEngine(world.native_comm.Dup())
    schedule = Schedule.from_rounds(world.size, 1, [[Move(1, 0, 0, True)]] if world.size > 1 else [])
    payload = np.ones(10 if world.rank == 0 else 20, np.float32)
    plan = alone.plan(schedule, payload.size, np.float32, segment_bytes=1024, name="bucket 3")
    if world.rank == 0 and world.size > 1:
        for _ in range(2):
            with pytest.raises(RuntimeError, match=r"rank 0 could not exchange bucket 3 with rank 1: .*[Tt]runc"):
                alone.allreduce(payload, plan)
    else:
        np.testing.assert_array_equal(alone.allreduce(payload, plan), payload)
    alone.stop()


def test_stopped_engine_raises_an_error(world):
    alone = run_native.ProgressEngine(world.native_comm.Dup())
    plan = alone.plan_without_messages(10, np.float32)
    payload = np.ones(10, np.float32)
    np.testing.assert_array_equal(alone.allreduce(payload, plan), payload)
    alone.stop()
    with pytest.raises(RuntimeError, match="the allreduce engine has stopped"):
        alone.allreduce(payload, plan)


def test_events_record_when_each_sum_took_place(world, engine):
    plan = engine.plan(multicolor(world.size, colors=1, arity=2), 1000, np.float32, segment_bytes=512)
    before = time.perf_counter()
    for _ in range(3):
        engine.allreduce(np.ones(1000, np.float32), plan)
    after = time.perf_counter()
    mine = [event for event in engine.events() if event.plan == plan.number]
    assert len(mine) == 3
    times = [moment for event in mine for moment in (event.start_s, event.end_s)]
    assert [before, *times, after] == sorted([before, *times, after])


def test_events_are_selected_by_number(engine):
    plan = engine.plan_without_messages(10, np.float32)
    over, _ = engine.counts()
    for _ in range(4):
        engine.allreduce(np.ones(10, np.float32), plan)
    assert engine.counts() == (over + 4, 0)
    first, *others = engine.events(over)
    assert len(others) == 3
    assert engine.events(over, 1) == [first]
    assert engine.events(over + 1, 2) == others[:2]
    assert engine.events(over + 4) == []
