"""Reports of stragglers: the ranks that the other ranks wait for."""

import numpy as np
import pytest

from jaxdp.trainer.stragglers import Stragglers, lateness


def times(waited, *, compute=0.1, steps=100):
    """Returns the times of identical steps in which each rank waits `waited[rank]` seconds in the allreduce."""
    of_step = np.array([[0.01 * rank, compute, seconds] for rank, seconds in enumerate(waited)])
    return np.repeat(of_step[:, None], steps, axis=1)


def test_rank_that_waited_least_arrived_last():
    np.testing.assert_allclose(lateness(times([0.5, 0.1, 0.4], steps=2)), [[0, 0], [0.4, 0.4], [0.1, 0.1]])


def test_lines_cover_their_steps_and_the_summary_covers_all():
    stragglers = Stragglers(["a", "b"])
    first = stragglers.add(times([0.3, 0.1], steps=300))
    second = stragglers.add(times([0.1, 0.5], compute=0.3, steps=100))
    assert (first["slowest_rank"], second["slowest_rank"]) == (1, 0)
    assert first["ranks"]["late_p50"] == pytest.approx([0, 0.2])
    assert second["ranks"]["late_p95"] == pytest.approx([0.4, 0])
    assert first["ranks"]["input_seconds"] == [0, 0.01]
    summary = stragglers.summary()
    assert summary["slowest_rank"] == 1
    # Histogram bins are 5 % wide, and the first bin holds all times below 1 us.
    assert summary["ranks"]["late_p50"] == pytest.approx([1e-6, 0.2], rel=0.05)
    assert summary["ranks"]["late_p95"] == pytest.approx([0.4, 0.2], rel=0.05)
    assert summary["ranks"]["compute_seconds"] == pytest.approx([0.15, 0.15])
    said = stragglers.sentence()
    assert said.startswith("slowest: rank 1 on b, 19")
    assert "150.0 ms of compute (median of the other ranks: 150.0 ms) and 10.0 ms of waiting for input" in said


def test_nothing_is_reported_without_steps():
    stragglers = Stragglers(["a", "b"])
    assert stragglers.add(np.empty((2, 0, 3))) == {}
    assert stragglers.summary() == {}
    assert stragglers.sentence() is None


def test_rank_that_is_always_late_is_named(jobs):
    workdir = jobs.folder / "late"
    arguments = ("--stop_at_step=25", "--config.log_every_steps=10", f"--workdir={workdir}")
    ended = jobs.run(3, "tests/failing_job.py", "late", "1", *arguments)
    assert ended.code == 0, ended.err
    assert "slowest: rank 1 on " in ended.out
    lines = [line for line in jobs.metrics("late") if "ranks" in line]
    # The first step has no times, because it includes compilation.
    assert [line["step"] for line in lines] == [10, 20, 25]
    for line in lines:
        assert line["slowest_rank"] == 1
        # Rank 1 is delayed by 0.25 s per step. On a busy machine other ranks may also be late.
        late = line["ranks"]["late_p50"]
        assert late[1] > max(0.05, 2 * late[0], 2 * late[2])
        assert all(len(values) == 3 for values in line["ranks"].values())
