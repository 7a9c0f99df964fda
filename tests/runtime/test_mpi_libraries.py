"""Engines that are linked to another MPI library than the one that mpi4py has loaded are found before a job starts."""

import ctypes
import importlib.machinery
import pathlib
import subprocess
import sys

import pytest
from jobs import ROOT

from jaxdp.runtime.mpi_libraries import loaded_library, needed_libraries, other_library

BINARY = f"part{importlib.machinery.EXTENSION_SUFFIXES[0]}"


def compiled(path: pathlib.Path, *needs: pathlib.Path, address: int = 0) -> pathlib.Path:
    """Compiles an empty shared library that is linked to others and asks to be loaded at an address."""
    path.parent.mkdir(parents=True, exist_ok=True)
    linking = [f"-Wl,-soname,{path.name}", f"-Wl,-Ttext-segment={address}", "-Wl,--no-as-needed", *map(str, needs)]
    subprocess.run(["gcc", "-shared", "-x", "c", "/dev/null", "-x", "none", "-o", path, *linking], check=True)
    return path


@pytest.fixture(scope="module")
def loaded(tmp_path_factory):
    """An MPI library that this process has loaded."""
    path = compiled(tmp_path_factory.mktemp("loaded") / "libmpi.so.77")
    ctypes.CDLL(str(path))
    return path


@pytest.mark.parametrize("address", [0, 2**20], ids=["offset", "address"])
def test_libraries_are_listed_as_linked(tmp_path, address):
    names = ["libmpi.so.78", "libother.so.1"]
    binary = compiled(tmp_path / BINARY, *(compiled(tmp_path / name) for name in names), address=address)
    assert needed_libraries(binary)[:2] == names


def test_loaded_library_is_accepted_from_any_folder(loaded, tmp_path):
    """The dynamic linker also does not look for another file if a library of that name is loaded."""
    binary = compiled(tmp_path / BINARY, compiled(tmp_path / loaded.name))
    assert other_library(binary) is None
    ctypes.CDLL(str(binary))
    assert str(tmp_path / loaded.name) not in pathlib.Path("/proc/self/maps").read_text()
    assert loaded.name in loaded_library()


@pytest.mark.usefixtures("loaded")
def test_library_that_is_not_loaded_is_found(tmp_path):
    assert other_library(compiled(tmp_path / BINARY, compiled(tmp_path / "libmpi.so.78"))) == "libmpi.so.78"
    assert other_library(compiled(tmp_path / BINARY, compiled(tmp_path / "libmpich.so.77"))) == "libmpich.so.77"


def test_libraries_beside_mpi_do_not_count(loaded, tmp_path):
    fortran = compiled(tmp_path / "libmpifort.so.77")
    assert other_library(compiled(tmp_path / BINARY, fortran, loaded)) is None
    assert other_library(compiled(tmp_path / BINARY, compiled(tmp_path / "libother.so.1"))) is None


@pytest.fixture
def mpi4jax_of_another_mpi(tmp_path, monkeypatch):
    package = tmp_path / "mpi4jax"
    compiled(package / "_src" / BINARY, compiled(tmp_path / "libmpi.so.78"))
    (package / "__init__.py").write_text("raise AssertionError('mpi4jax was imported')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))


MISTAKE = "engine mpi4jax is built for the MPI library libmpi.so.78, but mpi4py has loaded libmpi"
REMEDY = "run `pip install --no-cache-dir --no-deps --force-reinstall mpi4jax`"


@pytest.mark.usefixtures("mpi4jax_of_another_mpi")
def test_job_with_two_mpi_libraries_ends_with_one_message(jobs, tmp_path):
    workdir = f"--workdir={tmp_path / 'run'}"
    ended = jobs.run(2, "-m", "jaxdp.train", "--config.allreduce.engine=mpi4jax", workdir)
    assert ended.code == 2
    (line,) = [line for line in ended.err.splitlines() if "jaxdp: error: " in line]
    assert MISTAKE in line
    assert line.endswith(REMEDY)
    assert "Traceback" not in ended.err
    assert not (tmp_path / "run").exists()


@pytest.mark.usefixtures("mpi4jax_of_another_mpi")
def test_doctor_reports_an_engine_with_another_mpi_library(jobs, tmp_path):
    ended = jobs.run(2, "-m", "jaxdp.doctor", f"--workdir={tmp_path / 'runs'}")
    assert ended.code == 2
    (to_do,) = [line for line in ended.out.splitlines() if line.startswith("  - ")]
    assert MISTAKE in to_do


@pytest.mark.usefixtures("mpi4jax_of_another_mpi")
def test_doctor_only_warns_a_single_process_of_another_mpi_library(jobs, tmp_path):
    ended = jobs.run(0, "-m", "jaxdp.doctor", f"--workdir={tmp_path / 'runs'}")
    (warning,) = [line for line in ended.out.splitlines() if MISTAKE in line]
    assert (ended.code, warning.split()[0]) == (0, "warning")


CHECK = """
import sys
from jaxdp import native
from jaxdp.collectives.engine_library import check_library

check_library("native")
print("the engine as built is accepted")
native.engine_path = lambda mpi: sys.argv[1]
check_library("native")
"""


@pytest.mark.usefixtures("mpi4jax_of_another_mpi")
def test_native_engine_is_checked_without_mpi4jax(tmp_path):
    binary = compiled(tmp_path / BINARY, compiled(tmp_path / "libmpi.so.79"))
    ended = subprocess.run([sys.executable, "-c", CHECK, binary], cwd=ROOT, capture_output=True, text=True, check=False)
    assert ended.stdout == "the engine as built is accepted\n", ended.stderr
    *_, last = ended.stderr.splitlines()
    assert "ValueError: engine native is built for the MPI library libmpi.so.79, but mpi4py has loaded libmpi" in last
