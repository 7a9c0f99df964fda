import dataclasses
import logging
import pathlib
import re
import sys
from types import SimpleNamespace

import absl.logging
import jax
import numpy as np
import optax
import pytest
from jobs import NEWEST_JAX
from orbax.checkpoint import v1 as ocp

from jaxdp.step.state import TrainState, fingerprint
from jaxdp.trainer import orbax_compat
from jaxdp.trainer.checkpoint import Checkpoints, Position

pytestmark = NEWEST_JAX

POSITION = Position(step=0, seed=1, data="digits", num_examples=2**33, batch_size=8)


def state(seed=0, width=300, dtype=np.float32, optimizer=None):
    rng = np.random.default_rng(seed)
    params = {"layer": {"kernel": rng.standard_normal((width, 40)).astype(dtype), "bias": np.zeros(4, dtype)}}
    stats = {"norm": {"mean": rng.standard_normal(4).astype(np.float32)}}
    optimizer = optimizer or optax.chain(optax.trace(0.9), optax.scale_by_learning_rate(lambda count: 0.1 / count))
    return TrainState.create(jax.tree.map(jax.numpy.asarray, params), stats, optimizer)


def save(folder, *steps, keep=3):
    checkpoints = Checkpoints(folder, keep=keep)
    for step in steps:
        checkpoints.save(state(step), dataclasses.replace(POSITION, step=step))
    checkpoints.close()


def test_checkpoint_is_restored_bit_identically(tmp_path):
    save(tmp_path, 7)
    checkpoints = Checkpoints(tmp_path)
    assert checkpoints.latest_step() == 7
    restored, position = checkpoints.restore(7, state())
    assert fingerprint(restored) == fingerprint(state(7))
    assert position == dataclasses.replace(POSITION, step=7)
    assert jax.tree.structure(restored) == jax.tree.structure(state())
    checkpoints.close()


def test_only_the_newest_checkpoints_are_kept(tmp_path):
    save(tmp_path, *range(1, 8), keep=2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["6", "7"]


def test_folder_without_checkpoints_has_no_latest_step(tmp_path):
    checkpoints = Checkpoints(tmp_path, keep=1)
    assert checkpoints.latest_step() is None
    checkpoints.close()


def test_incomplete_checkpoint_is_ignored(tmp_path):
    save(tmp_path, 3)
    half = tmp_path / "4.orbax-checkpoint-tmp"
    half.mkdir()
    (half / "state").mkdir()
    reader = Checkpoints(tmp_path)
    assert reader.latest_step() == 3
    assert half.exists()
    reader.close()
    checkpoints = Checkpoints(tmp_path, keep=3)
    assert checkpoints.latest_step() == 3
    assert not half.exists()
    checkpoints.close()


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"width": 301}, r"params\.layer\.kernel is 300x40 float32 in the checkpoint, but 301x40 float32 in this run"),
        ({"dtype": np.float16}, r"params\.layer\.bias is 4 float32 in the checkpoint, but 4 float16 in this run"),
        ({"optimizer": optax.adam(1e-3)}, r"opt_state\.0\.count is missing in the checkpoint"),
    ],
)
def test_checkpoint_of_another_model_or_optimizer_is_rejected(tmp_path, other, message):
    save(tmp_path, 1)
    checkpoints = Checkpoints(tmp_path)
    with pytest.raises(ValueError, match=message):
        checkpoints.restore(1, state(**other))
    checkpoints.close()


def damage_files(folder, change):
    largest = max((path for path in folder.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)
    change(largest)


@pytest.mark.parametrize(
    "change",
    [
        lambda path: path.write_bytes(path.read_bytes()[:-1000]),
        lambda path: path.write_bytes(bytes(len(path.read_bytes()))),
        lambda path: path.write_bytes(flipped(path.read_bytes())),
        pathlib.Path.unlink,
    ],
    ids=["truncated", "zeros", "one bit", "missing"],
)
# Orbax closes its event loop while reads that it has abandoned still report to the loop.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_damaged_checkpoint_is_named_in_the_error(tmp_path, change):
    save(tmp_path, 5)
    damage_files(tmp_path / "5" / "state", change)
    checkpoints = Checkpoints(tmp_path)
    with pytest.raises(ValueError, match=r"the checkpoint .*/5 (cannot be read|is damaged)"):
        checkpoints.restore(5, state())
    checkpoints.close()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_restore_falls_back_past_damaged_checkpoint(tmp_path, capfd):
    save(tmp_path, 3, 4, 5, 6)
    for step in (5, 6):
        damage_files(tmp_path / str(step) / "state", lambda path: path.write_bytes(flipped(path.read_bytes())))
    # A read-only restore changes nothing on disk.
    restored, position = Checkpoints(tmp_path).restore_newest(state())
    assert (position.step, fingerprint(restored)) == (4, fingerprint(state(4)))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["4", "5", "6"]
    capfd.readouterr()
    restored, position = Checkpoints(tmp_path, keep=3).restore_newest(state())
    assert (position.step, fingerprint(restored)) == (4, fingerprint(state(4)))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["4", "5.damaged", "6.damaged"]
    told = capfd.readouterr().err
    assert re.search(r"jaxdp: warning: the checkpoint .*/6 .*: kept aside as 6\.damaged\n", told)
    assert told.count("jaxdp: warning: ") == 2
    with pytest.raises(ValueError, match="another model or optimizer"):
        Checkpoints(tmp_path, keep=3).restore_newest(state(width=301))
    assert (tmp_path / "4").exists()
    damage_files(tmp_path / "4" / "state", pathlib.Path.unlink)
    with pytest.raises(ValueError, match=r"every checkpoint in .* is damaged"):
        Checkpoints(tmp_path, keep=3).restore_newest(state())
    assert Checkpoints(tmp_path, keep=3).restore_newest(state()) is None


def test_best_checkpoints_are_kept_in_addition_to_the_newest(tmp_path):

    def save_these(accuracies):
        checkpoints = Checkpoints(tmp_path, keep=2, keep_best=2)
        for step, accuracy in accuracies.items():
            checkpoints.save(state(step), dataclasses.replace(POSITION, step=step, test_accuracy=accuracy))
        checkpoints.close()
        return sorted(path.name for path in tmp_path.iterdir())

    assert save_these({1: 0.5, 2: 0.9, 3: None, 4: 0.7, 5: 0.9, 6: None, 7: 0.1}) == ["2", "5", "6", "7"]
    # A resumed job knows the checkpoints that are on disk. Of 2 and 5, which are equally good, the later one is kept.
    assert save_these({8: 0.2, 9: 0.95}) == ["5", "8", "9"]


def flipped(content):
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]


