"""Which configuration is best on a data set, and whether its lead is more than noise."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache

import numpy as np
from numpy.typing import NDArray

from cifar_lab.report.groups import Group, Key
from cifar_lab.report.read import Reading, Run
from cifar_lab.report.statistics import SIGNIFICANT, Estimate, against_best, mcnemar

# How many configurations, the best first, get a confusion matrix; of more classes than these, whose
# matrix has a million numbers in the end, the best alone.
CONFUSIONS, MANY_CLASSES = 5, 100
# the labels of a run's test images, and which of them it had right; None without predictions
_Right = tuple[NDArray[np.int64], NDArray[np.bool_]] | None


@dataclass(frozen=True, eq=False)
class Comparison:
    """The best configuration against one other.

    Attributes:
        difference: of the mean test accuracies, the best's minus the other's (fractions).
        test: ``Welch`` of the configurations, ``McNemar`` of one trained network each, or ``none``.
        p: uncorrected and two-sided; None without a test.
        p_adjusted: corrected for the choice of the best.
        family: how many were compared for that, the best one included.
        why: what was compared, or why nothing could be.
        pair: of the two networks that McNemar's test compared, how many more images the best's has
            right; None without that test. Its sign may differ from that of `difference`.
    """

    other: Group
    difference: float
    test: str
    why: str
    p: float | None = None
    p_adjusted: float | None = None
    family: int = 0
    pair: int | None = None

    @property
    def told_apart(self) -> bool:
        """Whether the configurations differ by more than noise: two networks alone never say so."""
        p = self.p_adjusted
        return self.test == "Welch" and p is not None and p < SIGNIFICANT


@dataclass(frozen=True, eq=False)
class Ranking:
    """The configurations on one data set, best first.

    Attributes:
        data: SHA-256 of the dataset; None where no run read it.
        data_name: name, and the start of the digest where a name stands for several data sets.
        held_out: selected by the held-out accuracy; False: by the test's, as nothing was held out.
        ranked: configurations that can be compared.
        unranked: those without a finished run, or without a held-out accuracy when others have one.
        comparisons: of the first with each further one, in their order.
    """

    data: str | None
    data_name: str
    held_out: bool
    ranked: tuple[Group, ...]
    unranked: tuple[Group, ...]
    comparisons: tuple[Comparison, ...]


def rank(groups: Sequence[Group]) -> list[Ranking]:
    """One ranking for each data set; the one with most finished runs comes first."""
    by_data: dict[str | None, list[Group]] = {}
    for group in groups:
        by_data.setdefault(group.data, []).append(group)
    names = [its[0].data_name for its in by_data.values()]
    rankings = []
    for data, its_groups in by_data.items():
        name = its_groups[0].data_name
        if names.count(name) > 1:
            name += " (not read)" if data is None else f" {data[:8]}"
        rankings.append(_rank_one(data, name, its_groups))
    return sorted(rankings, key=lambda r: -sum(len(group.counted) for group in r.ranked))


def selected_by(ranking: Ranking) -> str:
    """The metric that selects: never the test's where something was held out."""
    return "val/acc" if ranking.held_out else "test/acc"


def selection(ranking: Ranking, group: Group) -> Estimate | None:
    """The accuracy that this ranking sorts ``group`` by."""
    return group.selection if ranking.held_out else group.test


def _rank_one(data: str | None, name: str, groups: list[Group]) -> Ranking:
    held_out = any(group.selection is not None for group in groups)
    metric = {id(group): group.selection if held_out else group.test for group in groups}
    ranked = [group for group in groups if metric[id(group)] is not None]
    ranked.sort(key=lambda group: -metric[id(group)].mean)  # type: ignore[union-attr]  # not None
    unranked = [group for group in groups if metric[id(group)] is None]
    return Ranking(data, name, held_out, tuple(ranked), tuple(unranked), _compare(ranked))


def _compare(ranked: Sequence[Group]) -> tuple[Comparison, ...]:
    """The first against each other, all by the same test.

    Which one is a matter of how many seeds there are, never of who is best: choosing the test by
    the result would be a second chance of a false alarm.
    """
    if len(ranked) < 2:
        return ()
    repeated = sum(len(group.counted) > 1 for group in ranked)
    return _compare_seeds(ranked) if repeated > 1 else _compare_networks(ranked)


