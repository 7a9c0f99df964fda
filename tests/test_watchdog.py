"""Jobs in which nothing moves any more."""

import os
import re
import signal
import time

import pytest

from jaxdp.watchdog import Seen, addresses, report

SECONDS = 6
LONG = ("--config.epochs=100.0", "--config.log_every_steps=1", f"--config.safety.watchdog_seconds={SECONDS}")
HOST = os.uname().nodename


@pytest.mark.parametrize("rank", [0, 2])
def test_a_stopped_rank_is_named_and_the_job_ends(jobs, rank):
    """Stopped as a host that swaps, or whose network is gone: there is no error that anyone would see."""
    workdir = jobs.folder / f"stops-{rank}"
    with jobs.start(3, "-m", "jaxdp.train", *LONG, f"--workdir={workdir}") as job:
        jobs.wait_for_step(workdir.name, 20)
        os.kill(jobs.processes(workdir.name)[rank], signal.SIGSTOP)
        begin = time.monotonic()
        _, err = job.communicate(timeout=60)
    assert time.monotonic() - begin < SECONDS + 12, err
    assert job.returncode != 0
    if rank == 0:
        assert f"jaxdp: error: rank 0 on {HOST} has been silent for {SECONDS} s, the job ends (rank 1 of 3" in err
    else:
        assert f"jaxdp: error: nothing has moved for {SECONDS} s, the job ends:" in err
        assert f"  rank 2 on {HOST}: silent for " in err
        assert re.search(r"  (2 ranks, from rank 0 on|rank 0 on .*): \d+ s in \w+, step \d+", err)
    assert not jobs.processes(workdir.name)


def test_a_rank_that_is_late_has_its_stacks_written(jobs):
    """One that hangs in its input, while its threads still answer."""
    workdir = jobs.folder / "hangs"
    ended = jobs.run(3, "tests/failing_job.py", "hang", "1", *LONG, f"--workdir={workdir}", timeout=90)
    assert ended.code != 0
    alarm = ended.err[ended.err.index(f"jaxdp: error: nothing has moved for {SECONDS} s, the job ends:") :]
    assert re.search(rf"  rank 1 on {HOST}: \d+ s in compute, step 11\n", alarm)
    # One of them may have begun the next step, which waits for this one.
    assert re.search(r"  (2 ranks, from rank 0 on|rank 0 on .*): \d+ s in allreduce, step 1[12]\n", alarm)
    assert re.findall(r"^rank (\d) on .*:$", alarm, re.MULTILINE) == ["1"]
    assert "in instead\n" in alarm


def test_slow_compilers_are_no_alarm(jobs):
    """One rank takes longer for its first step than the watchdog waits."""
    workdir = jobs.folder / "slow"
    arguments = ("--config.safety.watchdog_seconds=2.0", "--stop_at_step=3", f"--workdir={workdir}")
    ended = jobs.run(3, "tests/failing_job.py", "slow", "1", *arguments)
    assert ended.code == 0, ended.err


def test_a_job_whose_launcher_cannot_be_seen_ends_all_the_same(jobs):
    """As where the system hides the processes of others."""
    hidden = "from jaxdp import launcher, watchdog; launcher.process = lambda pid: open('/proc/0/stat')"
    ended = jobs.run(0, "-c", f"{hidden}; watchdog._exit('MPICH')")
    assert (ended.code, ended.err) == (1, "")


def seen(phase, step, moved, heard, host="a"):
    return Seen(host, phase, step, 0, moved, heard)


def test_the_silent_are_late_or_else_those_that_are_furthest_back():
    ranks = [
        seen("step", 57, 40, 99),
        seen("step", 57, 41, 99),
        seen("input", 57, 38, 70, "b"),
        seen("step", 57, 42, 99),
    ]
    text, late = report(ranks, 100, silent_after=5)
    others = "  3 ranks, from rank 0 on: 60 s in step, step 57"
    assert (text, late) == ("  rank 2 on b: silent for 30 s, was in input, step 57\n" + others, [2])
    ranks[2] = seen("input", 56, 38, 99, "b")
    text, late = report(ranks, 100, silent_after=5)
    assert (text, late) == ("  rank 2 on b: 62 s in input, step 56\n" + others, [2])


def test_who_waits_in_the_allreduce_of_a_step_waits_for_those_who_do_not():
    ranks = [seen("allreduce", 57, 40, 99), seen("compute", 57, 41, 99), seen("allreduce", 57, 38, 99)]
    text, late = report(ranks, 100, silent_after=5)
    assert late == [1]
    assert "  rank 1 on a: 59 s in compute, step 57" in text
    assert "  2 ranks, from rank 0 on: 62 s in allreduce, step 57" in text
    ranks[1] = seen("allreduce", 57, 41, 99)
    assert report(ranks, 100, silent_after=5)[1] == [0, 1, 2]


def test_a_host_has_addresses_and_the_loopback_is_the_last():
    assert addresses()[-1].startswith("127.")
