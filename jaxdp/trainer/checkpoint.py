"""Checkpoints of the state and of the position in the data. Rank 0 writes them with Orbax, in the background."""

from __future__ import annotations

import contextlib
import dataclasses
import pathlib
import shutil
import sys
from collections.abc import Iterator
from typing import Any

import flax.serialization
import jax
import numpy as np

from jaxdp.runtime import process
from jaxdp.runtime.world import Failure
from jaxdp.step.state import TrainState, fingerprint, named_leaves
from jaxdp.trainer import orbax_compat


@dataclasses.dataclass(frozen=True)
class Position:
    """The position of a run in its data.

    Attributes:
      step: number of steps done.
      seed: seed of the order of the data.
      data: fingerprint of the data set.
      num_examples: number of examples in the training split.
      batch_size: size of the global batch; `step * batch_size` examples have been seen.
      chosen: choice of the algorithm "auto", see `make_allreduce`; with another choice sums would round differently.
      test_accuracy: accuracy on the test split after this step; None if it was not evaluated.
    """

    step: int
    seed: int
    data: str
    num_examples: int
    batch_size: int
    chosen: dict[str, Any] | None = None
    test_accuracy: float | None = None


class DamagedError(ValueError):
    """A checkpoint is damaged."""


class SaveError(OSError, Failure):
    """A checkpoint could not be written; earlier checkpoints are intact."""


