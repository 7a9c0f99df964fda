"""launch/slurm.sbatch on a Slurm of the test's own, on this machine."""

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
# A host of two cores that starts jobs at once. Nothing of the machine's own is used but the programs.
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
LONG = ("--config.epochs=8.0", "--config.log_every_steps=1", "--config.checkpoint.every_steps=50")


def free_ports(count):
    with contextlib.ExitStack() as open_ones:
        sockets = [open_ones.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("", 0))
        return [one.getsockname()[1] for one in sockets]


@pytest.fixture
def slurm(tmp_path, monkeypatch):
    """Has `sbatch` and its kin find a Slurm; gives the folder of its logs."""
    path = f"{os.environ['PATH']}:/usr/sbin:/sbin"
    for program in (*DAEMONS, "sbatch", "srun"):
        if shutil.which(program, path=path) is None:
            pytest.skip(f"{program} is not installed (Debian: apt-get install munge slurmctld slurmd slurm-client)")
    if os.geteuid() != 0:
        pytest.skip("a Slurm of one's own needs root")
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


def state(job):
    return subprocess.check_output(["squeue", "--noheader", "--format=%T", f"--jobs={job}"], text=True).strip()


def wait_until(is_so, seconds=60):
    deadline = time.monotonic() + seconds
    while not is_so():
        assert time.monotonic() < deadline
        time.sleep(0.2)


@TAKES_LONG
def test_a_job_that_is_preempted_goes_back_into_the_queue_and_on_to_the_same_bits(jobs, slurm):
    jobs.train(2, "without-slurm", *LONG)
    workdir, log = jobs.folder / "by-slurm", slurm / "job.log"
    command = ["sbatch", "--parsable", f"--output={log}", "launch/slurm.sbatch", *LONG, f"--workdir={workdir}"]
    job = subprocess.check_output(command, cwd=ROOT, env=os.environ | jobs.environment(), text=True).strip()
    # Slurm takes its time to begin, too.
    jobs.wait_for_step("by-slurm", 20, seconds=180)
    # As Slurm does it before the time is over: to the ranks, not to the script.
    subprocess.run(["scancel", "--signal=USR1", job], check=True)
    wait_until(lambda: state(job) == "PENDING")
    # Slurm gives a job that comes back two minutes.
    subprocess.run(["scontrol", "update", f"JobId={job}", "StartTime=now"], check=True)
    wait_until(lambda: "finished: test accuracy" in log.read_text())
    wait_until(lambda: state(job) in ("", "COMPLETED"))
    said = log.read_text()
    stopped, went_on = (
        int(re.search(rf"{words} (\d+)", said)[1]) for words in ("stopped at step", "goes on from step")
    )
    assert 20 <= stopped == went_on < 180
    assert jobs.saved("by-slurm", 180) == jobs.saved("without-slurm", 180)
