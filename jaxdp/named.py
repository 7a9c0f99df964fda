"""Things of the user's own, by the names that a config gives them."""

from __future__ import annotations

import importlib
from typing import Any


def find(setting: str, name: str) -> Any:
    """What `package.module:Name` names; the folder in which the job is started is searched too.

    Args:
      setting: that has the name, for messages.
      name: see above.

    Raises:
      ValueError: there is no such thing.
    """
    module_name, _, attribute = name.partition(":")
    try:
        return getattr(importlib.import_module(module_name), attribute)
    except ImportError as error:
        raise ValueError(
            f"{setting} is {name!r}, and {module_name} cannot be imported: {error}: install it, or start the job in "
            "the folder in which it lies"
        ) from error
    except AttributeError as error:
        raise ValueError(f"{setting} is {name!r}, but {error}") from error
