"""Hung jobs are reported and ended by the watchdog."""

import os
import re
import signal
import time

import pytest

from jaxdp.runtime.watchdog import RankStatus, addresses, report

SECONDS = 6
LONG = ("--config.epochs=100.0", "--config.log_every_steps=1", f"--config.safety.watchdog_seconds={SECONDS}")
HOST = os.uname().nodename


@pytest.mark.parametrize("rank", [0, 2])
def test_stopped_rank_is_named_and_the_job_ends(jobs, rank):
    """A stopped process resembles a host that swaps or has lost its network: no rank sees an error."""
    workdir = jobs.folder / f"stops-{rank}"
    with jobs.start(3, "-m", "jaxdp.train", *LONG, f"--workdir={workdir}") as job:
        jobs.wait_for_step(workdir.name, 20)
        os.kill(jobs.processes(workdir.name)[rank], signal.SIGSTOP)
        begin = time.monotonic()
        _, err = job.communicate(timeout=60)
    assert time.monotonic() - begin < SECONDS + 12, err
    assert job.returncode != 0
    if rank == 0:
        assert f"jaxdp: error: no message from rank 0 on {HOST} for {SECONDS} s, aborting the job (rank 1 of 3" in err
    else:
        assert f"jaxdp: error: no rank has made progress for {SECONDS} s, aborting the job:" in err
        assert f"  rank 2 on {HOST}: silent for " in err
        assert re.search(r"  (2 ranks \(first: rank 0\)|rank 0 on .*): \d+ s in \w+, step \d+", err)
    assert not jobs.processes(workdir.name)


def test_late_rank_dumps_its_stacks(jobs):
    """The rank hangs in its training step, while its other threads still answer."""
    workdir = jobs.folder / "hangs"
    ended = jobs.run(3, "tests/failing_job.py", "hang", "1", *LONG, f"--workdir={workdir}", timeout=90)
    assert ended.code != 0
    alarm = ended.err[ended.err.index(f"jaxdp: error: no rank has made progress for {SECONDS} s, aborting the job:") :]
    assert re.search(rf"  rank 1 on {HOST}: \d+ s in compute, step 11\n", alarm)
    # One of the two ranks may have begun the next step, which waits for this one.
    assert re.search(r"  (2 ranks \(first: rank 0\)|rank 0 on .*): \d+ s in allreduce, step 1[12]\n", alarm)
    assert re.findall(r"^rank (\d) on .*:$", alarm, re.MULTILINE) == ["1"]
    assert "in instead\n" in alarm


def test_slow_compilation_causes_no_alarm(jobs):
    """One rank takes longer for its first step than `watchdog_seconds`."""
    workdir = jobs.folder / "slow"
    arguments = ("--config.safety.watchdog_seconds=2.0", "--stop_at_step=3", f"--workdir={workdir}")
    ended = jobs.run(3, "tests/failing_job.py", "slow", "1", *arguments)
    assert ended.code == 0, ended.err


def test_job_with_a_hidden_launcher_still_ends(jobs):
    """For example on a system that hides the processes of other users."""
    hidden = "from jaxdp.runtime import launcher, watchdog; launcher.process = lambda pid: open('/proc/0/stat')"
    ended = jobs.run(0, "-c", f"{hidden}; watchdog.exit_job('MPICH')")
    assert (ended.code, ended.err) == (1, "")


def status(phase, step, moved, heard, host="a"):
    return RankStatus(host, phase, step, 0, moved, heard)


def test_late_ranks_are_the_silent_or_else_the_furthest_behind():
    ranks = [
        status("step", 57, 40, 99),
        status("step", 57, 41, 99),
        status("input", 57, 38, 70, "b"),
        status("step", 57, 42, 99),
    ]
    text, late = report(ranks, 100, silent_after=5)
    others = "  3 ranks (first: rank 0): 60 s in step, step 57"
    assert (text, late) == ("  rank 2 on b: silent for 30 s, was in input, step 57\n" + others, [2])
    ranks[2] = status("input", 56, 38, 99, "b")
    text, late = report(ranks, 100, silent_after=5)
    assert (text, late) == ("  rank 2 on b: 62 s in input, step 56\n" + others, [2])


def test_waiting_ranks_are_attributed_to_ranks_missing_from_the_allreduce():
    ranks = [status("allreduce", 57, 40, 99), status("compute", 57, 41, 99), status("allreduce", 57, 38, 99)]
    text, late = report(ranks, 100, silent_after=5)
    assert late == [1]
    assert "  rank 1 on a: 59 s in compute, step 57" in text
    assert "  2 ranks (first: rank 0): 62 s in allreduce, step 57" in text
    ranks[1] = status("allreduce", 57, 41, 99)
    assert report(ranks, 100, silent_after=5)[1] == [0, 1, 2]


def test_loopback_is_the_last_address_of_a_host():
    assert addresses()[-1].startswith("127.")
