"""The report's sentences: the verdict, the method, the command, the failures."""

from __future__ import annotations

import shlex
from collections.abc import Sequence

from cifar_lab.report.compare import Ranking, indistinguishable
from cifar_lab.report.groups import Group
from cifar_lab.report.read import Run
from cifar_lab.report.statistics import SIGNIFICANT, Estimate


def repeat_command(run: Run) -> str:
    """The command that does ``run`` again, in a folder of its own, quoted for a shell."""
    kept = [
        override
        for override in run.overrides
        if not override.startswith(("hydra.run.", "hydra.sweep.", "resume="))
    ]
    return shlex.join(["python", "-m", "cifar_lab", *kept])


def verdict(ranking: Ranking) -> str:
    """One sentence: is the best better than the next, by which test, after what correction."""
    if not ranking.ranked:
        return "No run has finished."
    if not ranking.comparisons:
        return "Nothing to compare it with."
    next_one = ranking.comparisons[0]
    points = f"{100 * next_one.difference:+.1f} points of test accuracy"
    against = f"Against the next, {next_one.other.label}: {points}"
    if next_one.p_adjusted is None:
        return f"{against}; no test is possible ({next_one.why})."
    name = "Welch's t test" if next_one.test == "Welch" else "exact McNemar test"
    detail = f"{name}, {next_one.why}: p = {p_text(next_one.p_adjusted)}"
    if next_one.family > 2:
        detail += f", corrected for the choice of the best of {next_one.family}"
    if next_one.pair is not None:
        # of the configurations nothing: another seed's networks may differ the other way round
        if next_one.p_adjusted >= SIGNIFICANT:
            return f"{against}. That is not more than noise ({detail})."
        side = "better" if next_one.pair > 0 else "worse"
        return (
            f"{against}. Of these two trained networks it is the {side}, beyond noise ({detail}); "
            "whether its configuration is, one run each can't tell: give more seeds."
        )
    if not next_one.told_apart:
        return f"{against}. That is not more than noise ({detail})."
    side = "better" if next_one.difference > 0 else "worse, though validation prefers it"
    return f"{against}. It is {side}, beyond noise ({detail})."


def alike(ranking: Ranking) -> str:
    """How many configurations can't be told from the best; empty where there is none other."""
    if not (count := len(ranking.comparisons)):
        return ""
    same = len(indistinguishable(ranking))
    return f"{same} of the {count} others can't be told from it by these runs."


def method(ranking: Ranking) -> str:
    """Which test compared the configurations, and what it assumes; empty where none did."""
    tests = {comparison.test for comparison in ranking.comparisons}
    if "Welch" in tests:
        return (
            "Compared by Welch's t test on the test accuracies of the seeds; p is corrected for "
            "the choice of the best: the share of simulated comparisons of configurations that "
            "are all alike, the best chosen by its test accuracy, with a difference as clear. "
            "Assumes independent seeds with about normally distributed accuracies."
        )
    if "McNemar" in tests:
        return (
            "Compared by McNemar's exact test on the predictions of one trained network each, p "
            "times the number of pairs (Bonferroni). Says nothing of the configurations: "
            "another seed gives another network."
        )
    return ""


def selected_note(ranking: Ranking) -> str:
    """By what the best was chosen, and what that does to its test accuracy."""
    if not ranking.held_out:
        return "Selected by test accuracy, because nothing was held out: it is too high by that."
    text = "Selected by validation accuracy; the test accuracy took no part"
    if not ranking.comparisons:
        return f"{text}."
    return (
        f"{text}. But a seed that is lucky in validation is so in the test too: of the best of "
        f"{len(ranking.ranked)}, new seeds are likely to test a little lower."
    )


def p_text(p: float) -> str:
    """A p value with two digits, or a bound."""
    return "< 0.0001" if p < 1e-4 else f"{p:.2g}" if p < 0.1 else f"{p:.2f}"


def spread_text(value: Estimate | None) -> str:
    """``93.4 ± 0.2 %`` (mean and standard deviation), ``93.4 %`` for one run, or a dash."""
    if value is None:
        return "–"  # noqa: RUF001  (an en dash: nothing)
    mean = f"{100 * value.mean:.1f}"
    return f"{mean} %" if value.sd is None else f"{mean} ± {100 * value.sd:.1f} %"


def interval_text(value: Estimate | None) -> str:
    """``93.1 to 93.7 %``, or a dash where one run gives none."""
    if value is None or value.low is None or value.high is None:
        return "–"  # noqa: RUF001  (likewise)
    # no accuracy lies beyond: what Student's t says there is cut off
    return f"{100 * max(0.0, value.low):.1f} to {100 * min(1.0, value.high):.1f} %"


def failures(groups: Sequence[Group]) -> list[Run]:
    """Runs that ended without a result, with their reason in ``error``."""
    ends = ("failed", "diverged", "interrupted", "pruned")
    return [run for group in groups for run in group.runs if run.status in ends]
