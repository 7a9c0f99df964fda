"""What differences between cross-validated accuracies say."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np


class Interval(NamedTuple):
    """A mean, and the bounds between which the true one lies with 95 % confidence."""

    mean: float
    low: float
    high: float


def corrected_interval(values: Sequence[float], *, num_test: float, num_train: float) -> Interval:
    """The mean over the folds of a repeated cross-validation, with its 95 % interval.

    Folds share most of their training examples, so values of different folds go together: the variance of their mean is
    (1 / J + num_test / num_train) times that of the J values, not 1 / J (Nadeau and Bengio 2003; Bouckaert and Frank
    2004 for repeated ones), with Student's t of J - 1 degrees of freedom.

    Args:
      values: one a fold and repetition, 2 or more.
      num_test: examples that each is a mean over.
      num_train: examples that were trained on for each.
    """
    from scipy import stats

    count = len(values)
    mean = float(np.mean(values))
    deviation = math.sqrt((1 / count + num_test / num_train) * float(np.var(values, ddof=1)))
    half = float(stats.t.ppf(0.975, count - 1)) * deviation
    return Interval(mean, mean - half, mean + half)
