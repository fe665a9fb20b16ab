"""The report's sentences: the verdict, the command, the failures, and what to mind."""

from __future__ import annotations

import shlex
from collections.abc import Sequence

from cifar_lab.report.compare import SIGNIFICANT, Ranking
from cifar_lab.report.groups import Group
from cifar_lab.report.read import Run
from cifar_lab.report.statistics import Estimate


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
    next_one, count = ranking.comparisons[0], len(ranking.comparisons)
    points = f"{100 * next_one.difference:+.1f} points of test accuracy"
    against = f"Against the next, {next_one.other.label}: {points}"
    if next_one.p_holm is None:
        return f"{against}; no test is possible ({next_one.why})."
    detail = (
        f"{'Welch' if next_one.test == 'Welch' else 'exact McNemar'} test, {next_one.why}: "
        f"p = {p_text(next_one.p_holm)}"
        + (f" after Holm's correction for {count} comparisons" if count > 1 else "")
    )
    if next_one.p_holm >= SIGNIFICANT:
        return f"{against}. That is not more than noise ({detail})."
    if next_one.pair is not None:  # says nothing of other seeds, whose mean may point elsewhere
        side = "better" if next_one.pair > 0 else "worse"
        return (
            f"{against}. Of these two trained networks it is the {side}, beyond noise ({detail})."
        )
    side = "better" if next_one.difference > 0 else "worse, though validation prefers it"
    return f"{against}. It is {side}, beyond noise ({detail})."


def p_text(p: float) -> str:
    """A p value with two digits, or a bound."""
    return "< 0.0001" if p < 1e-4 else f"{p:.2g}" if p < 0.1 else f"{p:.2f}"


def spread_text(value: Estimate | None, decimals: int = 1) -> str:
    """``93.4 ± 0.2 %`` (mean and standard deviation), ``93.4 %`` for one run, or a dash."""
    if value is None:
        return "–"  # noqa: RUF001  (an en dash: nothing)
    mean = f"{100 * value.mean:.{decimals}f}"
    return f"{mean} %" if value.sd is None else f"{mean} ± {100 * value.sd:.{decimals}f} %"


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


def notes(groups: Sequence[Group], rankings: Sequence[Ranking]) -> list[str]:
    """What a careful reader should know before believing the tables."""
    counted = [run for group in groups for run in group.counted]
    found = [
        f"{len(versions)} versions of the code are compared ({', '.join(sorted(versions))})"
        for versions in [{_code(run) for run in counted}]
        if len(versions) > 1
    ]
    devices = sorted({str(run.record.get("device")) for run in counted})
    if len(devices) > 1:
        found.append(f"times are of different devices: {'; '.join(devices)}")
    if repeated := sum(len(group.repeated) for group in groups):
        found.append(f"{repeated} finished runs repeat a seed of their configuration: not counted")
    lost = sum(
        1 for g in groups if g.counted and any(r.status in ("failed", "diverged") for r in g.runs)
    )
    if lost:
        found.append(
            f"{lost} configurations have means of the seeds that survived: others failed or "
            "diverged"
        )
    for ranking in rankings:
        if ranking.ranked and not ranking.held_out:
            found.append(
                f"{ranking.data_name}: nothing was held out, so the best is selected by test "
                "accuracy: its test accuracy is too high by that choice; set data.val_size"
            )
        without = [g for g in ranking.unranked if g.counted]
        if ranking.held_out and without:
            found.append(
                f"{ranking.data_name}: {len(without)} configurations held nothing out and are not "
                "ranked with the others"
            )
    return found


def _code(run: Run) -> str:
    git = run.record.get("git")
    if not isinstance(git, dict) or not git.get("sha"):
        return "unknown"
    return str(git["sha"])[:7] + (" with changes" if git.get("dirty") else "")
