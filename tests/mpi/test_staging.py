"""Buckets of local devices that are summed over the ranks through the host."""

import jax
import numpy as np
import pytest

from jaxdp.bench.step_parts import allreduce_config
from jaxdp.collectives import run_native
from jaxdp.collectives.buckets import Buckets
from jaxdp.placement.local import LocalPlacement

NUM_DEVICES = 3


@pytest.mark.parametrize("name", ["native", "mpi4jax"])
def test_each_device_part_of_a_bucket_is_summed_separately(world, name):
    engine = LocalPlacement.create(name, world.size, jax.devices()[:NUM_DEVICES])
    layout = Buckets.plan([np.zeros(12, np.float32), np.zeros(3, np.float32)], bucket_bytes=1)
    config = allreduce_config(name, "ring", "float32", bucket_bytes=1)
    allreduce = engine.make_allreduce(config, world, layout, None)
    parts = [
        [np.arange(size, dtype=np.float32) * 10**device + world.rank for device in range(NUM_DEVICES)]
        for size in (1, 4)
    ]
    before, _ = run_native.engine_of(world).counts()
    sums = allreduce.of_host_parts()(jax.device_put(parts, engine.host))
    for bucket, totals in zip(parts, sums, strict=True):
        for part, total in zip(bucket, totals, strict=True):
            expected = world.size * (part - world.rank) + sum(range(world.size))
            np.testing.assert_array_equal(total, expected)
    if name == "native":
        assert sorted(event.plan for event in run_native.engine_of(world).events(before)) == allreduce.recorded_plans
