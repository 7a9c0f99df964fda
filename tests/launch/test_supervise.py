"""The supervisor, which restarts jobs until a run has finished."""

import json
import re
import signal
import subprocess
import sys

import pytest
from jobs import TAKES_LONG, is_open_mpi

from jaxdp import supervise
from jaxdp.bench import netcluster
from jaxdp.trainer.supervisor import Policy, Supervisor, read_hosts, start_command

HOSTS = {"a": 2, "b": 2}


def test_hostfile_is_read(tmp_path):
    path = tmp_path / "hosts"
    path.write_text("# the cluster\n\nnode07 slots=4\nnode08:2  # the old one\n10.0.0.9\nnode10 3\n")
    assert read_hosts(path) == {"node07": 4, "node08": 2, "10.0.0.9": 1, "node10": 3}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "contains no host: write one per line"),
        ("a slots=x", r"line 1 of the hostfile .* is invalid: 'a slots=x'\. Write it as 'node07 slots=4'"),
        ("a 0", "with at least 1 rank"),
        ("a\nb\na 2", "line 3 of the hostfile .* repeats host a: list each host once"),
    ],
)
def test_invalid_hostfile_is_rejected(tmp_path, text, message):
    (tmp_path / "hosts").write_text(text)
    with pytest.raises(ValueError, match=message):
        read_hosts(tmp_path / "hosts")


class Run:
    """A run of scripted jobs, each given by the steps it saves and its exit code (None: it waits for a signal)."""

    def __init__(self, *jobs):
        self.jobs, self.step, self.started, self.said = list(jobs), 0, [], []
        self.present = set(HOSTS)
        self.job = None

    def start(self, hosts):
        self.started.append(tuple(hosts))
        saves, code = self.jobs.pop(0)
        self.step += saves
        wait = "import signal; signal.signal(signal.SIGUSR1, lambda *_: exit(75)); print(flush=True); signal.pause()"
        self.job = subprocess.Popen(
            [sys.executable, "-c", wait if code is None else f"print(); exit({code})"], stdout=subprocess.PIPE
        )
        # Wait until the job handles signals.
        with self.job.stdout as out:
            out.readline()
        return self.job

    def supervisor(self, **policy):
        return Supervisor(
            HOSTS,
            answers=lambda host: host in self.present,
            start=self.start,
            saved=lambda: self.step,
            policy=Policy(**{"back_off_s": 0.01, "look_every_s": 0.1, "poll_s": 0.01, **policy}),
            say=self.said.append,
        )


def test_failed_job_is_restarted_until_it_succeeds():
    run = Run((3, 1), (0, 9), (2, 0))
    assert run.supervisor().run() == 0
    assert run.started == [("a", "b")] * 3
    assert run.said[1] == "the job ended with exit code 1: restarting in 0.01 s from step 3"
    assert run.said[3] == "the job ended with exit code 9: restarting in 0.02 s from step 3"


def test_supervisor_gives_up_after_failures_without_a_save():
    run = Run((0, 1), (1, 1), (0, 1), (0, 1), (5, 0))
    assert run.supervisor(most_failures=3).run() == 1
    assert len(run.started) == 4
    assert run.said[-1] == "the job ended with exit code 1: giving up after 3 failures without a new checkpoint"


def test_usage_error_is_not_retried():
    run = Run((0, 2), (0, 0))
    assert run.supervisor().run() == 2
    assert len(run.started) == 1


def test_no_job_starts_without_hosts():
    run = Run()
    run.present = set()
    assert run.supervisor(most_failures=2).run() == 1
    assert run.started == []
    assert run.said[0] == "no answer from a, b"


def test_returning_host_rejoins_the_run():
    run = Run((1, None), (1, 0))
    run.present = {"a"}
    begin = run.start

    def start(hosts):
        run.present = set(HOSTS)
        return begin(hosts)

    run.start = start
    assert run.supervisor().run() == 0
    assert run.started == [("a",), ("a", "b")]
    assert "b available again: asking the job to save and stop" in run.said


def test_signal_is_forwarded_and_ends_the_supervisor():
    run = Run((1, None), (1, 0))
    begin = run.start

    def start(hosts):
        job = begin(hosts)
        supervisor.hear(signal.SIGTERM, None)
        return job

    run.start = start
    supervisor = run.supervisor()
    assert supervisor.run() == 75
    assert len(run.started) == 1


