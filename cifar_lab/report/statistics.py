"""Means, intervals and tests, as pure functions on numbers.

scipy computes; what it lacks (the correction for choosing the best, the Pareto front) is here.
Sources: Student 1908 (interval), Welch 1947 (unequal variances), Barnard 1963 (tests by
simulation), Westfall and Young 1993 (the smallest p of many, step by step), McNemar 1947 (paired
predictions), Dietterich 1998 (what McNemar's test says about two classifiers, and what it doesn't).
"""

from __future__ import annotations

import math
import statistics
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats

LEVEL = 0.95
SIGNIFICANT = 0.05
# Simulated comparisons: the probability .05 is then exact to .0015 (one standard error). Of more
# than 50 configurations fewer, down to 2,000, to stay below a second.
DRAWS = 20_000
_MOST_NUMBERS, _FEWEST_DRAWS = 1_000_000, 2_000


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


def welch(a: Estimate, b: Estimate) -> float | None:
    """Two-sided p of equal means, variances unequal; None where neither side has any spread.

    Both need at least two values.
    """
    assert a.sd is not None
    assert b.sd is not None
    if a.sd == b.sd == 0:
        return None
    return float(_welch(a.mean, a.sd, a.n, b.mean, b.sd, b.n))


@dataclass(frozen=True)
class Difference:
    """A difference of two means.

    Attributes:
        low: with ``high`` its 95% interval by Welch; None where a side has one value alone.
        p: two-sided, of no difference; None there, and where neither side has any spread.
    """

    mean: float
    low: float | None
    high: float | None
    p: float | None


def difference(a: Sequence[float], b: Sequence[float]) -> Difference:
    """Mean of ``a`` minus that of ``b``, variances unequal (Welch 1947)."""
    mean = statistics.fmean(a) - statistics.fmean(b)
    if min(len(a), len(b)) < 2:
        return Difference(mean, None, None, None)
    if len(set(a)) == len(set(b)) == 1:
        return Difference(mean, mean, mean, None)
    with warnings.catch_warnings():
        # of values that are all the same scipy says that their spread is imprecise; it is 0
        warnings.filterwarnings("ignore", "Precision loss", RuntimeWarning)
        found = stats.ttest_ind(a, b, equal_var=False)
    interval = found.confidence_interval(LEVEL)
    return Difference(mean, float(interval.low), float(interval.high), float(found.pvalue))


def holm(p: Sequence[float]) -> list[float]:
    """Each p corrected for their number, so that any error has a probability below the level.

    The smallest times n, the next times n - 1, and so on, never below the one before (Holm 1979).
    """
    found, least = [0.0] * len(p), 0.0
    for place, index in enumerate(sorted(range(len(p)), key=lambda i: p[i])):
        least = max(least, min(1.0, (len(p) - place) * p[index]))
        found[index] = least
    return found


def against_best(best: Estimate, others: Sequence[Estimate]) -> list[tuple[float, float] | None]:
    """Welch's p of ``best`` against each other, and that p corrected for the choice of the best.

    The best of many that are all alike is the luckiest one: its p against the others comes out
    small far too often. The corrected p is the share of simulated comparisons, of as many
    configurations that are all alike with as many values each, in which the smallest p of the one
    with the highest mean is as small. What is told apart is set aside, and the others are compared
    again among themselves.

    The probability of one or more corrected p below `SIGNIFICANT` among configurations that are
    alike is at most that: just that where ``best`` has the highest mean of these very values, less
    where it was chosen by others that share some of their luck (validation). Exact for independent,
    normally distributed values of one variance.

    Returns:
        (p, corrected p) for each of ``others``; None where neither side has any spread.
    """
    raw = {i: p for i, other in enumerate(others) if (p := welch(best, other)) is not None}
    found: dict[int, tuple[float, float]] = {}
    left, least = set(raw), 0.0
    while left:
        if len(left) == 1:  # of two, the one is as far above as the other is below: no choice
            corrected = raw
        else:
            null = _smallest_p(tuple(sorted([best.n, *(others[i].n for i in left)])))
            ranks = np.searchsorted(null, [raw[i] for i in left], side="right")
            shares = (1 + ranks) / (1 + len(null))
            # two standard errors of the simulation: "at most" holds for these draws too
            shares += 2 * np.sqrt(shares * (1 - shares) / len(null))
            # below Welch's own p, which is careful with few values, it never falls: the variances
            # may be unequal after all
            corrected = {
                i: min(1.0, max(raw[i], float(p))) for i, p in zip(left, shares, strict=True)
            }
        found |= {i: (raw[i], max(least, corrected[i])) for i in left}
        told_apart = {i for i in left if found[i][1] < SIGNIFICANT}
        if not told_apart:
            break
        left -= told_apart
        least = max(found[i][1] for i in told_apart)
    return [found.get(i) for i in range(len(others))]


@lru_cache(maxsize=64)
def _smallest_p(counts: tuple[int, ...]) -> NDArray[np.float64]:
    """Simulated, ascending: the smallest p of the best against each other where all are alike.

    Args:
        counts: how many values each one has, at least 2.
    """
    random = np.random.default_rng(0)  # the same runs give the same report
    n = np.array(counts)
    draws = min(DRAWS, max(_FEWEST_DRAWS, _MOST_NUMBERS // len(n)))
    smallest = []
    for rows in np.array_split(np.arange(draws), math.ceil(draws * len(n) / _MOST_NUMBERS)):
        means = random.normal(size=(len(rows), len(n))) / np.sqrt(n)
        sds = np.sqrt(random.chisquare(n - 1, size=means.shape) / (n - 1))
        best = means.argmax(axis=1)[:, None]
        its_mean, its_sd = (np.take_along_axis(values, best, axis=1) for values in (means, sds))
        p = _welch(its_mean, its_sd, n[best], means, sds, n)  # against itself: 1
        smallest.append(p.min(axis=1))
    return np.sort(np.concatenate(smallest))


# numbers or arrays of them, shaped alike
def _welch(mean_a: Any, sd_a: Any, n_a: Any, mean_b: Any, sd_b: Any, n_b: Any) -> Any:
    return stats.ttest_ind_from_stats(mean_a, sd_a, n_a, mean_b, sd_b, n_b, equal_var=False).pvalue


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


def pareto_front(costs: Sequence[float], gains: Sequence[float]) -> list[int]:
    """Indices of the points that no other beats in both, cheapest first.

    Args:
        costs: the less, the better.
        gains: of the same points; the more, the better.
    """
    front: list[int] = []
    best = -math.inf
    for index in sorted(range(len(costs)), key=lambda i: (costs[i], -gains[i])):
        if gains[index] > best:
            front.append(index)
            best = gains[index]
    return front
