"""The statistics equal scipy's, hand-worked cases, and what simulation says they must be."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from cifar_lab.report.statistics import (
    DRAWS,
    SIGNIFICANT,
    Estimate,
    against_best,
    estimate,
    mcnemar,
    pareto_front,
    welch,
)

ACCURACIES = [0.931, 0.934, 0.929, 0.938, 0.933]


def test_mean_deviation_and_interval_equal_numpy_and_scipy() -> None:
    found = estimate(ACCURACIES)
    assert found.n == 5
    assert found.mean == pytest.approx(np.mean(ACCURACIES))
    assert found.sd == pytest.approx(np.std(ACCURACIES, ddof=1))
    low, high = stats.t.interval(0.95, 4, np.mean(ACCURACIES), stats.sem(ACCURACIES))
    assert found.low == pytest.approx(low)
    assert found.high == pytest.approx(high)


def test_interval_of_three_values_by_hand() -> None:
    found = estimate([1.0, 2.0, 3.0])  # t = 4.3027 with 2 degrees of freedom, sd = 1
    assert found.high == pytest.approx(2 + 4.30265 / math.sqrt(3), rel=1e-5)


def test_one_value_has_no_spread() -> None:
    found = estimate([0.5])
    assert (found.n, found.mean) == (1, 0.5)
    assert (found.sd, found.low, found.high) == (None, None, None)


@pytest.mark.parametrize("n", [3, 5])
def test_the_interval_covers_the_mean_in_93_to_97_of_100_draws(n: int) -> None:
    random = np.random.default_rng(n)
    found = [estimate(random.normal(0.9, 0.01, n).tolist()) for _ in range(2000)]
    covered = sum((f.low or 0) <= 0.9 <= (f.high or 0) for f in found)
    assert 0.93 <= covered / 2000 <= 0.97


def test_welch_equals_its_formula() -> None:
    a, b = [0.93, 0.94, 0.95, 0.92], [0.90, 0.91, 0.93]
    va, vb = np.var(a, ddof=1) / 4, np.var(b, ddof=1) / 3
    freedom = (va + vb) ** 2 / (va**2 / 3 + vb**2 / 2)
    t = (np.mean(a) - np.mean(b)) / math.sqrt(va + vb)
    assert welch(estimate(a), estimate(b)) == pytest.approx(2 * stats.t.sf(abs(t), freedom))


def test_welch_calls_equal_means_different_about_as_often_as_it_says() -> None:
    random = np.random.default_rng(0)
    draws = [
        (estimate(random.normal(0, 1, 5).tolist()), estimate(random.normal(0, 3, 4).tolist()))
        for _ in range(2000)
    ]
    share = sum((welch(a, b) or 0) < 0.05 for a, b in draws) / 2000
    assert 0.03 <= share <= 0.07


def test_welch_without_any_spread_has_no_answer() -> None:
    assert welch(estimate([0.5, 0.5, 0.5]), estimate([0.4, 0.4, 0.4])) is None


def test_mcnemar_by_hand() -> None:
    a = np.array([True] * 5 + [False] * 1 + [True] * 10)
    b = np.array([False] * 5 + [True] * 1 + [True] * 10)
    # 5 against 1: two-sided 2 * (1 + 6) / 2**6
    p, *counts = mcnemar(a, b)
    assert p == pytest.approx(14 / 64)
    assert counts == [5, 1]


def test_mcnemar_equals_the_binomial_test() -> None:
    random = np.random.default_rng(1)
    a, b = random.random(10_000) < 0.94, random.random(10_000) < 0.935
    p, only_a, only_b = mcnemar(a, b)
    assert (only_a, only_b) == ((a & ~b).sum(), (~a & b).sum())
    assert p == pytest.approx(stats.binomtest(only_b, only_a + only_b, 0.5).pvalue)


def test_mcnemar_of_the_same_answers_is_one() -> None:
    answers = np.array([True, False, True])
    assert mcnemar(answers, answers) == (1.0, 0, 0)


def of(mean: float, sd: float = 0.01, n: int = 5) -> Estimate:
    return Estimate(n, mean, sd, None, None)


def test_of_two_the_p_is_welchs_own() -> None:
    a, b = of(0.93), of(0.92, sd=0.02, n=3)
    assert against_best(a, [b]) == [(welch(a, b), welch(a, b))]


@pytest.mark.parametrize("count", [3, 8, 30])
def test_of_many_with_many_values_the_corrected_p_is_that_of_the_studentized_range(
    count: int,
) -> None:
    # the best of alike ones against the worst is their range, over the deviation of a mean
    n = 2000
    for q in (3.0, 4.0, 5.0):
        best, worst = of(0.9 + q * 0.01 / math.sqrt(n), n=n), of(0.9, n=n)
        middle = [of(0.9 + q * 0.005 / math.sqrt(n), n=n)] * (count - 2)
        *_, (_, corrected) = [pair for pair in against_best(best, [*middle, worst]) if pair]
        expected = stats.studentized_range.sf(q, count, count * (n - 1))
        error = math.sqrt(expected * (1 - expected) / DRAWS)
        assert corrected == pytest.approx(expected + 2 * error, abs=0.002 + 4 * error)


def test_more_configurations_that_are_alike_make_every_p_larger() -> None:
    others = [of(0.92), of(0.925), of(0.915)]
    few = against_best(of(0.93), others)
    many = against_best(of(0.93), [*others, *[of(0.928)] * 10])
    for a, b in zip(few, many, strict=False):
        assert a is not None
        assert b is not None
        assert a[0] == b[0] <= a[1] < b[1]


def test_what_is_told_apart_is_set_aside_and_the_rest_is_compared_again() -> None:
    others = [of(0.92), of(0.925), of(0.915)]
    alone = against_best(of(0.93), others)
    with_dead_ones = against_best(of(0.93), [of(0.1), *others, of(0.1, sd=0.0)])
    assert with_dead_ones[1:4] == alone
    for dead in (with_dead_ones[0], with_dead_ones[4]):
        assert dead is not None
        assert 1 / (1 + DRAWS) < dead[1] < 0.001  # no smaller than the simulation can tell


def test_a_smaller_p_never_becomes_the_larger_one() -> None:
    random = np.random.default_rng(4)
    for _ in range(50):
        best, *others = [
            of(random.normal(0.9, 0.02), sd=random.gamma(1, 0.01), n=int(random.integers(2, 6)))
            for _ in range(8)
        ]
        pairs = sorted(pair for pair in against_best(best, others) if pair)
        corrected = [pair[1] for pair in pairs]
        assert corrected == sorted(corrected)
        assert all(0 < p <= c <= 1 for p, c in pairs)


def test_without_spread_on_either_side_there_is_no_p_and_the_others_keep_theirs() -> None:
    still, alive = of(0.9, sd=0.0), of(0.92, sd=0.02)
    assert against_best(still, [of(0.8, sd=0.0)]) == [None]
    found = against_best(still, [of(0.8, sd=0.0), alive])
    assert found == [None, *against_best(still, [alive])]
    assert found[1] is not None
    assert found[1][1] > SIGNIFICANT


def test_pareto_front_equals_brute_force() -> None:
    random = np.random.default_rng(3)
    costs, gains = random.integers(0, 20, 60).tolist(), random.integers(0, 20, 60).tolist()

    def beaten(i: int) -> bool:
        return any(
            costs[j] <= costs[i]
            and gains[j] >= gains[i]
            and (costs[j] < costs[i] or gains[j] > gains[i])
            for j in range(60)
        )

    expected = {(costs[i], gains[i]) for i in range(60) if not beaten(i)}
    front = [(costs[i], gains[i]) for i in pareto_front(costs, gains)]
    assert front == sorted(expected)
