"""Building dataclasses from nested settings."""

import dataclasses
from typing import Annotated

import pytest

from jaxdp.settings.build import build, flattened, group, renamed_settings, setting, settings_that_may_change
from jaxdp.settings.rules import Count, Positive, Rule, interval, one_of

EVEN = Rule(lambda number: number % 2 == 0, "{path} must be even, not {value}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Inner:
    size: Annotated[int, EVEN] = setting(2, formerly="width")
    kind: Annotated[str, one_of("a", "b")] = "a"
    limit: Count | None = setting(None, may_change=True)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Outer:
    rate: Positive
    area: Annotated[tuple[float, ...], interval(1.0, "up to 1")] = (0.1, 1.0)
    flag: bool = False
    inner: Inner = group(Inner)
    notes: Inner = group(Inner, may_change=True)


def refuse(text):
    raise AssertionError(f"unexpected warning: {text}")


def made(settings, *, warn=refuse):
    return build(Outer, settings, "config", warn=warn)


def test_settings_become_nested_dataclasses():
    found = made({"rate": 1, "area": [0.5, 1], "inner": {"size": 4, "limit": 3}})
    assert found == Outer(rate=1.0, area=(0.5, 1.0), inner=Inner(size=4, limit=3), notes=Inner())
    assert isinstance(found.rate, float)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, r"^config\.rate is missing: set it in the config$"),
        ({"rate": None}, r"^config\.rate is missing"),
        ({"rate": 1.0, "raet": 2}, r"^config\.raet is not a setting: did you mean 'rate'\?$"),
        ({"rate": 1.0, "xyz": 2}, r"^config\.xyz is not a setting: known settings are rate, area, flag, inner, notes$"),
        ({"rate": 0.0}, r"^config\.rate must be a number above 0, not 0\.0$"),
        ({"rate": True}, r"^config\.rate must be of type float, not True$"),
        ({"rate": "fast"}, r"^config\.rate must be of type float, not 'fast'$"),
        ({"rate": 1.0, "flag": 1}, r"^config\.flag must be of type bool, not 1$"),
        ({"rate": 1.0, "area": (0.5,)}, r"^config\.area must be two numbers up to 1, the smaller one first, not"),
        ({"rate": 1.0, "area": 0.5}, r"^config\.area must be of type tuple.*, not 0\.5$"),
        ({"rate": 1.0, "inner": 3}, r"^config\.inner must be a group of settings, not 3$"),
        ({"rate": 1.0, "inner": {"size": 3}}, r"^config\.inner\.size must be even, not 3$"),
        ({"rate": 1.0, "inner": {"kind": "c"}}, r"^config\.inner\.kind must be one of a, b, not 'c'$"),
        ({"rate": 1.0, "inner": {"limit": 0}}, r"^config\.inner\.limit must be a number above 0, not 0$"),
    ],
)
def test_wrong_setting_is_named_with_its_value(settings, message):
    with pytest.raises(ValueError, match=message):
        made(settings)


def test_old_name_is_understood_with_a_warning():
    warnings = []
    found = made({"rate": 1.0, "inner": {"width": 6}}, warn=warnings.append)
    assert found.inner.size == 6
    assert warnings == ["config.inner.width is now called config.inner.size: use the new name"]


def test_old_name_wins_over_a_default_but_not_over_another_value():
    assert made({"rate": 1.0, "inner": {"width": 6, "size": 2}}, warn=lambda _: None).inner.size == 6
    with pytest.raises(
        ValueError, match=r"config\.inner\.width is the old name of config\.inner\.size, and they differ"
    ):
        made({"rate": 1.0, "inner": {"width": 6, "size": 4}}, warn=lambda _: None)


def test_metadata_of_settings_is_found_by_dotted_name():
    assert renamed_settings(Outer) == {"inner.width": "inner.size", "notes.width": "notes.size"}
    assert settings_that_may_change(Outer) == ("inner.limit", "notes", "notes.limit")


def test_flattened_settings_have_dotted_names_and_lists():
    assert flattened({"a": 1, "b": {"c": (2, 3), "d": {"e": None}}}) == {"a": 1, "b.c": [2, 3], "b.d.e": None}
