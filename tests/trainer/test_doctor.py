"""The report of jaxdp.doctor on this machine and on faulty setups."""

import pytest
from jobs import BOTH_MPIS


@BOTH_MPIS
def test_working_machine_is_reported_as_ready(jobs, tmp_path):
    for ranks in (0, 3):
        ended = jobs.run(ranks, "-m", "jaxdp.doctor", f"--workdir={tmp_path / 'runs'}")
        assert ended.code == 0, ended.err
        assert ended.out.splitlines()[-1] == "ready"
        assert ended.out.count("  MPI threads         multiple") == 1
        assert not list((tmp_path / "runs").iterdir())
    for words in (
        "3 ranks: 0 to 2 on",
        "1 x cpu on 0 to 2",
        "Gbit/s to the next rank, all ranks at once",
        "written by all ranks",
    ):
        assert words in ended.out


# A job with a faulty setup on rank 1 or on all ranks.
ILL = """
import os, pathlib, sys
from jaxdp.runtime import world
from jaxdp.trainer import diagnosis, preflight


def job(of_world):
    what, workdir = sys.argv[1:]
    if what == "code" and of_world.rank == 1:
        preflight.code_hash = lambda _: "0123456789ab"
    diagnosis.examine(pathlib.Path(workdir), of_world)


if sys.argv[1] == "core":
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
world.run(job)
"""


@pytest.mark.parametrize(
    ("what", "workdir", "told"),
    [
        ("core", "runs", "all 3 ranks on the host of rank 0 are bound to core"),
        ("code", "runs", "code of jaxdp is not the same on all ranks: rank 1 has 0123456789ab, 2 of 3 have "),
        ("nothing", "/dev/null/runs", "/dev/null/runs cannot be written on rank 0: "),
    ],
)
def test_problem_is_listed_with_its_remedy(jobs, tmp_path, what, workdir, told):
    ended = jobs.run(3, "-c", ILL, what, str(tmp_path / workdir))
    assert ended.code == 2
    (to_do,) = [line for line in ended.out.splitlines() if line.startswith("  - ")]
    assert told in to_do
    assert "ready" not in ended.out
    assert "Traceback" not in ended.err
