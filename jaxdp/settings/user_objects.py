"""Imports models, data sets and augmentations of the user by the names given in a config."""

from __future__ import annotations

import importlib
import operator
import traceback
from typing import Any


def find(setting: str, name: str) -> Any:
    """Imports the object called `package.module:Name`; modules in the folder where the job was started are found too.

    Args:
      setting: the setting that holds the name, for messages.
      name: the name of the object, as `package.module:Name` or `package.module:Class.name`.

    Raises:
      ValueError: the name has another form, the module cannot be imported or fails while it is imported, or it does
        not have the attribute.
    """
    module_name, _, attribute = name.partition(":")
    # `importlib` would raise a TypeError or a message without the name on empty parts.
    if not all(f"{module_name}.{attribute}".split(".")):
        raise ValueError(f"{setting} must be written as 'package.module:Name', not {name!r}")
    try:
        module = importlib.import_module(module_name)
    except ImportError as error:
        raise ValueError(
            f"{setting} is {name!r}, but {module_name} cannot be imported: {error}: install it, or start the job in "
            "the folder that contains it"
        ) from error
    except Exception as error:  # The module is a program of the user, so it may raise any exception.
        frames = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.name == "<module>"]
        where = "".join(f" ({frame.filename}, line {frame.lineno})" for frame in frames[-1:])
        raise ValueError(
            f"{setting} is {name!r}, but {module_name} fails while it is imported: {type(error).__name__}: "
            f"{error}{where}"
        ) from error
    try:
        return operator.attrgetter(attribute)(module)
    except AttributeError as error:
        raise ValueError(f"{setting} is {name!r}, but {error}") from error
