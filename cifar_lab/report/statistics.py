"""Means, intervals and tests, as pure functions on numbers.

scipy computes; what it lacks (Holm's correction, the Pareto front) is here. Sources: Student 1908
(interval), Welch 1947 (unequal variances), McNemar 1947 (paired answers), Holm 1979 (many
comparisons), Dietterich 1998 (what McNemar's test says about two classifiers, and what it doesn't).
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import stats

LEVEL = 0.95


@dataclass(frozen=True)
class Estimate:
    """What n independent values say about their mean.

    Attributes:
        sd: the sample's standard deviation (n - 1 in the denominator); None for one value.
        low: with ``high`` the 95% interval of the mean by Student's t; None for one value.
    """

    n: int
    mean: float
    sd: float | None
    low: float | None
    high: float | None


def estimate(values: Sequence[float]) -> Estimate:
    """Mean, standard deviation and 95% t interval of at least one value.

    The interval of accuracies may reach beyond 0 or 1 where n is small.
    """
    n, mean = len(values), statistics.fmean(values)
    if n < 2:
        return Estimate(n, mean, None, None, None)
    sd = statistics.stdev(values)
    half = float(stats.t.ppf((1 + LEVEL) / 2, n - 1)) * sd / math.sqrt(n)
    return Estimate(n, mean, sd, mean - half, mean + half)


def welch(a: Sequence[float], b: Sequence[float]) -> float | None:
    """Two-sided p of equal means, variances unequal; None where there is no variance to judge by.

    Both need at least two values.
    """
    if np.ptp(a) == 0 and np.ptp(b) == 0:
        return None
    return float(stats.ttest_ind(a, b, equal_var=False).pvalue)


def mcnemar(right_a: NDArray[np.bool_], right_b: NDArray[np.bool_]) -> tuple[float, int, int]:
    """Exact two-sided p of two classifiers being right equally often on the same images.

    Args:
        right_a: (N,) whether the first one answered image i correctly.
        right_b: (N,) the same of the second.

    Returns:
        p, how many images only the first had right, how many only the second.
    """
    only_a = int(np.count_nonzero(right_a & ~right_b))
    only_b = int(np.count_nonzero(right_b & ~right_a))
    if only_a + only_b == 0:
        return 1.0, 0, 0
    return float(stats.binomtest(only_a, only_a + only_b, 0.5).pvalue), only_a, only_b


def holm(p_values: Sequence[float]) -> list[float]:
    """The p values corrected for their number, in the order given (Holm's step-down procedure)."""
    adjusted = [0.0] * len(p_values)
    largest = 0.0
    for rank, index in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        largest = max(largest, min(1.0, p_values[index] * (len(p_values) - rank)))
        adjusted[index] = largest
    return adjusted


def pareto_front(costs: Sequence[float], gains: Sequence[float]) -> list[int]:
    """Indices of the points that no other beats in both, cheapest first."""
    front: list[int] = []
    best = -math.inf
    for index in sorted(range(len(costs)), key=lambda i: (costs[i], -gains[i])):
        if gains[index] > best:
            front.append(index)
            best = gains[index]
    return front
