"""Files for clusters that are not here can at least be read, and start what there is."""

import pathlib
import re

import pytest
import yaml

from jaxdp import cli

LAUNCH = pathlib.Path(__file__).parent.parent.parent / "launch"


def test_the_job_of_kubernetes_trains():
    job = yaml.safe_load((LAUNCH / "kubernetes" / "mpijob.yaml").read_text())
    replicas = job["spec"]["mpiReplicaSpecs"]
    (launcher,) = replicas["Launcher"]["template"]["spec"]["containers"]
    words = launcher["command"] + launcher["args"]
    assert int(words[words.index("-n") + 1]) == job["spec"]["slotsPerWorker"] * replicas["Worker"]["replicas"]
    assert cli.parse_train(words[words.index("jaxdp.train") :]).config is not None


@pytest.mark.parametrize("name", ["pbs.sh", "lsf.sh", "kubernetes/mpijob.yaml", "kubernetes/Containerfile"])
def test_what_was_not_run_says_so(name):
    assert "NOT RUN BY THIS PROJECT" in (LAUNCH / name).read_text()


@pytest.mark.parametrize("name", ["slurm.sbatch", "pbs.sh", "lsf.sh"])
def test_a_batch_script_starts_training_with_its_arguments(name):
    text = (LAUNCH / name).read_text()
    assert re.search(r'python -m jaxdp\.train "\$(@|\{arguments\[@\]\})"', text)
    assert "75" in text
