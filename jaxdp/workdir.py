"""The folder of a run: whose it is."""

from __future__ import annotations

import dataclasses
import json
import os
import pathlib
from typing import Any

from jaxdp.config import MAY_CHANGE, Config

_NAME = "config.json"
_LABELS = "labels.json"
CHECKPOINTS = "checkpoints"


@dataclasses.dataclass(frozen=True)
class Labels:
    """What a network tells apart, and in what.

    Attributes:
      image_shape: (H, W, C), as images are held.
      num_classes: K.
      class_names: of each class; None where the data set has none.
    """

    image_shape: tuple[int, int, int]
    num_classes: int
    class_names: tuple[str, ...] | None


def check_workdir(config: Config, workdir: pathlib.Path) -> None:
    """Looks whether this config can run here, and leaves no trace.

    Raises:
      ValueError: the folder holds the run of another config, or cannot be written.
    """
    there = next(folder for folder in (workdir, *workdir.absolute().parents) if folder.exists())
    if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
        why = "is not yours to write in" if there.is_dir() else "is no folder"
        raise ValueError(f"the workdir {workdir} cannot be written: {there} {why}: choose another --workdir")
    if (workdir / _NAME).exists():
        difference = read_config(workdir).difference(config, free=MAY_CHANGE)
        if difference is not None:
            raise ValueError(
                f"the workdir {workdir} holds the run of another config: {difference}: choose another --workdir"
            )


def claim_workdir(config: Config, workdir: pathlib.Path) -> None:
    """Makes the folder this config's.

    Raises:
      ValueError: it cannot be written.
    """
    _write(workdir / _NAME, config.to_dict())


def write_labels(labels: Labels, workdir: pathlib.Path) -> None:
    """Notes what the run in a workdir is trained to tell apart.

    Raises:
      ValueError: it cannot be written.
    """
    _write(workdir / _LABELS, dataclasses.asdict(labels))


def read_labels(workdir: pathlib.Path) -> Labels:
    """What the run in a workdir tells apart.

    Raises:
      ValueError: there is none, or it cannot be read.
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
    """The config of the run in a workdir.

    Raises:
      ValueError: there is none, or it cannot be read.
    """
    document = _read(workdir / _NAME)
    try:
        return Config.from_dict(document)
    except ValueError as error:
        raise ValueError(f"{workdir / _NAME} cannot be used: {error}: choose another --workdir") from error


def _read(path: pathlib.Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text())
    except FileNotFoundError:
        raise ValueError(f"there is no run in {path.parent}: {path.name} is missing: choose another folder") from None
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} cannot be used: {error}: choose another folder") from error
