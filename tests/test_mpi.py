"""Runs tests/mpi under mpirun, where every rank runs every test."""

import pytest
from jobs import BOTH_MPIS

WORLDS = [pytest.param(2, marks=BOTH_MPIS), 3, 4]


@pytest.mark.parametrize("ranks", WORLDS)
def test_under_mpirun(jobs, ranks):
    ended = jobs.run(ranks, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "tests/mpi", devices=4, timeout=300)
    assert ended.code == 0, ended.out + ended.err
    assert ended.out.count(" passed") == ranks
