import os

import pytest
from jobs import COMPILE_QUICKLY, Jobs

# Set before JAX is imported: some tests need several devices, and tests share the machine with the jobs they start.
os.environ.setdefault("NPROC", "2")
os.environ.setdefault("XLA_FLAGS", f"--xla_force_host_platform_device_count=4 {COMPILE_QUICKLY}")


# The slowest files start first: pytest-xdist distributes files in the order of the tests.
LONGEST = ("test_jobs.py", "test_mpi.py", "test_bench.py", "test_job_failures.py")


@pytest.fixture(scope="session")
def jobs(tmp_path_factory) -> Jobs:
    return Jobs(tmp_path_factory.mktemp("jobs"))


def pytest_ignore_collect(collection_path, config):
    """Ignores tests/mpi unless it is named: these tests need mpirun, and test_mpi.py starts them."""
    if collection_path.name == "mpi" and not any("tests/mpi" in word for word in config.invocation_params.args):
        return True
    return None


def pytest_collection_modifyitems(items):
    items.sort(key=lambda item: LONGEST.index(item.path.name) if item.path.name in LONGEST else len(LONGEST))
