"""Rules for values of settings, used as `Annotated[float, RULE]`."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Annotated, Any


@dataclasses.dataclass(frozen=True)
class Rule:
    """A constraint on a setting beyond its type, used as `Annotated[float, RULE]`.

    Attributes:
      holds: returns whether a value meets the constraint.
      message: the error message for a value that does not, with the placeholders {path} and {value}.
    """

    holds: Callable[[Any], bool]
    message: str


ABOVE_0 = Rule(lambda number: 0 < number < math.inf, "{path} must be a number above 0, not {value}")
NOT_BELOW_0 = Rule(lambda number: 0 <= number < math.inf, "{path} must be 0 or more, not {value}")
BELOW_1 = Rule(lambda number: 0 <= number < 1, "{path} must be at least 0 and below 1, not {value}")


def one_of(*known: str) -> Rule:
    return Rule(lambda name: name in known, f"{{path}} must be one of {', '.join(known)}, not {{value!r}}")


def interval(most: float, rule: str) -> Rule:
    def holds(values: tuple[float, ...]) -> bool:
        return len(values) == 2 and 0 < values[0] <= values[1] <= most

    return Rule(holds, f"{{path}} must be two numbers {rule}, the smaller one first, not {{value}}")


Count = Annotated[int, ABOVE_0]
Positive = Annotated[float, ABOVE_0]
NotNegative = Annotated[float, NOT_BELOW_0]
BelowOne = Annotated[float, BELOW_1]
