import pathlib

import pytest


def test_a_job_that_is_killed_leaves_none_of_mpichs_shared_memory_behind(world):
    """By the name of which a later job could take it for its own."""
    if not world.library.startswith("MPICH"):
        pytest.skip("Open MPI's is cleared away by its launcher")
    mapped = pathlib.Path("/proc/self/maps").read_text().split()
    segments = [pathlib.Path(word) for word in mapped if word.startswith("/dev/shm/mpich")]
    assert segments
    assert not any(segment.exists() for segment in segments)
