"""Confidence intervals for cross-validated accuracies and their differences."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np


class Interval(NamedTuple):
    """A mean and its 95 % confidence interval."""

    mean: float
    low: float
    high: float


def corrected_interval(values: Sequence[float], *, num_test: float, num_train: float) -> Interval:
    """Returns the mean over the folds of a repeated cross-validation with its 95 % confidence interval.

    Different folds share most of their training examples, so their values are correlated. The variance of the mean of J
    values is therefore (1 / J + num_test / num_train) times their variance, rather than 1 / J times (Nadeau and Bengio
    2003; Bouckaert and Frank 2004 for repeated cross-validation). The interval uses Student's t distribution with J - 1
    degrees of freedom.

    Args:
      values: one value per fold and repetition, at least 2.
      num_test: number of test examples behind each value.
      num_train: number of training examples behind each value.
    """
    from scipy import stats

    count = len(values)
    mean = float(np.mean(values))
    deviation = math.sqrt((1 / count + num_test / num_train) * float(np.var(values, ddof=1)))
    half = float(stats.t.ppf(0.975, count - 1)) * deviation
    return Interval(mean, mean - half, mean + half)
