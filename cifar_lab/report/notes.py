"""What a careful reader should know before believing the tables."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

from cifar_lab.errors import listed
from cifar_lab.records.environment import PACKAGES
from cifar_lab.records.record import Start
from cifar_lab.report.ablation import unpaired
from cifar_lab.report.compare import Ranking
from cifar_lab.report.groups import Group, text_of
from cifar_lab.report.read import Run

# Of the packages in a record, those whose version may change a result.
_PACKAGES = ("cifar-lab", "torch", "torchvision", "lightning", "numpy")
# Settings that leave out test images, and the values that leave out none.
_TEST_PARTS: Mapping[str, Any] = {"trainer.limit_test_batches": 1.0, "trainer.fast_dev_run": False}
# What decides on which images the best is selected.
_HELD_OUT = ("data.val_size", "data.val_seed", "trainer.limit_val_batches", "trainer.fast_dev_run")
_list = partial(listed, most=4)


def notes(groups: Sequence[Group], rankings: Sequence[Ranking]) -> list[str]:
    """Sentences without a full stop, on what is compared or averaged though it differs."""
    found = []
    if repeated := [run.name for group in groups for run in group.repeated]:
        found.append(
            "finished runs that repeat a seed of their configuration, of which the latest alone "
            f"counts: {_list(repeated)}"
        )
    untested = [
        run.name for g in groups for run in g.runs if run.status == "finished" and run.test is None
    ]
    if untested:
        found.append(f"finished runs without a test accuracy, not counted: {_list(untested)}")
    departed = [
        f"{run.name} ({departure})"
        for group in groups
        for run in group.counted
        for departure in run.record.departures[:1]
    ]
    if departed:
        found.append(f"runs that were not made as configured, and count: {_list(departed)}")
    if lost := [group.label for group in groups if _has_lost_seeds(group)]:
        found.append(
            "means of the seeds that survived, others failed, diverged or were pruned: "
            + _list(lost)
        )
    uneven = [
        f"{group.label} ({min(epochs):g} to {max(epochs):g} epochs)"
        for group in groups
        if len(epochs := {run.epochs for run in group.counted if run.epochs is not None}) > 1
    ]
    if uneven:
        found.append(
            "means over runs of different lengths, and mean curves whose ends are of the longer "
            f"ones: {_list(uneven)}"
        )
    for ranking in rankings:
        prefix = f"{ranking.data_name}: " if len(rankings) > 1 else ""
        found += [prefix + note for note in (*_provenance(ranking), *_images(ranking))]
        if alone := [group.label for group in unpaired(ranking)]:
            found.append(
                f"{prefix}not in the table of ingredients, for want of one configuration with, or "
                f"without, them that was typed alike: {_list(alone)}"
            )
    return found


def _has_lost_seeds(group: Group) -> bool:
    """Whether a seed ended without a result, and no other run of it finished."""
    finished = {str(run.seed) for run in group.counted}
    ends = ("failed", "diverged", "pruned")
    return bool(finished) and any(
        run.status in ends and str(run.seed) not in finished for run in group.runs
    )


# --- what the runs were made by ------------------------------------------------------------------


def _provenance(ranking: Ranking) -> Iterator[str]:
    groups = [group for group in (*ranking.ranked, *ranking.unranked) if group.counted]
    yield from _mixed("results are of {} versions of the code", groups, _code)
    for name in _PACKAGES:
        subject = f"results are of {{}} versions of {name}"
        yield from _mixed(subject, groups, partial(_version, name))
    yield from _own_code(groups)
    yield from _mixed("times are of {} devices", groups, _device)
    runs = [run for group in groups for run in group.counted]
    unclear = [run for run in runs if any("unknown changes" in _code(s) for s in run.starts)]
    if unclear and len(runs) > 1:
        yield (
            "uncommitted changes that the record doesn't identify, so that the code may differ "
            f"from run to run: {_list([run.name for run in unclear])}"
        )


def _own_code(groups: Sequence[Group]) -> Iterator[str]:
    """Of modules and packages that only some configurations have parts of."""
    having: dict[str, list[Group]] = {}
    for group in groups:
        packages = (start.packages for run in group.counted for start in run.starts)
        for name in sorted(set().union(*packages) - set(PACKAGES)):
            having.setdefault(name, []).append(group)
    for name, its in having.items():
        yield from _mixed(f"results are of {{}} versions of {name}", its, partial(_version, name))


def _mixed(subject: str, groups: Sequence[Group], of: Callable[[Start], str]) -> Iterator[str]:
    """A note if ``of`` differs between starts: where each value is, and where they are mixed."""
    labels: dict[str, list[str]] = {}
    averaged, continued = [], []
    for group in groups:
        values = {run.name: {of(start) for start in run.starts} for run in group.counted}
        together = set().union(*values.values())
        for value in sorted(together):
            labels.setdefault(value, []).append(group.label)
        if len(together) > 1 and len(values) > 1:
            averaged.append(group.label)
        continued += [name for name, its in values.items() if len(its) > 1]
    if len(labels) < 2:
        return
    each = "; ".join(f"{value} ({_list(labels[value])})" for value in sorted(labels))
    note = f"{subject.format(len(labels))}: {each}"
    if averaged:
        note += f". Means over more than one: {_list(averaged)}"
    if continued:
        note += f". Begun with one, continued with another: {_list(continued)}"
    yield note


def _code(start: Start) -> str:
    git = start.git
    if git is None or not git.sha:
        return "unknown"
    sha = git.sha[:7]
    if not git.dirty:
        return sha
    return f"{sha} with changes {git.diff}" if git.diff else f"{sha} with unknown changes"


def _version(name: str, start: Start) -> str:
    return start.packages.get(name, "unknown")


def _device(start: Start) -> str:
    device = str(start.device)
    # a GPU's times hardly depend on its threads
    on_cpu = start.threads and device.startswith("cpu")
    return f"{device}, threads={start.threads}" if on_cpu else device


# --- what they were measured on ------------------------------------------------------------------


def _images(ranking: Ranking) -> Iterator[str]:
    parts: dict[str, list[str]] = {}
    for group in ranking.ranked:
        part = " ".join(_test_part(group.runs[0]))
        parts.setdefault(part, []).append(group.label)
    if set(parts) - {""}:
        each = "; ".join(f"{part or 'all images'} ({_list(parts[part])})" for part in parts)
        unequal = ", and not of the same part" if len(parts) > 1 else ""
        yield f"test accuracies are of a part of the test images{unequal}: {each}"
    if not ranking.held_out:
        if ranking.ranked:
            yield (
                "nothing was held out, so the best is selected by test accuracy: its test "
                "accuracy is too high by that choice; set data.val_size"
            )
        return
    varied = [
        f"{key}={' and '.join(levels)}"
        for key in _HELD_OUT
        if len(levels := sorted({_setting(group.runs[0], key) for group in ranking.ranked})) > 1
    ]
    if varied:
        yield f"the best is selected by accuracies on different images: {', '.join(varied)}"
    if without := [group.label for group in ranking.unranked if group.counted]:
        yield (
            "not ranked with the others, for lack of a validation accuracy of every seed: "
            + _list(without)
        )


def _test_part(run: Run) -> Iterator[str]:
    for key, whole in _TEST_PARTS.items():
        value = run.settings.get(key)
        # 1 is one batch, 1.0 all of them
        if value is not None and (value != whole or type(value) is not type(whole)):
            yield f"{key}={text_of(value)}"


def _setting(run: Run, key: str) -> str:
    value = run.settings.get(key)
    return repr(value) if isinstance(value, float) else text_of(value)
