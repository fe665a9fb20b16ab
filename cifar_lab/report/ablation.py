"""What each ingredient of a recipe is worth: the recipe against itself without it."""

from __future__ import annotations

from dataclasses import dataclass

from cifar_lab.records.digest import changes_no_result, key_of
from cifar_lab.report.compare import Ranking
from cifar_lab.report.groups import Group
from cifar_lab.report.statistics import SIGNIFICANT, Difference, difference, holm

KEY = "ablation"
BARE = "bare"
# What the test does and a validation doesn't: held-out accuracies know nothing of it.
_OF_THE_TEST = frozenset({"tta"})


@dataclass(frozen=True)
class Worth:
    """One ingredient.

    Attributes:
        name: of the ingredient.
        added: it was added to nothing (``only_NAME``), and not left out (``without_NAME``).
        n: runs with it, and without it.
        held_out: accuracy with it minus that without it (a fraction); None: nothing was held out,
            or the ingredient acts in the test alone.
        test: the same of the test images.
        seconds: of the fit, likewise: what it costs.
        p: that the accuracy which judges is the same with and without it, Welch's; None without
            spread or a second run.
        p_holm: corrected for all ingredients of the table.
    """

    name: str
    added: bool
    n: tuple[int, int]
    held_out: Difference | None
    test: Difference | None
    seconds: Difference | None
    p: float | None
    p_holm: float | None

    @property
    def verdict(self) -> str:
        """Whether it helps, by the corrected p."""
        judged = self.held_out or self.test
        if judged is None or self.p_holm is None:
            return "can't be told: give more seeds"
        if self.p_holm >= SIGNIFICANT:
            return "not more than noise"
        return "helps" if judged.mean > 0 else "harms"


def worths(ranking: Ranking) -> list[Worth]:
    """Of every ingredient that was left out of a recipe, or added to its bare remains.

    Most useful first. Accuracies of held-out images judge where all runs have them, those of the
    test images otherwise, and of what acts there alone, as test-time augmentation does.
    """
    found = []
    for group in _ablated(ranking):
        whole = _partner(group, ranking)
        if whole is not None:
            mode, _, name = str(_value(group)).partition("_")
            pair = (whole, group) if mode == "without" else (group, whole)
            found.append(_worth(name, pair, added=mode == "only"))
    corrected = iter(holm([worth.p for worth in found if worth.p is not None]))
    complete = [
        worth if worth.p is None else Worth(**{**vars(worth), "p_holm": next(corrected)})
        for worth in found
    ]
    return sorted(complete, key=lambda w: (w.added, -(w.held_out or w.test or _NONE).mean))


_NONE = Difference(float("-inf"), None, None, None)


def unpaired(ranking: Ranking) -> list[Group]:
    """Of the ablated configurations those that nothing can be held against."""
    return [group for group in _ablated(ranking) if _partner(group, ranking) is None]


def _ablated(ranking: Ranking) -> list[Group]:
    groups = (*ranking.ranked, *ranking.unranked)
    return [g for g in groups if str(_value(g)).startswith(("without_", "only_"))]


def _partner(group: Group, ranking: Ranking) -> Group | None:
    """The recipe as it is, or bare; None where that isn't one configuration typed alike.

    A record says what was left out, and not by which settings: two recipes differ in those too.
    """
    wanted = None if str(_value(group)).startswith("without_") else BARE
    own = _recipes(group)
    groups = [g for g in (*ranking.ranked, *ranking.unranked) if own & _recipes(g)]
    alike = [g for g in groups if _value(g) == _value(group)]
    partners = [g for g in groups if _value(g) == wanted]
    return partners[0] if len(partners) == len(alike) == 1 else None


def _recipes(group: Group) -> set[frozenset[str]]:
    """What was typed of the recipe, in any of the runs."""
    return {
        frozenset(o for o in run.overrides if not _is_of_no_recipe(key_of(o))) for run in group.runs
    }


def _is_of_no_recipe(key: str) -> bool:
    of_none = key in (KEY, "seed", "resume") or key.startswith("hydra")
    return of_none or (changes_no_result(key) and key != "sweep")  # whose presets set more


def _value(group: Group) -> str | None:
    value = group.runs[0].settings.get(KEY)
    return None if value is None else str(value)


def _worth(name: str, pair: tuple[Group, Group], *, added: bool) -> Worth:
    # pair: with the ingredient, and without it
    held_out = None if _acts_in_the_test_alone(pair) else _difference(pair, "selection")
    test = _difference(pair, "test")
    judged = held_out or test
    return Worth(
        name=name,
        added=added,
        n=(len(pair[0].counted), len(pair[1].counted)),
        held_out=held_out,
        test=test,
        seconds=_difference(pair, "fit_s"),
        p=None if judged is None else judged.p,
        p_holm=None,
    )


def _acts_in_the_test_alone(pair: tuple[Group, Group]) -> bool:
    one, other = (group.runs[0].settings for group in pair)
    differ = {key for key in {*one, *other} if one.get(key) != other.get(key)}
    return {KEY} < differ <= {KEY} | _OF_THE_TEST


def _difference(pair: tuple[Group, Group], name: str) -> Difference | None:
    with_it, without = ([getattr(run, name) for run in group.counted] for group in pair)
    if not with_it or not without or None in (*with_it, *without):
        return None
    return difference(with_it, without)
