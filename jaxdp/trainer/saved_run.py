"""Reads a saved run without its data, for initial weights and for predictions."""

from __future__ import annotations

import dataclasses
import pathlib
import zipfile
from typing import Any

import jax
import numpy as np
import optax

from jaxdp.config.schema import Config
from jaxdp.data.augment import Augmentation
from jaxdp.models.network import Network
from jaxdp.optim.factory import make_optimizer
from jaxdp.step.state import TrainState, leaf_name, named_leaves
from jaxdp.trainer.checkpoint import Checkpoints, Position
from jaxdp.trainer.workdir import CHECKPOINTS, Labels, read_config, read_labels

PyTree = Any


@dataclasses.dataclass(frozen=True)
class SavedRun:
    """A saved run: its config, its model, and the state of one checkpoint.

    Attributes:
      config: config of the run.
      labels: class names and image shape.
      network: the network, without parameter values.
      state: state of the checkpoint, as host arrays.
      position: position of the checkpoint in the data.
    """

    config: Config
    labels: Labels
    network: Network
    state: TrainState
    position: Position

    @classmethod
    def read(cls, path: pathlib.Path) -> SavedRun:
        """Reads a run from its workdir (the latest checkpoint) or from one checkpoint in it.

        Raises:
          ValueError: the path has no run or no checkpoint, or the checkpoint is damaged.
        """
        step = int(path.name) if path.name.isdigit() and path.parent.name == CHECKPOINTS else None
        workdir = path if step is None else path.parent.parent
        config, labels = read_config(workdir), read_labels(workdir)
        checkpoints = Checkpoints(workdir / CHECKPOINTS)
        found = checkpoints.latest_step() if step is None else step
        if found is None or not path.is_dir():
            raise ValueError(f"there is no checkpoint in {path}: train first, or pass another folder")
        network = Network.abstract(
            config.model.name,
            config.model.options,
            image_shape=Augmentation.of_config(config.data, seed=config.seed).shape(labels.image_shape),
            num_classes=labels.num_classes,
        )
        optimizer = make_optimizer(config.optimizer, optax.constant_schedule(0.0), network.param_shapes)
        averages = config.average_decay is not None
        like = TrainState.abstract(network.param_shapes, network.stat_shapes, optimizer, averages=averages)
        state, position = checkpoints.restore(found, like)
        return cls(config, labels, network, state, position)


def load_initial_weights(
    path: pathlib.Path, params: PyTree, stats: PyTree, *, skip: tuple[str, ...]
) -> tuple[PyTree, PyTree]:
    """Loads initial parameters and batch statistics from another run or from an archive.

    Args:
      path: a workdir, a checkpoint in one, or a file of `numpy.savez` with one array per dotted name.
      params: parameters with their random initial values.
      stats: batch statistics with their initial values.
      skip: prefixes of the names of arrays that are not loaded, e.g. "head" for "head.kernel" and "head.bias".

    Raises:
      ValueError: the path cannot be read, an array is missing or has another shape, or a prefix matches no array.
    """
    given = _archive(path) if path.suffix == ".npz" else _weights(path)
    unused = set(skip)

    def begin(at: Any, leaf: Any) -> np.ndarray:
        name = leaf_name(at)
        for prefix in skip:
            if f"{name}.".startswith(f"{prefix}."):
                unused.discard(prefix)
                return np.asarray(leaf)
        there = given.get(name)
        if there is None or there.shape != leaf.shape:
            held = "missing" if there is None else "x".join(map(str, there.shape)) or "scalar"
            raise ValueError(
                f"config.init_from {str(path)!r} does not fit the model: {name} is {held} in the saved weights, but "
                f"{'x'.join(map(str, leaf.shape))} in the model. To keep the random initial values of some parameters, "
                f"list their prefixes in config.init_skip, e.g. ({name.split('.')[0]!r},)"
            )
        return np.asarray(there, leaf.dtype)

    begun = tuple(jax.tree_util.tree_map_with_path(begin, tree) for tree in (params, stats))
    if unused:
        raise ValueError(
            f"config.init_skip contains {sorted(unused)[0]!r}, which matches no parameter of the model: remove it"
        )
    return begun[0], begun[1]


def _weights(path: pathlib.Path) -> dict[str, np.ndarray]:
    saved = SavedRun.read(path)
    return _by_name(saved.state.evaluated) | _by_name(saved.state.stats)


def _by_name(tree: PyTree) -> dict[str, np.ndarray]:
    return {name: np.asarray(leaf) for name, leaf in named_leaves(tree).items()}


def _archive(path: pathlib.Path) -> dict[str, np.ndarray]:
    try:
        with path.open("rb") as file, np.load(file) as archive:
            return dict(archive)
    except (OSError, TypeError, ValueError, zipfile.BadZipFile) as error:  # Missing, one array, objects, no archive.
        raise ValueError(f"config.init_from {str(path)!r} cannot be read: {error}") from error
