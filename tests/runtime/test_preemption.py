"""Preemption: jobs that a signal asks to save and stop."""

import os
import signal
import subprocess
import sys
import threading
import time

import pytest
from jobs import BOTH_MPIS, is_open_mpi

from jaxdp.data.feed import ExchangeGate
from jaxdp.runtime.exit_codes import REQUEUE

LONG = ("--config.epochs=8.0", "--config.log_every_steps=1", "--config.checkpoint.every_epochs=100.0")
PARTITIONS = ("--config.data.shuffle=partition", "--config.data.partitions=3", "--config.data.exchange_steps=3")


@pytest.fixture(scope="module")
def whole(jobs):
    jobs.train(3, "not-preempted", *LONG)
    return jobs.saved("not-preempted", 180)


def stopped(jobs, workdir, *arguments, number=signal.SIGUSR1, rank=None, past_step=20):
    """Starts a job, signals mpirun or one rank, and returns the exit code, stdout and stderr."""
    command = ("-m", "jaxdp.train", *LONG, *arguments, f"--workdir={jobs.folder / workdir}")
    with jobs.start(3, *command) as job:
        jobs.wait_for_step(workdir, past_step)
        os.kill(job.pid if rank is None else jobs.processes(workdir)[rank], number)
        begin = time.monotonic()
        out, err = job.communicate(timeout=60)
    assert time.monotonic() - begin < 20
    return job.returncode, out, err


def test_preempted_job_saves_and_resumes_bit_identically(jobs, whole):
    """Only one of the ranks is signalled."""
    workdir = "preempted"
    code, out, err = stopped(jobs, workdir, rank=2)
    assert code == REQUEUE
    (saved,) = (jobs.folder / workdir / "checkpoints").iterdir()
    assert f"stopped at step {saved.name} as requested" in out
    assert 20 <= int(saved.name) < 180
    assert "Traceback" not in err
    jobs.train(3, workdir, *LONG)
    assert jobs.saved(workdir, 180) == whole
    assert [line["step"] for line in jobs.metrics(workdir) if "loss" in line] == list(range(1, 181))


@BOTH_MPIS
def test_exchanges_in_progress_end_together_on_preemption(jobs):
    """mpirun forwards the signal to all ranks. On SIGTERM, Open MPI's mpirun would end the ranks itself."""
    number = signal.SIGUSR1 if is_open_mpi() else signal.SIGTERM
    code, _, err = stopped(jobs, "preempted-partitions", *PARTITIONS, number=number)
    assert code == REQUEUE, err
    assert err.count(f"{number.name} on rank 0 of 3: the job saves after this step or the next one, and ends") == 1


def test_job_preempted_before_the_first_step_ends_at_once(jobs):
    command = ("-m", "jaxdp.train", *LONG, f"--workdir={jobs.folder / 'preempted-early'}")
    with jobs.start(3, *command) as job:
        while not (jobs.folder / "preempted-early" / "config.json").exists():
            assert job.poll() is None, job.communicate()
            time.sleep(0.02)
        os.kill(job.pid, signal.SIGUSR1)
        begin = time.monotonic()
        _, err = job.communicate(timeout=60)
    assert time.monotonic() - begin < 10
    assert job.returncode == REQUEUE
    assert "the job ends at once" in err
    assert not list((jobs.folder / "preempted-early" / "checkpoints").iterdir())


def test_signals_are_ignored_after_the_final_save():
    """Covers the time until the process has ended, because Python removes its signal handlers earlier."""
    code = (
        "from types import SimpleNamespace; from jaxdp.runtime.preemption import Preemption\n"
        "preemption = Preemption(SimpleNamespace(rank=0, size=1, is_root=True))\n"
        "preemption.has_begun(); preemption.close(); print(flush=True)"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as process:
        process.stdout.readline()
        while process.poll() is None:
            process.send_signal(signal.SIGUSR1)
        assert process.returncode == 0


class Two:
    """A world of two ranks. The other rank has begun `other` exchanges."""

    def __init__(self, other):
        self.other = other

    def allgather(self, value):
        return [value, self.other]


@pytest.mark.parametrize(("other", "more"), [(1, 0), (2, 0), (4, 2)])
def test_closed_gate_admits_exchanges_begun_on_other_ranks(other, more):
    gate = ExchangeGate()
    assert gate.begin()
    assert gate.begin()
    gate.close(Two(other))
    assert [gate.begin() for _ in range(3)] == [True] * more + [False] * (3 - more)


def test_no_exchange_begins_while_a_gate_closes():
    gate, begun = ExchangeGate(), []

    class World:
        def allgather(self, value):
            thread.start()
            time.sleep(0.2)
            assert not begun
            return [value, value]

    thread = threading.Thread(target=lambda: begun.append(gate.begin()))
    gate.close(World())
    thread.join()
    assert begun == [False]
