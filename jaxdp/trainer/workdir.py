"""The folder of a run: which config it belongs to, and which labels its network predicts."""

from __future__ import annotations

import dataclasses
import json
import os
import pathlib
import sys
from typing import Any

from jaxdp.config.schema import RESUMABLE_SETTINGS, Config

_NAME = "config.json"
# Grows when the form of the file changes. New and renamed settings do not change its form.
_VERSION = 2
_LABELS = "labels.json"
CHECKPOINTS = "checkpoints"


@dataclasses.dataclass(frozen=True)
class Labels:
    """Classes that a network predicts, and the shape of its images.

    Attributes:
      image_shape: shape (H, W, C) of the images as stored.
      num_classes: number of classes.
      class_names: name of each class; None if the data set has no names.
    """

    image_shape: tuple[int, int, int]
    num_classes: int
    class_names: tuple[str, ...] | None


def check_workdir(config: Config, workdir: pathlib.Path) -> None:
    """Checks that this config can run in a workdir, without changing the file system.

    Raises:
      ValueError: the workdir contains a run with another config, or is not writable.
    """
    there = next(folder for folder in (workdir, *workdir.absolute().parents) if folder.exists())
    if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
        why = "is not writable" if there.is_dir() else "is not a folder"
        raise ValueError(f"the workdir {workdir} cannot be written: {there} {why}: choose another --workdir")
    if (workdir / _NAME).exists():
        difference = read_config(workdir).difference(config, free=RESUMABLE_SETTINGS)
        if difference is not None:
            raise ValueError(
                f"the workdir {workdir} contains a run with another config: {difference}: choose another --workdir"
            )


def claim_workdir(config: Config, workdir: pathlib.Path) -> None:
    """Writes a config to a workdir, which then belongs to this config.

    Raises:
      ValueError: the workdir cannot be written.
    """
    _write(workdir / _NAME, {"version": _VERSION, "config": config.to_dict()})


def write_labels(labels: Labels, workdir: pathlib.Path) -> None:
    """Writes the labels of a run to its workdir.

    Raises:
      ValueError: the workdir cannot be written.
    """
    _write(workdir / _LABELS, dataclasses.asdict(labels))


def read_labels(workdir: pathlib.Path) -> Labels:
    """Reads the labels of the run in a workdir.

    Raises:
      ValueError: the workdir contains no labels, or they cannot be read.
    """
    found = _read(workdir / _LABELS)
    names = found["class_names"]
    return Labels(tuple(found["image_shape"]), found["num_classes"], None if names is None else tuple(names))


def _write(path: pathlib.Path, document: dict[str, Any]) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        whole = path.with_suffix(".tmp")
        whole.write_text(json.dumps(document, indent=2) + "\n")
        whole.replace(path)
    except OSError as error:
        raise ValueError(f"the workdir {path.parent} cannot be written: {error}: choose another --workdir") from error


def read_config(workdir: pathlib.Path) -> Config:
    """Reads the config of the run in a workdir.

    A run that was saved before a setting existed gets that setting's default. A setting that has been renamed since is
    understood under its old name, with a warning on stderr.

    Raises:
      ValueError: the workdir contains no config, or the config cannot be read, is invalid, or is of a newer jaxdp.
    """
    path = workdir / _NAME
    document = _read(path)
    # Version 1 was the settings alone.
    version = document.get("version", 1)
    if not isinstance(version, int) or version > _VERSION:
        raise ValueError(
            f"{path} was written by a newer jaxdp: its version is {version}, and this jaxdp reads up to {_VERSION}: "
            "upgrade jaxdp, or choose another --workdir"
        )
    settings: Any = document if version == 1 else document.get("config")
    try:
        return Config.from_dict(settings, warn=lambda text: print(f"jaxdp: warning: {path}: {text}", file=sys.stderr))
    except ValueError as error:
        raise ValueError(f"invalid config in {path}: {error}: choose another --workdir") from error


def _read(path: pathlib.Path) -> dict[str, Any]:
    try:
        document = json.loads(path.read_text())
        if not isinstance(document, dict):
            raise ValueError(f"it holds {type(document).__name__} in place of an object")
        return document
    except FileNotFoundError:
        raise ValueError(f"there is no run in {path.parent}: {path.name} is missing: choose another folder") from None
    except (OSError, ValueError) as error:
        raise ValueError(f"cannot read {path}: {error}: choose another folder") from error
