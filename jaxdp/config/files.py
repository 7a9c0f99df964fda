"""Finds and runs config files."""

from __future__ import annotations

import importlib.util
import pathlib
import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any

import ml_collections

from jaxdp.config.defaults import complete

DEFAULT = "digits"
"""Name of the config of a run that names none."""


def find_config(name: str) -> pathlib.Path:
    """The config file that a path, or the name of one of jaxdp's own configs, stands for.

    Raises:
      ValueError: no such file or name exists.
    """
    path = pathlib.Path(name)
    if path.is_file():
        return path
    known = own_configs()
    if name in known:
        return known[name]
    raise ValueError(
        f"there is no config {name}: give the path of a config file, or the name of one of jaxdp's: {', '.join(known)}"
    )


def own_configs() -> dict[str, pathlib.Path]:
    """The configs that come with jaxdp, by name."""
    package = importlib.util.find_spec("jaxdp.configs")
    folders = [] if package is None else package.submodule_search_locations or []
    paths = sorted(path for folder in folders for path in pathlib.Path(folder).glob("*.py"))
    return {path.stem: path for path in paths if path.stem != "__init__"}


def read_config(name: str, *, warn: Callable[[str], None]) -> ml_collections.ConfigDict:
    """The settings that a config file returns, with the defaults of those that it leaves out.

    Args:
      name: see `find_config`. Words after a colon are the argument of the file's `get_config`.
      warn: called with a message for each setting that is given under its old name.

    Raises:
      ValueError: there is no such config, or it fails, or it returns something else than settings.
    """
    place, *arguments = name.split(":", 1)
    path = find_config(place)
    config = _run(lambda: _load(path).get_config(*arguments), path)
    if not isinstance(config, (ml_collections.ConfigDict, ml_collections.FrozenConfigDict)):
        raise ValueError(
            f"the config {path} must return an ml_collections.ConfigDict from get_config(), not {config!r}"
        )
    return complete(ml_collections.ConfigDict(config), warn=warn)


def _run(work: Callable[[], Any], path: pathlib.Path) -> Any:
    try:
        return work()
    except Exception as error:  # A config is a program: it may fail in any way.
        text = " ".join(str(error).split())
        raise ValueError(f"the config {path} cannot be run: {type(error).__name__}: {text}") from None


def _load(path: pathlib.Path) -> ModuleType:
    # The prefix keeps a config that is named like a package, such as test.py, from hiding it.
    spec = importlib.util.spec_from_file_location(f"jaxdp_config_file_{path.stem}", path)
    if spec is None or spec.loader is None:
        raise ImportError(f"{path.name} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    try:
        spec.loader.exec_module(module)
    finally:
        del sys.modules[spec.name]
    return module
