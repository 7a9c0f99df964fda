import pathlib

import pytest


def test_killed_job_leaves_no_mpich_shared_memory_behind(world):
    """A later job could mistake shared memory of the same name for its own."""
    if not world.library.startswith("MPICH"):
        pytest.skip("Open MPI's launcher removes its shared memory")
    mapped = pathlib.Path("/proc/self/maps").read_text().split()
    segments = [pathlib.Path(word) for word in mapped if word.startswith("/dev/shm/mpich")]
    assert segments
    assert not any(segment.exists() for segment in segments)
