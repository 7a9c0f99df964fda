"""Imports models, data sets and augmentations of the user by the names given in a config."""

from __future__ import annotations

import importlib
from typing import Any


def find(setting: str, name: str) -> Any:
    """Imports the object called `package.module:Name`; modules in the folder where the job was started are found too.

    Args:
      setting: the setting that holds the name, for messages.
      name: the name of the object, as `package.module:Name`.

    Raises:
      ValueError: the module cannot be imported, or does not have the attribute.
    """
    module_name, _, attribute = name.partition(":")
    try:
        return getattr(importlib.import_module(module_name), attribute)
    except ImportError as error:
        raise ValueError(
            f"{setting} is {name!r}, but {module_name} cannot be imported: {error}: install it, or start the job in "
            "the folder that contains it"
        ) from error
    except AttributeError as error:
        raise ValueError(f"{setting} is {name!r}, but {error}") from error