def test_failed_background_save_is_reported(tmp_path, monkeypatch):
    class Failed:
        def result(self):
            raise ValueError("several leaves") from OSError("No space left on device")

    monkeypatch.setattr(ocp, "save_checkpointables_async", lambda *_: Failed())
    checkpoints = Checkpoints(tmp_path, keep=1)
    checkpoints.save(state(), dataclasses.replace(POSITION, step=1))
    with pytest.raises(OSError, match=f"saving to {tmp_path} failed: No space left on device"):
        checkpoints.save(state(), dataclasses.replace(POSITION, step=2))
    assert checkpoints.latest_step() is None
    checkpoints.close()


@pytest.fixture
def process_counts(monkeypatch):
    """Orbax's two functions that count processes, called, as if JAX knew of 3 processes."""
    from orbax.checkpoint._src.multihost import multihost as before_v1
    from orbax.checkpoint.experimental.v1._src.synchronization import multihost

    modules = (before_v1, multihost)
    for module in modules:
        monkeypatch.setattr(module, "process_count", lambda: 3)
    return lambda: [module.process_count() for module in modules]


def test_orbax_counts_all_processes_again_after_the_context(process_counts):
    with orbax_compat.orbax_alone():
        assert process_counts() == [1, 1]
    assert process_counts() == [3, 3]
    with pytest.raises(RuntimeError), orbax_compat.orbax_alone():
        raise RuntimeError("in the context")
    assert process_counts() == [3, 3]


def test_orbax_counts_one_process_until_a_save_is_complete(tmp_path, process_counts):
    checkpoints = Checkpoints(tmp_path, keep=2)
    for step in (1, 2):
        checkpoints.save(state(), dataclasses.replace(POSITION, step=step))
        assert process_counts() == [1, 1]
    checkpoints.wait()
    assert process_counts() == [3, 3]
    assert checkpoints.steps() == [1, 2]


def test_orbax_counts_all_processes_again_after_a_failed_save(tmp_path, process_counts, monkeypatch):
    """A save fails either when it begins or in the background."""

    def fail(*_):
        raise OSError("No space left on device")

    checkpoints = Checkpoints(tmp_path, keep=1)
    monkeypatch.setattr("orbax.checkpoint.v1.save_checkpointables_async", fail)
    with pytest.raises(OSError, match="saving to"):
        checkpoints.save(state(), POSITION)
    assert process_counts() == [3, 3]
    monkeypatch.setattr("orbax.checkpoint.v1.save_checkpointables_async", lambda *_: SimpleNamespace(result=fail))
    checkpoints.save(state(), POSITION)
    with pytest.raises(OSError, match="saving to"):
        checkpoints.wait()
    assert process_counts() == [3, 3]


@pytest.fixture
def silenced(monkeypatch):
    """Orbax, silenced once or several times for this test; returns the errors that still reach `sys.unraisablehook`."""
    told, logger = [], absl.logging.get_absl_logger()
    monkeypatch.setattr(sys, "unraisablehook", told.append)
    monkeypatch.setattr(logger, "filters", [])
    for _ in range(2):
        orbax_compat.silence_orbax_for_good()
    assert len(logger.filters) == 1
    return told


def test_only_late_errors_of_a_failed_save_are_silenced(silenced):
    late, other = (SimpleNamespace(exc_value=RuntimeError(text)) for text in ("Event loop is closed", "no more memory"))
    sys.unraisablehook(late)
    sys.unraisablehook(other)
    assert silenced == [other]


@pytest.mark.usefixtures("silenced")
def test_only_the_log_of_orbax_is_silenced():
    from orbax.checkpoint._src.futures import future

    verbosity, logger = absl.logging.get_verbosity(), absl.logging.get_absl_logger()
    Checkpoints(pathlib.Path("nowhere"))
    assert absl.logging.get_verbosity() == verbosity
    of_orbax, other = (
        logger.makeRecord("absl", logging.ERROR, path, 1, "a message", (), None) for path in (future.__file__, __file__)
    )
    assert not logger.filter(of_orbax)
    assert logger.filter(other)
