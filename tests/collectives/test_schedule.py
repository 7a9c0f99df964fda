import numpy as np
import pytest

from jaxdp.collectives.schedule import Move, Schedule, chunk_bounds


def test_schedule_returns_its_rounds():
    rounds = [[Move(0, 1, 0, True), Move(2, 1, 1, True)], [], [Move(1, 0, 0, False)]]
    schedule = Schedule.from_rounds(3, 2, rounds)
    assert [schedule.round(index) for index in range(schedule.num_rounds)] == rounds
    assert schedule.num_moves == 3


def test_schedule_without_rounds_is_valid():
    schedule = Schedule.from_rounds(1, 1, [])
    assert (schedule.num_rounds, schedule.num_moves) == (0, 0)


def test_of_rank_keeps_only_the_moves_of_that_rank():
    rounds = [[Move(0, 1, 0, True), Move(2, 3, 0, True)], [Move(2, 3, 0, False)], [Move(3, 0, 0, True)]]
    mine = Schedule.from_rounds(4, 1, rounds).of_rank(0)
    assert [mine.round(index) for index in range(3)] == [[rounds[0][0]], [], [rounds[2][0]]]


@pytest.mark.parametrize(
    ("move", "message"),
    [
        (Move(0, 2, 0, True), r"the dst of every move must be in 0\.\.1, but one is 2"),
        (Move(-1, 1, 0, True), r"the src of every move must be in 0\.\.1, but one is -1"),
        (Move(0, 1, 3, True), r"the chunk of every move must be in 0\.\.2, but one is 3"),
        (Move(1, 1, 0, True), "rank 1 sends to itself"),
    ],
)
def test_invalid_move_is_refused(move, message):
    with pytest.raises(ValueError, match=message):
        Schedule.from_rounds(2, 3, [[move]])


def test_schedule_arrays_are_read_only():
    schedule = Schedule.from_rounds(2, 1, [[Move(0, 1, 0, True)]])
    with pytest.raises(ValueError, match="read-only"):
        schedule.src[0] = 1


@pytest.mark.parametrize("num_elements", [0, 1, 5, 12, 1000])
@pytest.mark.parametrize("num_chunks", [1, 3, 7])
def test_chunks_cover_the_payload_evenly(num_elements, num_chunks):
    bounds = chunk_bounds(num_elements, num_chunks)
    sizes = np.diff(bounds)
    assert (bounds[0], bounds[-1], len(sizes)) == (0, num_elements, num_chunks)
    assert sizes.max() - sizes.min() <= 1
