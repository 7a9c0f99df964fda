"""Builds frozen dataclasses from the nested settings of a config.

A setting is one field of a dataclass: its name, type, rules, default and documentation stand there and nowhere else.
"""

from __future__ import annotations

import dataclasses
import difflib
import types
import typing
from collections.abc import Callable, Iterator, Mapping
from typing import Annotated, Any

_FORMERLY, _MAY_CHANGE = "formerly", "may_change"


def setting(default: Any = dataclasses.MISSING, *, formerly: str | None = None, may_change: bool = False) -> Any:
    """A field of a dataclass of settings, with more than a default.

    Args:
      default: value that a config without this setting gets; without one the setting is required.
      formerly: old name of the setting. Configs and saved runs that use the old name still work, with a warning.
      may_change: whether a run may be resumed with another value, because the value does not alter what is trained.
        Applies to all settings in a group if the field is a group.
    """
    return dataclasses.field(default=default, metadata={_FORMERLY: formerly, _MAY_CHANGE: may_change})


def group(cls: type, *, may_change: bool = False) -> Any:
    """A field that holds a group of settings, by default with all their defaults. See `setting`."""
    required = any(_is_required(field) for field in dataclasses.fields(cls))
    factory = dataclasses.MISSING if required else cls
    return dataclasses.field(default_factory=factory, metadata={_MAY_CHANGE: may_change})  # type: ignore[arg-type]


def build(cls: Any, settings: Any, path: str, *, warn: Callable[[str], None]) -> Any:
    """Builds the dataclass that nested settings describe. Nested dataclasses are built from nested mappings.

    A field `options` takes all settings that have no field of their own. A setting that is not given gets its default.

    Args:
      cls: a dataclass with annotations of plain types, tuples of them, these `Annotated` with rules, `X | None` and
        further dataclasses.
      settings: a mapping from field names to values.
      path: name of the group of settings in messages, such as "config.data".
      warn: called with a message for each setting that is given under its old name.

    Raises:
      ValueError: a required setting is missing, or a setting is unknown, has the wrong type or breaks a rule.
    """
    if not isinstance(settings, Mapping):
        raise ValueError(f"{path} must be a group of settings, not {settings!r}")
    hints = typing.get_type_hints(cls, include_extras=True)
    given = dict(settings)
    use_current_names(cls, given, path, warn)
    if "options" in hints:
        given["options"] = {name: given.pop(name) for name in list(given) if name not in hints}
    for name in given:
        if name not in hints:
            near = difflib.get_close_matches(name, hints, 1)
            hint = f": did you mean {near[0]!r}?" if near else f": known settings are {', '.join(hints)}"
            raise ValueError(f"{path}.{name} is not a setting{hint}")
    for field in dataclasses.fields(cls):
        if field.name not in given and dataclasses.is_dataclass(hints[field.name]):
            given[field.name] = {}
        # The defaults that a config file starts from hold None for what it has to set.
        if _is_required(field) and given.get(field.name) is None:
            raise ValueError(f"{path}.{field.name} is missing: set it in the config")
    return cls(**{name: _typed(hints[name], value, f"{path}.{name}", warn) for name, value in given.items()})


def use_current_names(cls: Any, settings: Any, path: str, warn: Callable[[str], None]) -> None:
    """Renames the settings of one group, in place, that are given under a former name.

    Args:
      cls: the dataclass of the group.
      settings: a mutable mapping, such as a dict or a ConfigDict.
      path: name of the group in messages.
      warn: called with a message for each renamed setting.

    Raises:
      ValueError: a setting has different values under its two names.
    """
    for field in dataclasses.fields(cls):
        former = field.metadata.get(_FORMERLY)
        if former is None or former not in settings:
            continue
        value = settings[former]
        del settings[former]
        # A config that starts from the defaults has the current name too, with the default.
        if settings.get(field.name, field.default) not in (field.default, value):
            raise ValueError(
                f"{path}.{former} is the old name of {path}.{field.name}, and they differ: {value!r} and "
                f"{settings[field.name]!r}: set {path}.{field.name} only"
            )
        settings[field.name] = value
        warn(f"{path}.{former} is now called {path}.{field.name}: use the new name")


def renamed_settings(cls: Any) -> dict[str, str]:
    """The current dotted name of each setting, in this dataclass and nested ones, by its former dotted name."""
    return {
        ".".join([*groups, field.metadata[_FORMERLY]]): ".".join([*groups, field.name])
        for groups, field in _walk(cls)
        if field.metadata.get(_FORMERLY)
    }


def settings_that_may_change(cls: Any) -> tuple[str, ...]:
    """Dotted names of the settings, and groups of them, with which a run may be resumed with other values."""
    return tuple(".".join([*groups, field.name]) for groups, field in _walk(cls) if field.metadata.get(_MAY_CHANGE))


def flattened(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """The same settings by dotted names, with tuples as lists."""
    flat: dict[str, Any] = {}
    for name, value in settings.items():
        if isinstance(value, Mapping):
            flat |= flattened(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = list(value) if isinstance(value, tuple) else value
    return flat


def _is_required(field: dataclasses.Field[Any]) -> bool:
    return field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING


def _walk(cls: Any, groups: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], dataclasses.Field[Any]]]:
    """All fields of a dataclass and of the nested ones, each with the names of its groups."""
    hints = typing.get_type_hints(cls)
    for field in dataclasses.fields(cls):
        yield groups, field
        if dataclasses.is_dataclass(hints[field.name]):
            yield from _walk(hints[field.name], (*groups, field.name))


def _typed(hint: Any, value: Any, path: str, warn: Callable[[str], None]) -> Any:
    """The value as the annotated type. Raises ValueError if it is of another type or breaks a rule."""
    if typing.get_origin(hint) is Annotated:
        base, *rules = typing.get_args(hint)
        typed = _typed(base, value, path, warn)
        for rule in rules:
            if not rule.holds(typed):
                raise ValueError(rule.message.format(path=path, value=typed))
        return typed
    if dataclasses.is_dataclass(hint):
        return build(hint, value, path, warn=warn)
    if typing.get_origin(hint) in (types.UnionType, typing.Union):
        inner = next(option for option in typing.get_args(hint) if option is not type(None))
        return None if value is None else _typed(inner, value, path, warn)
    if typing.get_origin(hint) is tuple:
        if isinstance(value, (tuple, list)):
            return tuple(_typed(typing.get_args(hint)[0], item, path, warn) for item in value)
    elif hint is float:
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            return float(value)
    elif hint in (int, str, bool):
        if isinstance(value, hint) and (hint is bool or not isinstance(value, bool)):
            return value
    else:
        return dict(value)
    raise ValueError(f"{path} must be of type {getattr(hint, '__name__', hint)}, not {value!r}")
