"""What is known of the program that started a rank."""

import os

import pytest

from jaxdp import launcher

ARENAS = """
import ctypes, os, pathlib, sys, threading
from jaxdp import world
os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
world.connect()
threads = [threading.Thread(target=sorted, args=(range(1000),)) for _ in range(8)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
libc = ctypes.CDLL(None)
libc.fopen.restype = ctypes.c_void_p
path = pathlib.Path(sys.argv[1])
file = ctypes.c_void_p(libc.fopen(bytes(path), b"w"))
libc.malloc_info(0, file)
libc.fclose(file)
print(path.read_text().count("<heap nr="))
"""


@pytest.mark.parametrize(
    ("variables", "place"),
    [
        ({"PMI_RANK": "3", "PMI_SIZE": "8"}, (3, 8)),
        ({"OMPI_COMM_WORLD_RANK": "1", "OMPI_COMM_WORLD_SIZE": "2"}, (1, 2)),
        # A launcher inside a step of Slurm, whose variables its processes inherit.
        ({"SLURM_PROCID": "0", "SLURM_STEP_NUM_TASKS": "1", "PMI_RANK": "5", "PMI_SIZE": "6"}, (5, 6)),
        ({"SLURM_PROCID": "2", "SLURM_STEP_NUM_TASKS": "4"}, (2, 4)),
        ({"SLURM_PROCID": "0"}, None),
    ],
)
def test_a_rank_knows_its_place_before_mpi_is_open(monkeypatch, variables, place):
    for names in launcher._VARIABLES:
        for name in names:
            monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert launcher.place() == place


@pytest.mark.parametrize(
    ("bound", "local_size", "cores"), [(64, None, 64), (64, 4, 16), (64, 3, 21), (64, 100, 1), (16, 4, 16), (1, 8, 1)]
)
def test_cores_are_those_one_is_bound_to_or_ones_part_of_the_hosts(monkeypatch, bound, local_size, cores):
    monkeypatch.setattr(os, "cpu_count", lambda: 64)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(bound)))
    for name in launcher._LOCAL_SIZES:
        monkeypatch.delenv(name, raising=False)
    if local_size is not None:
        monkeypatch.setenv("MPI_LOCALNRANKS", str(local_size))
    assert launcher.cores() == cores


def test_threads_share_as_many_arenas_of_memory_as_the_rank_has_cores(jobs):
    """The C library's own 8 a core each keep what a save has used."""
    ended = jobs.run(0, "-c", ARENAS, str(jobs.folder / "arenas"))
    assert (ended.code, ended.out) == (0, "1\n"), ended.err
