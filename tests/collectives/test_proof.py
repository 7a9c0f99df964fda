"""The proof of a job's schedules: what it verifies, and what it says."""

import dataclasses
import types

import numpy as np
import pytest

from jaxdp.collectives import proof
from jaxdp.collectives.algorithms import ALGORITHMS
from jaxdp.collectives.choice import Choice
from jaxdp.collectives.schedule import Schedule
from jaxdp.runtime.world import Failure

FLOAT32, FLOAT64 = np.dtype(np.float32), np.dtype(np.float64)


def world_of(size):
    """What the proof needs of rank 0's world."""
    return types.SimpleNamespace(size=size, is_root=True, bcast=lambda value: value)


def without_last_move(schedule):
    rounds = [schedule.round(index) for index in range(schedule.num_rounds)]
    return Schedule.from_rounds(schedule.num_ranks, schedule.num_chunks, [*rounds[:-1], rounds[-1][:-1]])


@pytest.fixture
def verified(monkeypatch):
    """Records what is verified: number of moves, and whether values are rounded."""
    found = []
    verify = proof.verify

    def recording(schedule, *, wire_rounds):
        found.append((schedule.num_moves, wire_rounds))
        verify(schedule, wire_rounds=wire_rounds)

    monkeypatch.setattr(proof, "verify", recording)
    return found


def test_each_schedule_is_verified_once(verified):
    ring, star = Choice("ring"), Choice("parameter_server")
    other_segments = dataclasses.replace(ring, segment_bytes=77)
    choices = [(ring, FLOAT32), (star, FLOAT32), (ring, FLOAT64), (other_segments, FLOAT32), (Choice("mpi"), FLOAT32)]
    assert proof.prove_schedules(choices, world_of(4)) == "verified"
    assert verified == [(24, False), (6, False)]


def test_rounding_is_part_of_the_proof_of_16_bit_wires(verified):
    narrow = Choice("ring", wire="bfloat16")
    assert proof.prove_schedules([(narrow, FLOAT32), (narrow, FLOAT64)], world_of(4)) == "verified"
    assert verified == [(24, True), (24, False)]


def test_mpi_has_nothing_to_verify(verified):
    assert proof.prove_schedules([(Choice("mpi"), FLOAT32)], world_of(4)) == ""
    assert verified == []


def test_wrong_schedule_is_a_failure_that_names_its_cause(monkeypatch):
    ring = ALGORITHMS["ring"]
    broken = dataclasses.replace(ring, schedule=lambda num_ranks: without_last_move(ring.schedule(num_ranks)))
    monkeypatch.setitem(ALGORITHMS, "broken", broken)
    with pytest.raises(Failure, match=r"the schedule of broken for 4 ranks is wrong: .* lacks the .* a bug in jaxdp"):
        proof.prove_schedules([(Choice("ring"), FLOAT32), (Choice("broken"), FLOAT32)], world_of(4))


def test_every_algorithm_is_small_enough_to_verify_up_to_256_ranks():
    nodes = {"inner": "direct", "outer": "multicolor", "ranks_per_node": 8, "colors": 32, "arity": 2}
    trees = {"colors": 256, "arity": 2}
    for name, algorithm in ALGORITHMS.items():
        options = nodes if name == "hierarchical" else {option: trees[option] for option in algorithm.options}
        assert algorithm.schedule(256, **options).num_moves * 256 <= proof.LARGEST_PROOF


def test_schedules_too_large_to_verify_are_named(verified):
    choices = [(Choice("ring"), FLOAT32), (Choice("binomial"), FLOAT32)]
    result = proof.prove_schedules(choices, world_of(257))
    assert result == "ring not verified: too many moves for 257 ranks"
    assert verified == [(512, False)]
