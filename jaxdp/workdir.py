"""The folder of a run: whose it is."""

from __future__ import annotations

import json
import os
import pathlib

from jaxdp.config import MAY_CHANGE, Config

_NAME = "config.json"


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
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        whole = (workdir / _NAME).with_suffix(".tmp")
        whole.write_text(json.dumps(config.to_dict(), indent=2) + "\n")
        whole.replace(workdir / _NAME)
    except OSError as error:
        raise ValueError(f"the workdir {workdir} cannot be written: {error}: choose another --workdir") from error


def read_config(workdir: pathlib.Path) -> Config:
    """The config of the run in a workdir.

    Raises:
      ValueError: there is none, or it cannot be read.
    """
    path = workdir / _NAME
    try:
        return Config.from_dict(json.loads(path.read_text()))
    except FileNotFoundError:
        raise ValueError(f"there is no run in {workdir}: {path.name} is missing: check --workdir") from None
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} cannot be used: {error}: choose another --workdir") from error
