"""What each ingredient of a recipe is worth: the recipe against itself without it."""

from __future__ import annotations

from dataclasses import dataclass

from cifar_lab.records.digest import changes_no_result
from cifar_lab.report.compare import Ranking
from cifar_lab.report.groups import Group
from cifar_lab.report.statistics import SIGNIFICANT, Difference, difference, holm

KEY = "ablation"
BARE = "bare"


@dataclass(frozen=True)
class Worth:
    """One ingredient.

    Attributes:
        name: of the ingredient.
        added: it was added to nothing (``only_NAME``), and not left out (``without_NAME``).
        n: runs with it, and without it.
        held_out: accuracy with it minus that without it (a fraction); None: nothing was held out.
        test: the same of the test images.
        seconds: of the fit, likewise: what it costs.
        p: that the accuracy which judges is the same with and without it, Welch's; None without
            spread or a second run.
        of_test: the test's accuracy judges.
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
    of_test: bool

    @property
    def verdict(self) -> str:
        """Whether it helps, by the corrected p."""
        judged = self.test if self.of_test else self.held_out
        if judged is None or self.p_holm is None:
            return "can't be told: give more seeds"
        where = " (test)" if self.of_test and self.held_out is not None else ""
        if self.p_holm >= SIGNIFICANT:
            return f"not more than noise{where}"
        return f"{'helps' if judged.mean > 0 else 'harms'}{where}"


def worths(ranking: Ranking) -> list[Worth]:
    """Of every ingredient that was left out of a recipe, or added to its bare remains.

    Most useful first. Accuracies of held-out images judge where all runs have them, those of the
    test images otherwise, and where the held-out ones are the same seed by seed: what changes
    nothing of the training, as test-time augmentation, shows in the test alone.
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
    return sorted(
        complete, key=lambda w: (w.added, -((w.test if w.of_test else w.held_out) or _NONE).mean)
    )


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
        frozenset(override for override in run.overrides if not _is_of_no_recipe(override))
        for run in group.runs
    }


def _is_of_no_recipe(override: str) -> bool:
    key = override.lstrip("+~").partition("=")[0]
    of_none = key in (KEY, "seed", "resume") or key.startswith("hydra")
    return of_none or (changes_no_result(key) and key != "sweep")  # whose presets set more


def _value(group: Group) -> str | None:
    value = group.runs[0].settings.get(KEY)
    return None if value is None else str(value)


def _worth(name: str, pair: tuple[Group, Group], *, added: bool) -> Worth:
    # pair: with the ingredient, and without it
    held_out = _difference(pair, "selection")
    test = _difference(pair, "test")
    of_test = held_out is None or _same_seed_by_seed(pair)
    judged = test if of_test else held_out
    return Worth(
        name=name,
        added=added,
        n=(len(pair[0].counted), len(pair[1].counted)),
        held_out=held_out,
        test=test,
        seconds=_difference(pair, "fit_s"),
        p=None if judged is None else judged.p,
        p_holm=None,
        of_test=of_test,
    )


def _same_seed_by_seed(pair: tuple[Group, Group]) -> bool:
    first, second = ({str(run.seed): run.selection for run in g.counted} for g in pair)
    common = first.keys() & second.keys()
    return bool(common) and all(first[seed] == second[seed] for seed in common)


def _difference(pair: tuple[Group, Group], name: str) -> Difference | None:
    with_it, without = ([getattr(run, name) for run in group.counted] for group in pair)
    if not with_it or not without or None in (*with_it, *without):
        return None
    return difference(with_it, without)