def _compare_seeds(ranked: Sequence[Group]) -> tuple[Comparison, ...]:
    """By Welch's test on the test accuracies of the seeds; one seed alone has no spread."""
    best, *others = ranked
    assert best.test is not None
    tested = [g for g in others if g.test is not None and min(g.test.n, best.test.n) > 1]
    estimates = [group.test for group in tested if group.test is not None]
    found = dict(zip(map(id, tested), against_best(best.test, estimates), strict=True))
    family = 1 + sum(p is not None for p in found.values())
    comparisons = []
    for other in others:
        seeds = f"{len(best.counted)} and {len(other.counted)} seeds"
        if (p := found.get(id(other))) is None:
            why = f"no spread between the {seeds}" if id(other) in found else f"only {seeds}"
            comparisons.append(Comparison(other, _difference(best, other), "none", why))
            continue
        why = f"test accuracies of {seeds}"
        comparisons.append(
            Comparison(other, _difference(best, other), "Welch", why, p[0], p[1], family)
        )
    return tuple(comparisons)


def _compare_networks(ranked: Sequence[Group]) -> tuple[Comparison, ...]:
    """By McNemar's test on the predictions of one run each: says nothing of another seed."""
    best, *others = ranked
    right = cache(_right)  # each file is read once
    found = [_one_run_each(best, other, right) for other in others]
    family = 1 + sum(one.p is not None for one in found)
    # Bonferroni's correction, over all pairs: any of them could have become the best one's
    pairs = family * (family - 1) / 2
    return tuple(
        one if one.p is None else replace(one, p_adjusted=min(1.0, one.p * pairs), family=family)
        for one in found
    )


def _one_run_each(best: Group, other: Group, right: Callable[[Run], _Right]) -> Comparison:
    difference = _difference(best, other)
    a, b = _pair(best, other)
    mine, its = right(a), right(b)
    if mine is None or its is None or not np.array_equal(mine[0], its[0]):
        seeds = f"only {len(best.counted)} and {len(other.counted)} seeds"
        missing = "predictions are missing or of other test images"
        return Comparison(other, difference, "none", f"{seeds}, and {missing}")
    p, only_a, only_b = mcnemar(mine[1], its[1])
    why = (
        f"one run of each on the same {len(mine[0]):,} test images (seeds {a.seed} and {b.seed}); "
        f"{only_a} right in the first only, {only_b} in the second only"
    )
    return Comparison(other, difference, "McNemar", why, p, pair=only_a - only_b)


def _difference(best: Group, other: Group) -> float:
    assert best.test is not None
    assert other.test is not None
    return best.test.mean - other.test.mean


def _right(run: Run) -> _Right:
    found = run.predictions()
    return None if found is None else (found.labels, found.labels == found.said)


def _pair(best: Group, other: Group) -> tuple[Run, Run]:
    """A run of each, of the same seed where both have one; which one is not a choice by result."""
    theirs = {str(run.seed): run for run in _by_seed(other)}
    for run in _by_seed(best):
        if str(run.seed) in theirs:
            return run, theirs[str(run.seed)]
    return _by_seed(best)[0], _by_seed(other)[0]


def _by_seed(group: Group) -> list[Run]:
    return sorted(group.counted, key=lambda run: (not isinstance(run.seed, int), str(run.seed)))


def best_run(ranking: Ranking) -> Run:
    """The run of the best configuration with the highest accuracy that selects."""
    return max(
        ranking.ranked[0].counted,
        key=lambda run: (run.selection if ranking.held_out else run.test) or 0.0,
    )


def indistinguishable(ranking: Ranking) -> list[Group]:
    """The configurations whose difference to the best is not more than noise, best first."""
    return [c.other for c in ranking.comparisons if not c.told_apart]


@dataclass(frozen=True, eq=False)
class Confusion:
    """How the runs of one configuration classified the test images.

    Attributes:
        counts: (C, C) test images: true class (rows) and predicted one (columns), of all ``runs``.
        classes: their C names.
    """

    label: str
    runs: int
    counts: NDArray[np.int64]
    classes: tuple[str, ...]


def confusions(ranking: Ranking) -> list[Confusion]:
    """The best configurations' confusion matrices, those that have saved predictions."""
    found = []
    for group in ranking.ranked[:CONFUSIONS]:
        predictions = [a for run in group.counted if (a := run.predictions()) is not None]
        if not predictions:
            continue
        # the same images in all runs: the names of one are those of the others
        classes = max((one.classes for one in predictions), key=len)
        counts = np.zeros((len(classes), len(classes)), np.int64)
        for one in predictions:
            np.add.at(counts, (one.labels, one.said), 1)
        found.append(Confusion(group.label, len(predictions), counts, classes))
        if len(classes) > MANY_CLASSES:
            break
    return found


@dataclass(frozen=True, eq=False)
class Report:
    """What was read below a folder, and what follows from it."""

    title: str
    reading: Reading
    groups: Sequence[Group]
    keys: Sequence[Key]
    rankings: Sequence[Ranking]
    confusions: Sequence[Sequence[Confusion]]
