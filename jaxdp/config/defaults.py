"""The settings of a config with their defaults, as config files and command lines need them."""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Callable
from typing import Annotated, Any

import ml_collections
from ml_collections import config_dict

from jaxdp.config.schema import Config
from jaxdp.settings.build import use_current_names


def default_config() -> ml_collections.ConfigDict:
    """All settings with their defaults, for a config file to change: a setting without a default is None.

    Example:
      import jaxdp

      def get_config():
        config = jaxdp.default_config()
        config.data.name = "mnist"
        ...
        return config
    """
    return _defaults_of(Config)


def complete(config: ml_collections.ConfigDict, *, warn: Callable[[str], None]) -> ml_collections.ConfigDict:
    """A config file's settings, with the defaults of those that it leaves out, so that each can be set by a flag.

    Args:
      config: settings of the file.
      warn: called with a message for each setting that is given under its old name.

    Raises:
      ValueError: a setting has different values under its old and its current name.
    """
    whole = ml_collections.ConfigDict(config)
    with whole.unlocked():
        _rename(Config, whole, "config", warn)
        _fill(whole, default_config())
    return whole


def _rename(cls: Any, config: ml_collections.ConfigDict, path: str, warn: Callable[[str], None]) -> None:
    use_current_names(cls, config, path, warn)
    for name, hint in typing.get_type_hints(cls).items():
        if dataclasses.is_dataclass(hint) and isinstance(config.get(name), ml_collections.ConfigDict):
            _rename(hint, config[name], f"{path}.{name}", warn)


def _fill(config: ml_collections.ConfigDict, defaults: ml_collections.ConfigDict) -> None:
    for name in defaults:
        if name not in config:
            config[name] = defaults.get_ref(name)
        elif isinstance(defaults[name], ml_collections.ConfigDict) and isinstance(
            config[name], ml_collections.ConfigDict
        ):
            _fill(config[name], defaults[name])


def _defaults_of(cls: Any) -> ml_collections.ConfigDict:
    hints = typing.get_type_hints(cls, include_extras=True)
    config = ml_collections.ConfigDict()
    for field in dataclasses.fields(cls):
        hint = hints[field.name]
        if dataclasses.is_dataclass(hint):
            config[field.name] = _defaults_of(hint)
        elif field.name != "options":
            default = None if field.default is dataclasses.MISSING else field.default
            config[field.name] = config_dict.placeholder(_plain_type(hint)) if default is None else default
    return config


def _plain_type(hint: Any) -> type:
    """The type of a setting without its rules: `Annotated[tuple[float, ...], RULE] | None` is a tuple."""
    if typing.get_origin(hint) is Annotated:
        return _plain_type(typing.get_args(hint)[0])
    if typing.get_origin(hint) in (types.UnionType, typing.Union):
        return _plain_type(next(option for option in typing.get_args(hint) if option is not type(None)))
    return typing.get_origin(hint) or hint
