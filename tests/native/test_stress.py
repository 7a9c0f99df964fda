"""Tests of the native engine without Python, under sanitizers."""

import os
import pathlib
import shlex
import subprocess

import pytest

HERE = pathlib.Path(__file__).parent
SOURCES = [HERE / "stress.cc", *(HERE.parents[1] / "jaxdp/native" / name for name in ("engine.cc", "arithmetic.cc"))]


@pytest.fixture(scope="module")
def program(tmp_path_factory):
    built = tmp_path_factory.mktemp("stress") / "stress"
    shown = subprocess.run(["mpicc", "-show"], capture_output=True, text=True, check=True).stdout
    flags = ["-std=c++17", "-O1", "-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-pthread"]
    subprocess.run(["g++", *flags, *SOURCES, *shlex.split(shown)[1:], "-o", built], check=True, timeout=120)
    return built


@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_concurrent_allreduces_in_shuffled_order_are_exact(program, ranks):
    # Leaks are not checked, because MPI libraries do not free all their memory at exit.
    ended = subprocess.run(
        ["mpirun", "-n", str(ranks), program],
        env=os.environ | {"ASAN_OPTIONS": "detect_leaks=0"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert ended.stdout == "0 wrong\n"