def test_start_commands_of_both_mpis(monkeypatch):
    monkeypatch.delenv("XLA_FLAGS", raising=False)
    monkeypatch.delenv("JAXDP_CACHE_DIR", raising=False)
    monkeypatch.setenv("TFDS_DATA_DIR", "data")
    hydra = start_command(HOSTS, launcher=["mpiexec", "-iface", "ib0"], shell="ssh", is_hydra=True)
    assert " ".join(hydra) == "mpiexec -iface ib0 -launcher ssh -launcher-exec ssh -hosts a:2,b:2 -n 4"
    other = start_command(HOSTS, launcher=["mpirun"], shell="rsh", is_hydra=False)
    assert other[0] == "env"
    assert {word.partition("=")[2] for word in other[1:3]} == {"rsh"}
    assert other[3:] == ["mpirun", "-x", "TFDS_DATA_DIR", "--map-by", "slot", "--host", "a:2,b:2", "-n", "4"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--hostfile=nosuch"], "cannot read the hostfile nosuch: "),
        ([], "the following arguments are required: --hostfile"),
        (["--hostfile=HOSTS", "--", "--bogus"], "bogus"),
        (["--hostfile=HOSTS", "--launcher=nosuch -iface eth0"], "the program 'nosuch' is not on the PATH"),
        (["--hostfile=HOSTS", "--shell="], "the program '' is not on the PATH"),
    ],
)
def test_usage_error_is_one_message(tmp_path, capsys, words, message):
    (tmp_path / "HOSTS").write_text("a\n")
    words = [word.replace("HOSTS", str(tmp_path / "HOSTS")) for word in words]
    with pytest.raises(SystemExit) as ended:
        supervise.main(words)
    assert ended.value.code == 2
    err = capsys.readouterr().err
    assert err.startswith("jaxdp: error: ")
    assert re.search(message, err)


@TAKES_LONG
def test_run_continues_when_a_host_leaves_and_returns(jobs):
    """Uses three simulated hosts. One loses its network during the run and regains it later."""
    if reason := netcluster.why_not(by_hydra=False):
        pytest.skip(reason)
    workdir, hostfile = jobs.folder / "supervised", jobs.folder / "hosts"
    hostfile.write_text("10.77.0.1 slots=1\n10.77.0.2 slots=1\n10.77.0.3 slots=1\n")
    arguments = (
        "--config.epochs=40.0",
        "--config.checkpoint.every_steps=20",
        "--config.log_every_steps=1",
        "--config.safety.watchdog_seconds=5.0",
        f"--workdir={workdir}",
    )
    with netcluster.hosts(3, "none"):
        launcher = "mpiexec" if is_open_mpi() else "mpiexec -iface eth0"
        words = [
            f"--hostfile={hostfile}",
            f"--shell={netcluster.PROGRAM}",
            f"--launcher={launcher}",
            "--back_off=1",
            "--look_every=2",
        ]
        command = [netcluster.PROGRAM, "exec", "h0", sys.executable, "-m", "jaxdp.supervise", *words, "--"]
        with subprocess.Popen(
            [*command, *arguments], env=jobs.environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        ) as supervised:
            jobs.wait_for_step("supervised", 60)
            netcluster.run("cut", "h2")
            cut_at = jobs.metrics("supervised")[-1]["step"]
            jobs.wait_for_step("supervised", cut_at + 40)
            netcluster.run("mend", "h2")
            _, err = supervised.communicate(timeout=120)
    assert supervised.returncode == 0, err
    starts = re.findall(r"starting (\d) ranks on .*, from step (\d+)", err)
    assert [int(ranks) for ranks, _ in starts] == [3, 2, 3]
    assert 0 < int(starts[1][1]) <= cut_at < int(starts[2][1])
    assert "no answer from 10.77.0.3" in err
    assert "10.77.0.3 available again: asking the job to save and stop" in err
    steps = [line["step"] for line in jobs.metrics("supervised") if "loss" in line]
    assert steps == list(range(1, steps[-1] + 1))
    assert json.loads((workdir / "metrics.jsonl").read_text().splitlines()[-1])["summary"]