class Checkpoints:
    """The checkpoints of one run, in a separate folder; used by rank 0 only.

    A checkpoint becomes visible when it is complete. If a job is killed while it saves, the previous checkpoint remains
    the latest one.

    Args:
      folder: folder of the checkpoints; created if it is missing, unless opened read-only.
      keep: number of latest checkpoints to keep. None opens the folder read-only, which does not disturb a job that
        saves to it.
      keep_best: number of checkpoints with the best accuracy on the test split to keep as well.
    """

    def __init__(self, folder: pathlib.Path, *, keep: int | None = None, keep_best: int | None = None):
        self.folder = folder.absolute()
        self._keep, self._keep_best = keep, keep_best or 0
        self._pending: Any = None
        self._saving = contextlib.ExitStack()
        orbax_compat.silence_orbax_for_good()
        if keep is not None:
            self.folder.mkdir(parents=True, exist_ok=True)
            # Remove checkpoints that a killed job left incomplete.
            for half in self.folder.glob("*.orbax-checkpoint-tmp*"):
                shutil.rmtree(half)

    def save(self, state: TrainState, position: Position) -> None:
        """Copies the state and writes it in the background.

        Raises:
          SaveError: this save or the previous one failed.
        """
        from orbax.checkpoint import v1 as ocp

        self.wait()
        document = {
            "position": dataclasses.asdict(position) | {"fingerprint": fingerprint(state)},
            "state": flax.serialization.to_state_dict(state),
        }
        with self._failing_as_save_error(), contextlib.ExitStack() as saving:
            saving.enter_context(orbax_compat.orbax_alone())
            self._pending = ocp.save_checkpointables_async(self.folder / str(position.step), document)
            # Orbax's threads need the context until `wait`.
            self._saving = saving.pop_all()

    def wait(self) -> None:
        """Waits for the pending save, if there is one, and then deletes old checkpoints.

        Raises:
          SaveError: the pending save failed.
        """
        pending, self._pending = self._pending, None
        if pending is not None:
            with self._failing_as_save_error(), self._saving:
                pending.result()
                for step in self._too_old():
                    shutil.rmtree(self.folder / str(step))
            process.give_memory_back()

    def latest_step(self) -> int | None:
        """The step of the latest complete checkpoint; None if there is none."""
        return max(self.steps(), default=None)

    def steps(self) -> list[int]:
        """The steps of all complete checkpoints, in ascending order."""
        # Orbax gives a checkpoint its final name when it is complete.
        return sorted(int(path.name) for path in self.folder.glob("*") if path.name.isdigit())

    def _too_old(self) -> list[int]:
        steps = self.steps()
        kept = set(steps[-(self._keep or 1) :])
        if self._keep_best:
            accuracies = {
                step: accuracy for step in steps if (accuracy := self.noted(step)["test_accuracy"]) is not None
            }
            # Among equal accuracies the later checkpoints stay.
            kept |= set(sorted(accuracies, key=lambda step: (accuracies[step], step))[-self._keep_best :])
        return [step for step in steps if step not in kept]

    def noted(self, step: int) -> dict[str, Any]:
        """What a checkpoint holds besides the state: the position, as a dict, and the fingerprint of the state."""
        from orbax.checkpoint import v1 as ocp

        with orbax_compat.orbax_alone():
            return ocp.load_checkpointables(self.folder / str(step), {"position": None})["position"]

    def restore_newest(self, like: TrainState) -> tuple[TrainState, Position] | None:
        """Restores the newest checkpoint that is not damaged; returns None if the folder has no checkpoint.

        Damaged checkpoints are reported and skipped and, unless the folder was opened read-only, renamed.

        Args:
          like: a state with the structure, shapes and dtypes that the checkpoint must have.

        Raises:
          ValueError: every checkpoint is damaged, or one belongs to another model or optimizer.
        """
        steps = self.steps()
        for step in reversed(steps):
            try:
                return self.restore(step, like)
            except DamagedError as error:
                done = "skipped"
                if self._keep is not None:
                    aside = self.folder / f"{step}.damaged"
                    shutil.rmtree(aside, ignore_errors=True)
                    (self.folder / str(step)).rename(aside)
                    done = f"kept aside as {aside.name}"
                print(f"jaxdp: warning: {error}: {done}", file=sys.stderr, flush=True)
        if steps:
            raise ValueError(
                f"every checkpoint in {self.folder} is damaged: choose another --workdir, or delete this one to start "
                "over"
            )
        return None

    def restore(self, step: int, like: TrainState) -> tuple[TrainState, Position]:
        """Restores one checkpoint.

        Args:
          step: step of the checkpoint.
          like: a state with the structure, shapes and dtypes that the checkpoint must have.

        Returns:
          The state, as host arrays, and the position in the data.

        Raises:
          DamagedError: the checkpoint cannot be read, or its contents are not what was saved.
          ValueError: the checkpoint belongs to another model or optimizer.
        """
        from orbax.checkpoint import v1 as ocp

        where = self.folder / str(step)
        wanted = flax.serialization.to_state_dict(like)
        hollow = jax.tree.map(lambda leaf: np.broadcast_to(np.zeros((), leaf.dtype), leaf.shape), wanted)
        try:
            with orbax_compat.orbax_alone():
                stored = ocp.checkpointables_metadata(where).metadata["state"]
                # Orbax returns no arrays for an empty file.
                if not jax.tree.leaves(stored):
                    raise ValueError("it lists no arrays")
                # Orbax casts and reshapes silently.
                _require_same(_shapes(stored), _shapes(wanted), where)
                document = ocp.load_checkpointables(where, {"state": hollow, "position": None})
            noted = dict(document["position"])
            expected = noted.pop("fingerprint")
            state = flax.serialization.from_state_dict(like, document["state"])
        except _OtherStateError:
            raise
        except Exception as error:  # Orbax and TensorStore raise many types of error.
            raise DamagedError(f"the checkpoint {where} cannot be read: {error.__cause__ or error}") from error
        if fingerprint(state) != expected:
            raise DamagedError(
                f"the checkpoint {where} is damaged: its contents do not match the hash that was saved with them"
            )
        return state, Position(**noted)

    def close(self) -> None:
        """Waits for the pending save, if there is one."""
        self.wait()

    @contextlib.contextmanager
    def _failing_as_save_error(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            raise SaveError(
                f"saving to {self.folder} failed: {error.__cause__ or error}. Earlier checkpoints are intact: free "
                "disk space, or lower config.checkpoint.keep, and start again"
            ) from error


class _OtherStateError(ValueError):
    pass


def _shapes(tree: Any) -> dict[str, tuple[tuple[int, ...], str]]:
    return {name: (tuple(leaf.shape), np.dtype(leaf.dtype).name) for name, leaf in named_leaves(tree).items()}


def _require_same(stored: dict[str, Any], wanted: dict[str, Any], where: pathlib.Path) -> None:
    # Parameters first: the optimizer's arrays have the same shapes.
    for name in sorted(stored.keys() | wanted.keys(), key=lambda name: (not name.startswith("params."), name)):
        if stored.get(name) != wanted.get(name):
            there, here = (
                f"{'x'.join(map(str, entry[0])) or 'scalar'} {entry[1]}" if entry else "missing"
                for entry in (stored.get(name), wanted.get(name))
            )
            raise _OtherStateError(
                f"the checkpoint {where} belongs to another model or optimizer: {name} is {there} in the checkpoint, "
                f"but {here} in this run. Choose another --workdir"
            )
