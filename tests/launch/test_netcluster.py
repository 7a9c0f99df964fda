"""Several simulated hosts on this machine; skipped where they cannot be created."""

import json
import subprocess
import sys

import pytest

from jaxdp.bench.netcluster import PROGRAM, hosts, why_not


def netcluster(*words, timeout=120):
    return subprocess.run([PROGRAM, *words], capture_output=True, text=True, timeout=timeout, check=False)


@pytest.fixture(scope="module")
def three_hosts():
    if reason := why_not():
        pytest.skip(reason)
    with hosts(3):
        yield


def test_weak_scaling_is_measured(jobs, tmp_path):
    """Must be the first test in this file, because the benchmark creates its own hosts."""
    if reason := why_not():
        pytest.skip(reason)
    words = ["--hosts=2", "--model=cnn", "--image_size=8", "--batch=2", "--rounds=2", "--steps=1"]
    files = [f"--json={tmp_path / 'rows.json'}", f"--plot={tmp_path / 'plot.png'}"]
    ended = jobs.run(0, "-m", "jaxdp.bench", "weak", *words, *files)
    assert ended.code == 0, ended.err
    rows = json.loads((tmp_path / "rows.json").read_text())["rows"]
    assert [row["framework"] for row in rows] == ["native", "xla"]
    for row in rows:
        assert row["hosts"] == 2
        assert 0 < row["transfer_s"] < row["together_s"]
        assert len(row["efficiencies"]) == 2
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")


def test_invalid_rate_is_one_message(jobs):
    if reason := why_not():
        pytest.skip(reason)
    ended = jobs.run(0, "-m", "jaxdp.bench", "weak", "--hosts=2", "--rate=fast")
    assert ended.code == 2
    assert ended.err == "jaxdp: error: RATE must be a number of mbit or gbit (e.g. 500mbit) or none, not fast\n"
    assert why_not() is None


@pytest.mark.usefixtures("three_hosts")
def test_ranks_are_assigned_to_hosts_in_blocks():
    code = "import socket; from mpi4py import MPI; print(*MPI.COMM_WORLD.gather(socket.gethostname()) or '')"
    ended = netcluster("run", "5", sys.executable, "-c", code)
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.split() == ["h0", "h0", "h1", "h1", "h2"]


@pytest.mark.usefixtures("three_hosts")
def test_link_reaches_its_rate():
    ended = netcluster("goodput", "1")
    assert ended.returncode == 0, ended.stderr
    # The shaper also counts headers, and a busy machine may transfer less.
    assert 0.1 < float(ended.stdout.split()[1]) < 0.5


@pytest.mark.usefixtures("three_hosts")
def test_allreduces_across_hosts_are_exact():
    words = ["-m", "jaxdp.bench", "allreduce", "--sizes=100K", "--repeat=2"]
    ended = netcluster("run", "3", sys.executable, *words)
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.startswith("3 ranks on 3 nodes")
    assert ended.stdout.count("yes") >= 7
    assert "NO" not in ended.stdout


@pytest.mark.usefixtures("three_hosts")
def test_usage_error_ends_the_job_on_all_hosts():
    ended = netcluster("run", "3", sys.executable, "-m", "jaxdp.bench", "allreduce", "--sizes=x", timeout=20)
    assert ended.returncode == 2
    assert ended.stderr.count("jaxdp: error:") == 1


@pytest.mark.parametrize("words", [("start",), ("up", "many"), ("up", "2", "fast"), ("run",)])
def test_invalid_netcluster_command_is_one_message(words):
    ended = netcluster(*words)
    assert ended.returncode == 2
    assert ended.stderr.startswith("launch/netcluster: error:")
    assert len(ended.stderr.splitlines()) == 1
