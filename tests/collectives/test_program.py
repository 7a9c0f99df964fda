import collections

import numpy as np
import pytest

from jaxdp.collectives import run_numpy
from jaxdp.collectives.algorithms import ALGORITHMS
from jaxdp.collectives.program import choose_segments, program
from tests.collectives.test_algorithms import schedules


def run(schedule, num_segments, payloads):
    """Executes a program as the docstring of `program` specifies, with a single number per segment of a chunk."""
    held = [values.reshape(schedule.num_chunks, num_segments).copy() for values in payloads]
    for step in program(schedule, num_segments):
        before = [values.copy() for values in held]
        arrived = [
            (place, message, chunk)
            for phase in step
            for message in phase
            for chunk, place in zip(message.chunks, message.moves, strict=True)
        ]
        for _, message, chunk in sorted(arrived, key=lambda entry: entry[0]):
            value = before[message.src][chunk, message.segment]
            there = held[message.dst][chunk, message.segment]
            held[message.dst][chunk, message.segment] = there + value if message.reduce else value
    return [values.ravel() for values in held]


@pytest.mark.parametrize("num_segments", [1, 2, 5])
@pytest.mark.parametrize("num_ranks", [1, 2, 3, 4, 5, 8, 13])
def test_program_matches_its_schedule_for_any_number_of_segments(num_ranks, num_segments):
    for _, _, schedule in schedules(num_ranks):
        payloads = [
            np.random.default_rng(rank).standard_normal(schedule.num_chunks * num_segments) for rank in range(num_ranks)
        ]
        expected = run_numpy.allreduce(schedule, payloads)
        np.testing.assert_array_equal(run(schedule, num_segments, payloads), expected)


@pytest.mark.parametrize("num_segments", [1, 4])
@pytest.mark.parametrize("num_ranks", [2, 5, 8])
def test_phases_are_matchings_and_minimal(num_ranks, num_segments):
    for _, _, schedule in schedules(num_ranks):
        steps = list(program(schedule, num_segments))
        assert len(steps) == schedule.num_rounds + num_segments - 1
        for step in steps:
            for phase in step:
                assert len({message.src for message in phase}) == len(phase)
                assert len({message.dst for message in phase}) == len(phase)
            sent, received = (
                collections.Counter(getattr(message, end) for phase in step for message in phase)
                for end in ("src", "dst")
            )
            assert len(step) == max([*sent.values(), *received.values()])


def test_chunks_between_two_ranks_in_a_round_form_one_message():
    steps = list(program(ALGORITHMS["halving_doubling"].schedule(8), 1))
    assert [[len(message.chunks) for message in phase] for (phase,) in steps] == [
        [size] * 8 for size in (4, 2, 1, 1, 2, 4)
    ]


@pytest.mark.parametrize("num_ranks", [2, 4, 7, 64, 300])
@pytest.mark.parametrize("num_bytes", [1, 4096, 25_000_000, 10**9])
def test_segment_size_is_respected_unless_messages_become_too_many(num_ranks, num_bytes):
    for name in ALGORITHMS:
        _, _, schedule = next(schedules(num_ranks, [name]))
        segments = choose_segments(schedule, num_bytes, segment_bytes=2**18)
        moves = max(np.bincount(schedule.src).max(), np.bincount(schedule.dst).max())
        assert segments == 1 or segments * moves <= 200
        if (segments + 1) * moves <= 200:
            assert num_bytes / schedule.num_chunks / segments <= 2**18
