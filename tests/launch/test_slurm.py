"""Runs launch/slurm.sbatch with a private Slurm on this machine."""

import contextlib
import os
import pathlib
import re
import shutil
import signal
import socket
import subprocess
import time

import pytest
from jobs import TAKES_LONG

ROOT = pathlib.Path(__file__).parent.parent.parent
DAEMONS = ("munged", "slurmctld", "slurmd")
# One host with two cores that starts jobs at once. Of the machine's own Slurm only the programs are used.
CONF = """
ClusterName=jaxdp
SlurmctldHost={host}
SlurmUser=root
AuthType=auth/munge
CredType=cred/munge
AuthInfo=socket={folder}/munge.socket
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
SlurmctldPort={ports[0]}
SlurmdPort={ports[1]}
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
ReturnToService=2
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerParameters=batch_sched_delay=0,sched_interval=1
NodeName={host} CPUs=2 RealMemory=1000 State=UNKNOWN
PartitionName=main Nodes=ALL Default=YES State=UP
"""
LONG = ("--config.epochs=24.0", "--config.log_every_steps=1", "--config.checkpoint.every_steps=50")


def free_ports(count):
    with contextlib.ExitStack() as open_ones:
        sockets = [open_ones.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("", 0))
        return [one.getsockname()[1] for one in sockets]


@pytest.fixture
def slurm(tmp_path, monkeypatch):
    """Starts a private Slurm for `sbatch` and related commands. Yields the folder of its logs."""
    path = f"{os.environ['PATH']}:/usr/sbin:/sbin"
    for program in (*DAEMONS, "sbatch", "srun"):
        if shutil.which(program, path=path) is None:
            pytest.skip(f"{program} is not installed (Debian: apt-get install munge slurmctld slurmd slurm-client)")
    if os.geteuid() != 0:
        pytest.skip("a private Slurm needs root")
    (tmp_path / "state").mkdir()
    (tmp_path / "spool").mkdir()
    (tmp_path / "slurm.conf").write_text(CONF.format(host=socket.gethostname(), folder=tmp_path, ports=free_ports(2)))
    key = tmp_path / "munge.key"
    key.write_bytes(os.urandom(128))
    key.chmod(0o600)
    monkeypatch.setenv("PATH", path)
    monkeypatch.setenv("SLURM_CONF", str(tmp_path / "slurm.conf"))
    files = [f"--{what}-file={tmp_path}/munge.{what}" for what in ("key", "pid", "log", "seed")]
    subprocess.run(["munged", "--force", f"--socket={tmp_path}/munge.socket", *files], check=True)
    subprocess.run(["slurmctld"], check=True)
    subprocess.run(["slurmd"], check=True)
    yield tmp_path
    for name in ("slurmd", "slurmctld", "munge"):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            os.kill(int((tmp_path / f"{name}.pid").read_text()), signal.SIGTERM)


class Batch:
    """A job submitted with launch/slurm.sbatch."""

    def __init__(self, log, words, environment):
        self._log = log
        command = ["sbatch", "--parsable", f"--output={log}", "launch/slurm.sbatch", *words]
        self._id = subprocess.check_output(command, cwd=ROOT, env=os.environ | environment, text=True).strip()

    @property
    def said(self):
        return self._log.read_text()

    @property
    def state(self):
        shown = subprocess.check_output(["scontrol", "--oneliner", "show", "job", self._id], text=True)
        return re.search(r"JobState=(\w+)", shown)[1]

    def wait_for(self, state, seconds=60):
        deadline = time.monotonic() + seconds
        while (now := self.state) != state:
            assert now not in ("FAILED", "CANCELLED", "COMPLETED"), self.said
            assert time.monotonic() < deadline, f"the job is {now}"
            time.sleep(0.2)

    def preempt(self):
        """Signals the ranks as Slurm does shortly before the time limit."""
        subprocess.run(["scancel", "--signal=USR1", self._id], check=True)

    def requeue(self):
        subprocess.run(["scontrol", "requeue", self._id], check=True)

    def start_now(self):
        """Starts a requeued job without Slurm's delay of two minutes.

        Slurm refuses to start a job in the second in which it ended. In addition, the daemon of a finished step takes a
        moment to exit. It then deletes, by name, what the next step needs to find its ranks.
        """
        deadline = time.monotonic() + 60
        while (
            subprocess.run(["pgrep", "-f", rf"slurmstepd: \[{self._id}\."], stdout=subprocess.DEVNULL).returncode == 0
        ):
            assert time.monotonic() < deadline
            time.sleep(0.2)
        time.sleep(1)
        subprocess.run(["scontrol", "update", f"JobId={self._id}", "StartTime=now"], check=True)


@TAKES_LONG
def test_requeued_job_resumes_bit_identically(jobs, slurm):
    jobs.train(2, "without-slurm", *LONG)
    last = jobs.metrics("without-slurm")[-1]["step"]
    words = (*LONG, f"--workdir={jobs.folder / 'by-slurm'}")
    batch = Batch(slurm / "job.log", words, jobs.environment())

    def wait_for_step(step):
        # Slurm itself also needs time to start a job.
        jobs.wait_for_step("by-slurm", step, seconds=180, as_long_as=lambda: batch.state != "FAILED")

    wait_for_step(20)
    batch.preempt()
    batch.wait_for("PENDING")
    batch.start_now()
    wait_for_step(100)
    for pid in jobs.processes("by-slurm").values():
        os.kill(pid, signal.SIGKILL)
    batch.wait_for("FAILED")
    batch.requeue()
    batch.start_now()
    batch.wait_for("COMPLETED")
    assert "finished: test accuracy" in batch.said
    (stopped,) = re.findall(r"stopped at step (\d+)", batch.said)
    first, second = re.findall(r"resume    from step (\d+)", batch.said)
    assert 20 <= int(stopped) == int(first) < 100
    assert 50 <= int(second) < last
    assert jobs.saved("by-slurm", last) == jobs.saved("without-slurm", last)
