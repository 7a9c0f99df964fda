import importlib.metadata

import pytest

from jaxdp import native


def test_engine_not_built_for_this_mpi_is_reported(monkeypatch):
    looked_for = []
    monkeypatch.setattr(native.importlib.util, "find_spec", looked_for.append)
    for mpi in ("Open MPI", "MPICH", "Intel MPI"):
        native.engine.cache_clear()
        with pytest.raises(ValueError, match=f"the native part of jaxdp is not built with {mpi}'s mpicc: run ./launch"):
            native.engine(mpi)
    assert [name.split("_")[-1] for name in looked_for] == ["openmpi", "mpich", "mpich"]


def missing(package):
    raise importlib.metadata.PackageNotFoundError(package)


def test_convolutions_are_available_only_with_onednn(monkeypatch):
    installed = True
    try:
        importlib.metadata.version("onednn-cpu-tbb")
    except importlib.metadata.PackageNotFoundError:
        installed = False
    assert (native.convolutions() is not None) == installed
    assert (native.onednn() is not None) == installed
    monkeypatch.setattr(importlib.metadata, "files", missing)
    native.convolutions.cache_clear()
    assert native.convolutions() is None
    assert native.onednn() is None
    native.convolutions.cache_clear()


def test_convolutions_need_every_library_file(monkeypatch):
    """A package of another version may have files of other names."""
    monkeypatch.setattr(native.importlib.util, "find_spec", lambda _: "built")
    monkeypatch.setattr(native, "_SHARED", (("numpy", "libdnnl.so.99"),))
    assert native.onednn() is None
