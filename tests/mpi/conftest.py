import pytest

from jaxdp.runtime import world as world_module


@pytest.fixture(scope="session")
def world():
    return world_module.connect()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    """Aborts all ranks when a test fails on one rank, because the other ranks would wait for it in the next test."""
    report = yield
    if report.failed:
        from mpi4py import MPI

        print(f"rank {MPI.COMM_WORLD.rank}: {item.nodeid}\n{report.longreprtext}", flush=True)
        MPI.COMM_WORLD.Abort(1)
    del call
    return report


def pytest_report_header():
    from mpi4py import MPI

    library = MPI.Get_library_version().splitlines()[0]
    return f"mpi: {library}, rank {MPI.COMM_WORLD.rank} of {MPI.COMM_WORLD.size}"
