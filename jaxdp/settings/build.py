"""Builds frozen dataclasses from the nested settings of a config file."""

from __future__ import annotations

import dataclasses
import difflib
import types
import typing
from collections.abc import Mapping
from typing import Annotated, Any


def build(cls: Any, settings: Any, path: str) -> Any:
    """Builds a dataclass from settings; a field that is a dataclass takes a nested mapping.

    If there is a field `options`, it takes all settings that match no other field.

    Args:
      cls: a dataclass. Its annotations are plain types, tuples of plain types, either of them `Annotated` with rules,
        `X | None`, or further dataclasses.
      settings: a mapping from field names to values.
      path: the name of this group of settings in messages.

    Raises:
      ValueError: a setting is missing, unknown, of the wrong type or violates a rule.
    """
    if not isinstance(settings, Mapping):
        raise ValueError(f"{path} must be a group of settings, not {settings!r}")
    hints = typing.get_type_hints(cls, include_extras=True)
    given = dict(settings)
    if "options" in hints:
        given["options"] = {name: given.pop(name) for name in settings if name not in hints}
    for name in given:
        if name not in hints:
            near = difflib.get_close_matches(name, hints, 1)
            hint = f": did you mean {near[0]!r}?" if near else f": known settings are {', '.join(hints)}"
            raise ValueError(f"{path}.{name} is not a setting{hint}")
    for name in hints:
        if name not in given:
            raise ValueError(f"{path}.{name} is missing: set it, or start from a config that has it")
    return cls(**{name: _typed(hint, given[name], f"{path}.{name}") for name, hint in hints.items()})


def _typed(hint: Any, value: Any, path: str) -> Any:
    """Returns the value as the annotated type; raises ValueError if it has another type."""
    if typing.get_origin(hint) is Annotated:
        base, *rules = typing.get_args(hint)
        typed = _typed(base, value, path)
        for rule in rules:
            if not rule.holds(typed):
                raise ValueError(rule.message.format(path=path, value=typed))
        return typed
    if dataclasses.is_dataclass(hint):
        return build(hint, value, path)
    if typing.get_origin(hint) in (types.UnionType, typing.Union):
        inner = next(option for option in typing.get_args(hint) if option is not type(None))
        return None if value is None else _typed(inner, value, path)
    if typing.get_origin(hint) is tuple:
        if isinstance(value, (tuple, list)):
            return tuple(_typed(typing.get_args(hint)[0], item, path) for item in value)
    elif hint is float:
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            return float(value)
    elif hint in (int, str, bool):
        if isinstance(value, hint) and (hint is bool or not isinstance(value, bool)):
            return value
    else:
        return dict(value)
    raise ValueError(f"{path} must be of type {getattr(hint, '__name__', hint)}, not {value!r}")


def flattened(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Flattens nested settings to dotted names; tuples become lists."""
    flat: dict[str, Any] = {}
    for name, value in settings.items():
        if isinstance(value, Mapping):
            flat |= flattened(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = list(value) if isinstance(value, tuple) else value
    return flat
