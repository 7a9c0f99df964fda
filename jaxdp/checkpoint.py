"""Saves of the state and of the position in the data, with Orbax: by rank 0 alone, in the background."""

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

from jaxdp import compat
from jaxdp.state import TrainState, fingerprint, named_leaves
from jaxdp.world import Failure


@dataclasses.dataclass(frozen=True)
class Position:
    """Where a run stands in its data.

    Attributes:
      step: steps done.
      seed: of the order.
      data: the fingerprint of the data set.
      num_examples: in the training split.
      batch_size: the global batch; `step * batch_size` examples have been seen.
      chosen: what algorithm "auto" chose, see `make_allreduce`: with another choice sums would round differently.
      test_accuracy: if the test split was evaluated after this step.
    """

    step: int
    seed: int
    data: str
    num_examples: int
    batch_size: int
    chosen: dict[str, Any] | None = None
    test_accuracy: float | None = None


class DamagedError(ValueError):
    """A save is not whole."""


class SaveError(OSError, Failure):
    """A save could not be written; those before it are there."""


class Checkpoints:
    """The saves of one run, in a folder of their own; used by rank 0 only.

    A save is visible once it is whole: a job that is killed while it saves leaves the save before as the latest.

    Args:
      folder: made if it is not there, unless it is only to be read.
      keep: how many of the last saves stay; None to read only, which leaves a job that saves there alone.
      keep_best: how many more stay, those of the best accuracy on the test split.
    """

    def __init__(self, folder: pathlib.Path, *, keep: int | None = None, keep_best: int | None = None):
        self.folder = folder.absolute()
        self._keep, self._keep_best = keep, keep_best or 0
        self._pending: Any = None
        if keep is not None:
            self.folder.mkdir(parents=True, exist_ok=True)
            # What a killed job left half-written is nobody's any more.
            for half in self.folder.glob("*.orbax-checkpoint-tmp*"):
                shutil.rmtree(half)

    def save(self, state: TrainState, position: Position) -> None:
        """Copies the state and writes it in the background.

        Raises:
          SaveError: this save, or the one before, failed.
        """
        from orbax.checkpoint import v1 as ocp

        self.wait()
        document = {
            "position": dataclasses.asdict(position) | {"fingerprint": fingerprint(state)},
            "state": flax.serialization.to_state_dict(state),
        }
        with self._failing_as_save_error(), compat.orbax_alone():
            self._pending = ocp.save_checkpointables_async(self.folder / str(position.step), document)

    def wait(self) -> None:
        """Waits for the save under way, and lets go of those that are too old by then.

        Raises:
          SaveError: it failed.
        """
        pending, self._pending = self._pending, None
        if pending is not None:
            with self._failing_as_save_error(), compat.orbax_alone():
                pending.result()
                for step in self._too_old():
                    shutil.rmtree(self.folder / str(step))
            compat.give_memory_back()

    def latest_step(self) -> int | None:
        """The step of the latest whole save, None if there is none."""
        return max(self.steps(), default=None)

    def steps(self) -> list[int]:
        """Those of all whole saves, the first ones first."""
        # Orbax gives a save its name when it is whole.
        return sorted(int(path.name) for path in self.folder.glob("*") if path.name.isdigit())

    def _too_old(self) -> list[int]:
        steps = self.steps()
        kept = set(steps[-(self._keep or 1) :])
        if self._keep_best:
            accuracies = {
                step: accuracy for step in steps if (accuracy := self.noted(step)["test_accuracy"]) is not None
            }
            # Of those that are as good as one another, the later ones.
            kept |= set(sorted(accuracies, key=lambda step: (accuracies[step], step))[-self._keep_best :])
        return [step for step in steps if step not in kept]

    def noted(self, step: int) -> dict[str, Any]:
        """What a save holds beside the state: the position, by name, and the fingerprint of the state."""
        from orbax.checkpoint import v1 as ocp

        with compat.orbax_alone():
            return ocp.load_checkpointables(self.folder / str(step), {"position": None})["position"]

    def restore_newest(self, like: TrainState) -> tuple[TrainState, Position] | None:
        """Reads the newest save that is whole; None if there is none at all.

        Those that are damaged are told of and, unless this is to read only, kept aside under another name.

        Args:
          like: see `restore`.

        Raises:
          ValueError: all of them are damaged, or one is of another model or optimizer.
        """
        steps = self.steps()
        for step in reversed(steps):
            try:
                return self.restore(step, like)
            except DamagedError as error:
                done = "passed over"
                if self._keep is not None:
                    aside = self.folder / f"{step}.damaged"
                    shutil.rmtree(aside, ignore_errors=True)
                    (self.folder / str(step)).rename(aside)
                    done = f"kept aside as {aside.name}"
                print(f"jaxdp: warning: {error}: {done}", file=sys.stderr, flush=True)
        if steps:
            raise ValueError(
                f"no checkpoint in {self.folder} is whole: choose another --workdir, or remove this one to begin anew"
            )
        return None

    def restore(self, step: int, like: TrainState) -> tuple[TrainState, Position]:
        """Reads a save.

        Args:
          step: of the save.
          like: a state with the structure, shapes and dtypes that it must have.

        Returns:
          The state, as host arrays, and the position in the data.

        Raises:
          DamagedError: it cannot be read, or is not what was saved.
          ValueError: it is of another model or optimizer.
        """
        from orbax.checkpoint import v1 as ocp

        where = self.folder / str(step)
        wanted = flax.serialization.to_state_dict(like)
        hollow = jax.tree.map(lambda leaf: np.broadcast_to(np.zeros((), leaf.dtype), leaf.shape), wanted)
        try:
            with compat.orbax_alone():
                stored = ocp.checkpointables_metadata(where).metadata["state"]
                # What Orbax makes of an empty file.
                if not jax.tree.leaves(stored):
                    raise ValueError("it says nothing of its arrays")
                # Orbax casts and reshapes without a word.
                _require_same(_shapes(stored), _shapes(wanted), where)
                document = ocp.load_checkpointables(where, {"state": hollow, "position": None})
            noted = dict(document["position"])
            expected = noted.pop("fingerprint")
            state = flax.serialization.from_state_dict(like, document["state"])
        except _OtherStateError:
            raise
        except Exception as error:  # Orbax and TensorStore raise whatever they like on a damaged file.
            raise DamagedError(f"the checkpoint {where} cannot be read: {error.__cause__ or error}") from error
        if fingerprint(state) != expected:
            raise DamagedError(
                f"the checkpoint {where} is damaged: its contents do not have the hash that was saved with them"
            )
        return state, Position(**noted)

    def close(self) -> None:
        """Waits for the save under way."""
        self.wait()

    @contextlib.contextmanager
    def _failing_as_save_error(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            raise SaveError(
                f"saving to {self.folder} failed: {error.__cause__ or error}: the saves before it stay; make "
                "room, or set config.checkpoint.keep to less, and start again"
            ) from error


class _OtherStateError(ValueError):
    pass


def _shapes(tree: Any) -> dict[str, tuple[tuple[int, ...], str]]:
    return {name: (tuple(leaf.shape), np.dtype(leaf.dtype).name) for name, leaf in named_leaves(tree).items()}


def _require_same(stored: dict, wanted: dict, where: pathlib.Path) -> None:
    # Parameters first: what the optimizer keeps has their shapes.
    for name in sorted(stored.keys() | wanted.keys(), key=lambda name: (not name.startswith("params."), name)):
        if stored.get(name) != wanted.get(name):
            there, here = (
                f"{'x'.join(map(str, entry[0])) or 'scalar'} {entry[1]}" if entry else "missing"
                for entry in (stored.get(name), wanted.get(name))
            )
            raise _OtherStateError(
                f"the checkpoint {where} is of another model or optimizer: {name} is {there} there, and {here} in this "
                "run: choose another --workdir"
            )
