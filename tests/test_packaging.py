"""jaxdp works like any package: its configs are part of it, and its distributions install elsewhere."""

import os
import pathlib
import shutil
import subprocess
import sys
import tarfile

import pytest
from jobs import ROOT, TAKES_LONG

from jaxdp.trainer import preflight

CONFIGS = sorted((ROOT / "configs").glob("*.py"))
USER_CONFIG = """
from jaxdp.configs.digits import get_config as digits


def get_config():
    config = digits()
    config.epochs = 2.0
    config.schedule.warmup_epochs = 1.0
    return config
"""


@pytest.fixture
def project(tmp_path):
    """A folder elsewhere, with a configs/ folder in which a file has the name of one of our configs."""
    folder = tmp_path / "project"
    (folder / "configs").mkdir(parents=True)
    (folder / "configs" / "digits.py").write_text("raise AssertionError('this file hides a config of jaxdp')")
    (folder / "configs" / "mine.py").write_text(USER_CONFIG)
    return folder


@pytest.fixture(scope="module")
def checkout(tmp_path_factory):
    """A copy of this checkout, because a build writes to the folder of the sources."""
    unneeded = shutil.ignore_patterns(".*", "build", "runs", "*.egg-info", "__pycache__", "*.so")
    return shutil.copytree(ROOT, tmp_path_factory.mktemp("copy") / "checkout", symlinks=True, ignore=unneeded)


@pytest.fixture(scope="module")
def source(checkout):
    """The extracted source distribution of this checkout."""
    folder = checkout.parent
    build = "import sys; from setuptools import build_meta; build_meta.build_sdist(sys.argv[1])"
    ended = subprocess.run(
        [sys.executable, "-c", build, folder], cwd=checkout, capture_output=True, text=True, check=False
    )
    assert ended.returncode == 0, ended.stderr
    (archive,) = folder.glob("*.tar.gz")
    with tarfile.open(archive) as files:
        files.extractall(folder / "extracted", filter="data")
    (extracted,) = (folder / "extracted").iterdir()
    return extracted


def test_configs_are_a_package_of_jaxdp():
    link = ROOT / "jaxdp" / "configs"
    assert link.is_symlink()
    assert link.readlink() == pathlib.Path("../configs")


def test_user_configs_folder_does_not_hide_our_configs(project):
    code = "import importlib, sys; [importlib.import_module(name).get_config() for name in sys.argv[1:]]"
    names = [f"jaxdp.configs.{path.stem}" for path in CONFIGS]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    ended = subprocess.run(
        [sys.executable, "-c", code, *names], cwd=project, env=environment, capture_output=True, text=True, check=False
    )
    assert ended.returncode == 0, ended.stderr


def test_code_has_the_same_hash_in_a_checkout_and_installed(source):
    assert preflight.code_hash(ROOT / "jaxdp") == preflight.code_hash(source / "jaxdp")


def test_source_distribution_has_all_that_a_build_needs(source):
    files = {path.relative_to(source).as_posix() for path in source.rglob("*") if path.is_file()}
    kinds = ("*.py", "*.cc", "*.h", "py.typed")
    needed = [path.relative_to(ROOT).as_posix() for kind in kinds for path in (ROOT / "jaxdp").rglob(kind)]
    configs = [f"jaxdp/configs/{path.name}" for path in CONFIGS]
    for name in (*needed, *configs, "setup.py", "pyproject.toml", "README.md", "LICENSE"):
        assert name in files
    assert not (source / "jaxdp" / "configs").is_symlink()
    assert not (source / "tests").exists()


@TAKES_LONG
def test_fresh_environment_installs_and_trains(checkout, source, project):
    """Downloads everything, without pip's cache, and builds mpi4jax and jaxdp against the MPI of the environment."""
    environment = project.parent / "environment"
    subprocess.run([sys.executable, "-m", "venv", environment], check=True)
    empty = project.parent / "empty"
    empty.mkdir()
    clean = {name: value for name, value in os.environ.items() if name not in ("MPICC", "PYTHONPATH", "VIRTUAL_ENV")}
    clean |= {"PATH": f"{environment}/bin:{os.environ['PATH']}", "CUDA_PATH": str(empty), "PIP_NO_CACHE_DIR": "1"}

    def run(*command: str) -> str:
        return subprocess.run(command, cwd=project, env=clean, check=True, stdout=subprocess.PIPE, text=True).stdout

    run("pip", "install", "mpich", "mpi4py")
    for arguments in (
        [str(source)],
        ["--no-deps", "--force-reinstall", str(checkout)],
        ["--no-deps", "--force-reinstall", "--editable", str(checkout)],
    ):
        run("pip", "install", *arguments)
        run("python", "-m", "jaxdp.train", "--config=configs/mine.py", "--workdir=alone")
        run("mpirun", "-n", "2", "python", "-m", "jaxdp.train", "--config=configs/mine.py", "--workdir=together")
        for workdir in ("alone", "together"):
            assert (project / workdir / "metrics.jsonl").exists()
            shutil.rmtree(project / workdir)
