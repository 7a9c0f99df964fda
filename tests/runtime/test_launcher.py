"""What a rank derives from its launcher and host: place, cores and memory arenas."""

import os

import pytest

from jaxdp.runtime import launcher

ARENAS = """
import ctypes, os, pathlib, sys, threading
from jaxdp.runtime import world
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
        # A launcher inside a Slurm step: its processes inherit the variables of the step.
        ({"SLURM_PROCID": "0", "SLURM_STEP_NUM_TASKS": "1", "PMI_RANK": "5", "PMI_SIZE": "6"}, (5, 6)),
        ({"SLURM_PROCID": "2", "SLURM_STEP_NUM_TASKS": "4"}, (2, 4)),
        ({"SLURM_PROCID": "0"}, None),
    ],
)
def test_rank_and_size_are_known_before_mpi_is_initialised(variables, place):
    assert launcher.launch_info(variables) == place


@pytest.mark.parametrize("variable", ["MPI_LOCALNRANKS", "OMPI_COMM_WORLD_LOCAL_SIZE"])
@pytest.mark.parametrize(
    ("bound", "local_size", "cores"), [(64, None, 64), (64, 4, 16), (64, 3, 21), (64, 100, 1), (16, 4, 16), (1, 8, 1)]
)
def test_cores_are_bound_cores_or_a_share_of_the_host(monkeypatch, variable, bound, local_size, cores):
    monkeypatch.setattr(os, "cpu_count", lambda: 64)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(bound)))
    assert launcher.cores({} if local_size is None else {variable: str(local_size)}) == cores


def test_number_of_malloc_arenas_equals_the_number_of_cores(jobs):
    """By default the C library creates up to 8 arenas per core, and each retains the memory that a save has used."""
    ended = jobs.run(0, "-c", ARENAS, str(jobs.folder / "arenas"))
    assert (ended.code, ended.out) == (0, "1\n"), ended.err
