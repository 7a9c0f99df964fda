"""The folder of a run: whose it is."""

from __future__ import annotations

import json
import pathlib

from jaxdp.config import Config


def claim_workdir(config: Config, workdir: pathlib.Path) -> None:
    """Makes the folder this config's; on rank 0.

    Raises:
      ValueError: the folder holds the run of another config, or cannot be written.
    """
    path = workdir / "config.json"
    if path.exists():
        difference = read_config(workdir).difference(config)
        if difference is not None:
            raise ValueError(
                f"the workdir {workdir} holds the run of another config: {difference}: choose another --workdir"
            )
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        whole = path.with_suffix(".tmp")
        whole.write_text(json.dumps(config.to_dict(), indent=2) + "\n")
        whole.replace(path)
    except OSError as error:
        raise ValueError(f"the workdir {workdir} cannot be written: {error}: choose another --workdir") from error


def read_config(workdir: pathlib.Path) -> Config:
    """The config of the run in a workdir.

    Raises:
      ValueError: there is none, or it cannot be read.
    """
    path = workdir / "config.json"
    try:
        return Config.from_dict(json.loads(path.read_text()))
    except FileNotFoundError:
        raise ValueError(f"there is no run in {workdir}: {path.name} is missing: check --workdir") from None
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} cannot be used: {error}: choose another --workdir") from error
