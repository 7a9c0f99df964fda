import dataclasses
import time

import jax
import numpy as np
import pytest

from jaxdp.collectives import auto
from jaxdp.collectives.allreduce import make_allreduce
from jaxdp.collectives.buckets import Buckets
from jaxdp.collectives.choice import Choice
from jaxdp.collectives.config import MPI
from jaxdp.collectives.cost import Link, NetworkModel
from jaxdp.collectives.measure import measure_network
from jaxdp.config.schema import Config
from jaxdp.configs.digits import get_config

LAYOUT = Buckets.plan([np.zeros(1000, np.float32), np.zeros(10, np.float32)], bucket_bytes=40)
DIGITS = Config.from_dict(get_config().to_dict()).allreduce
CONFIG = dataclasses.replace(DIGITS, engine="mpi4jax", algorithm="auto")
NETWORK = NetworkModel.flat(Link(alpha=1e-5, beta=1e-9, gamma=1e-10))


def test_measured_network_is_plausible_and_equal_on_all_ranks(world):
    network = measure_network(world)
    assert set(world.allgather(network)) == {network}
    for link in (network.between, network.inside):
        assert 1e-8 < link.alpha < 0.1
        # Beta is 0 if other processes slow down small messages so much that alpha exceeds the time per segment.
        assert 0 <= link.beta < 1e-6
        assert 1e-12 < link.gamma < 1e-7


@pytest.mark.parametrize("engine", ["native", "mpi4jax"])
def test_ranks_agree_and_decide_once_per_bucket_size(world, engine):
    decisions = auto.choose([40_000, 400, 40_000], "float32", world, engine=engine)
    assert world.allgather(decisions) == [decisions] * world.size
    assert decisions[0] is decisions[2]
    assert [decision.num_bytes for decision in decisions] == [40_000, 400, 40_000]


@pytest.mark.parametrize("engine", ["native", "mpi4jax"])
@pytest.mark.parametrize(
    ("seconds", "place", "mpi_wins"),
    [([3e-3, 1e-3, 2e-3, 4e-3], 1, False), ([3e-3, 4e-3, 2e-3, 1e-3], 2, True), ([1e-3, 2e-3, 3e-3, 1e-3], 0, False)],
)
def test_fastest_in_the_trial_is_chosen(world, monkeypatch, engine, seconds, place, mpi_wins):
    """The last time is that of MPI's own allreduce, which must be faster to be chosen."""
    monkeypatch.setattr(auto, "measure_network", lambda _: NETWORK)
    monkeypatch.setattr(auto, "trial", lambda runs, _: [run() for run in runs] and seconds)
    entrants = [choice for _, choice in auto.finalists(4000, "float32", world.size, world.ranks_per_node, NETWORK)]
    assert len(entrants) == 3
    (decision,) = auto.choose([4000], "float32", world, engine=engine)
    assert decision.choice == (Choice(MPI) if mpi_wins else entrants[place])
    assert decision.ours == entrants[place]
    assert (decision.tried_s, decision.mpi_s) == (seconds[place], seconds[3])


def test_trial_takes_the_slowest_rank_after_a_warm_up(world):
    """Each program is slow on one rank; the first of its three runs does not count, although it is fast."""
    seconds_of_run = (0.0, 0.3, 0.03)

    def program(slow_rank):
        seconds = iter(seconds_of_run)
        return lambda: time.sleep(next(seconds) * (world.rank == slow_rank))

    timed = auto.trial([program(0), program(world.size - 1)], world)
    assert world.allgather(timed) == [timed] * world.size
    assert all(0.03 <= seconds < 0.3 for seconds in timed)


@pytest.mark.parametrize("engine", ["native", "mpi4jax"])
def test_16_bit_wire_excludes_the_mpi_algorithm(world, engine):
    (decision,) = auto.choose([40_000], "bfloat16", world, engine=engine)
    assert world.allgather(decision) == [decision] * world.size
    assert decision.mpi_s is None
    assert decision.choice.wire == "bfloat16"
    assert decision.choice.algorithm != MPI


def test_chosen_allreduce_is_exact_and_its_choice_is_kept(world):
    first = make_allreduce(CONFIG, world, LAYOUT)
    buckets = [np.full(size // 4, world.rank, np.float32) for size in LAYOUT.sizes]
    for bucket in jax.jit(first)(buckets):
        np.testing.assert_array_equal(bucket, sum(range(world.size)))

    other = first.chosen | {"choices": [dataclasses.asdict(Choice("binomial", segment_bytes=77))] * 2}
    kept = make_allreduce(CONFIG, world, LAYOUT, other)
    assert kept.choices == [Choice("binomial", segment_bytes=77)] * 2
    assert kept.chosen == other
    assert "as chosen when the run began" in kept.description
    assert kept.description.endswith(", verified")


def test_choice_for_other_ranks_or_sizes_is_discarded(world):
    elsewhere = {"engine": "mpi4jax", "num_ranks": 99, "sizes": LAYOUT.sizes, "wire": "float32", "choices": []}
    for chosen in (elsewhere, elsewhere | {"num_ranks": world.size, "sizes": [1]}):
        found = make_allreduce(CONFIG, world, LAYOUT, chosen)
        assert len(found.choices) == 2
        assert found.chosen["num_ranks"] == world.size
        assert "chosen from measurements" in found.description
