"""Runs that differ by the seed alone are one configuration; what varies gives it its name."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from cifar_lab.records.digest import key_of
from cifar_lab.report.read import Run
from cifar_lab.report.statistics import Estimate, estimate

# What a reader looks for first, as an axis and as lines.
_FIRST_KEYS = ("optimizer.lr", "model.num_blocks")
_MISSING = "–"  # noqa: RUF001  (an en dash: a configuration without this key)


@dataclass(frozen=True)
class Key:
    """A key that varies between configurations and tells them apart.

    Attributes:
        name: short and unambiguous, e.g. ``lr``.
        levels: every value as text, in order; different values never have the same.
        numeric: all values are numbers.
        log: an axis of it is better logarithmic.
        texts: the level of each value (as JSON).
    """

    key: str
    name: str
    levels: tuple[str, ...]
    numeric: bool
    log: bool
    texts: Mapping[str, str]


@dataclass(frozen=True, eq=False)
class Group:
    """One configuration: its runs from all seeds.

    Attributes:
        label: what tells it apart, e.g. ``lr=0.03 num_blocks=[1,1]``.
        values: by key, what tells it apart as plain values.
        counted: the finished runs that the statistics are of, one a seed (the latest).
        repeated: finished runs that aren't counted because their seed is counted already.
    """

    label: str
    values: Mapping[str, Any]
    data: str | None
    data_name: str
    runs: tuple[Run, ...]
    counted: tuple[Run, ...]
    repeated: tuple[Run, ...]

    @cached_property
    def selection(self) -> Estimate | None:
        """Of the held-out accuracy, where every counted run has one."""
        return _estimate([run.selection for run in self.counted])

    @cached_property
    def test(self) -> Estimate | None:
        """Of the test accuracy, where every counted run has one."""
        return _estimate([run.test for run in self.counted])

    def mean(self, name: str) -> float | None:
        """The mean over the counted runs of ``parameters``, ``fit_s`` or ``images_per_s``."""
        found = _estimate([getattr(run, name) for run in self.counted])
        return None if found is None else found.mean


def group(runs: Sequence[Run]) -> tuple[list[Group], list[Key]]:
    """The configurations, in the order of their first run, and the keys that name them.

    Two runs are of one configuration if everything but the seed, and the data set's bytes, are
    the same. A run that ended before its data were read belongs to those with its configuration.
    """
    members: dict[tuple[str, str | None], list[Run]] = {}
    texts = {run.name: _text(run.settings) for run in runs}
    known: dict[str, str] = {}
    for run in runs:
        if run.data is not None:
            known.setdefault(texts[run.name], run.data)
    for run in runs:
        settings = texts[run.name]
        members.setdefault((settings, run.data or known.get(settings)), []).append(run)
    keys = _naming_keys([runs[0] for runs in members.values()])
    names = dict(zip(keys, _short_names(keys), strict=True))
    labels: dict[str, int] = {}
    groups = []
    for (_, data), its_runs in members.items():
        label = _label(its_runs[0], names, precision=4)
        labels[label] = labels.get(label, 0) + 1
        if labels[label] > 1:  # e.g. two learning rates alike in four digits, or other data
            label = f"{_label(its_runs[0], names, precision=17)} ({labels[label]})"
        groups.append(_group(label, data, its_runs, keys))
    return groups, [_key(key, names[key], groups) for key in keys]


def text_of(value: Any, precision: int = 4) -> str:
    """A value as people write it: ``[2,2]``, ``0.03``; of a digest its beginning."""
    if isinstance(value, float):
        return f"{value:.{precision}g}"
    if isinstance(value, list):
        return "[" + ",".join(text_of(item, precision) for item in value) + "]"
    if isinstance(value, bool) or value is None:
        return json.dumps(value)
    return value[:12] if re.fullmatch("[0-9a-f]{64}", str(value)) else str(value)


def _group(label: str, data: str | None, runs: list[Run], keys: Iterable[str]) -> Group:
    counted: dict[str, Run] = {}
    repeated = []
    finished = (run for run in runs if run.status == "finished" and run.test is not None)
    for run in sorted(finished, key=lambda run: str(run.record.ended)):
        # the same seed again is no independent sample
        if (before := counted.get(_text(run.seed))) is not None:
            repeated.append(before)
        counted[_text(run.seed)] = run
    values = {key: _value(runs[0], key) for key in keys}
    named = next((run for run in runs if run.data is not None), runs[0])
    return Group(
        label, values, data, named.data_name, tuple(runs), tuple(counted.values()), tuple(repeated)
    )


def _naming_keys(runs: Sequence[Run]) -> list[str]:
    """As few keys as tell all of ``runs`` apart; those that were typed come first."""
    if len(runs) < 2:
        return []
    everything = dict.fromkeys(key for run in runs for key in run.settings)
    columns = {key: [_text(run.settings.get(key, _MISSING)) for run in runs] for key in everything}
    varied = [key for key, column in columns.items() if len(set(column)) > 1]
    typed = {key_of(override) for run in runs for override in run.overrides}
    rank = {key: _rank(key, typed) for key in varied}
    kept: list[str] = []
    told_apart, parts = 1, [""] * len(runs)
    for key in sorted(varied, key=lambda key: rank[key]):
        finer = [f"{part}\0{value}" for part, value in zip(parts, columns[key], strict=True)]
        if len(set(finer)) > told_apart:
            kept.append(key)
            told_apart, parts = len(set(finer)), finer
    return kept


def _rank(key: str, typed: set[str]) -> tuple[int, int, str]:
    first = _FIRST_KEYS.index(key) if key in _FIRST_KEYS else len(_FIRST_KEYS)
    group_typed = key.endswith("._target_") and key.removesuffix("._target_") in typed
    return (0 if key in typed else 1 if group_typed else 2), first, key


def _short_names(keys: Sequence[str]) -> list[str]:
    """The last word of each key, or as many as make it unique; ``model._target_`` is ``model``."""
    words = [key.removesuffix("._target_").split(".") for key in keys]
    names = []
    for own in words:
        length = 1
        while length < len(own) and sum(w[-length:] == own[-length:] for w in words) > 1:
            length += 1
        names.append(".".join(own[-length:]))
    return names


def _label(run: Run, names: Mapping[str, str], precision: int) -> str:
    if not names:
        own = [o for o in run.overrides if not o.startswith(("hydra.", "seed=", "resume="))]
        own = [o for o in own if not _is_path(o)]
        return " ".join(own) or "defaults"
    return " ".join(
        f"{name}={_shown(key, _value(run, key), precision)}" for key, name in names.items()
    )


def _is_path(override: str) -> bool:
    """Whether an override says where something lies, not what is computed."""
    return override.lstrip("+").startswith(
        ("data.root=", "data.cache=", "logger=", "monitors=", "slots=")
    )


def _shown(key: str, value: Any, precision: int = 4) -> str:
    text = text_of(value, precision)
    return text.rpartition(".")[2] if key.endswith("_target_") else text


def _value(run: Run, key: str) -> Any:
    return run.settings.get(key, _MISSING)


def _key(key: str, name: str, groups: Sequence[Group]) -> Key:
    values = {_text(group.values[key]): group.values[key] for group in groups}
    numeric = all(isinstance(v, int | float) and not isinstance(v, bool) for v in values.values())
    ordered = sorted(values.values(), key=_order)
    log = numeric and min(ordered) > 0 and max(ordered) >= 8 * min(ordered)
    texts = {_text(value): _shown(key, value) for value in ordered}
    # were two the same, a line or a cell would be a mean over them
    if len(set(texts.values())) < len(texts):
        texts = {_text(value): text_of(value, precision=17) for value in ordered}
    if len(set(texts.values())) < len(texts):  # a number, and the same as a word
        texts = {text: text for text in texts}
    return Key(key, name, tuple(texts.values()), numeric, log, texts)


def _order(value: Any) -> tuple[Any, ...]:
    if isinstance(value, int | float):
        return (0, value, "")
    if isinstance(value, list) and all(isinstance(item, int | float) for item in value):
        return (1, len(value), value)
    return (2, 0, str(value))


def level_of(key: Key, group: Group) -> str:
    """The group's value of ``key`` as in ``key.levels``."""
    return key.texts[_text(group.values[key.key])]


def _estimate(values: Sequence[float | None]) -> Estimate | None:
    known = [value for value in values if value is not None]
    return estimate(known) if known and len(known) == len(values) else None


def _text(value: Any) -> str:
    return json.dumps(value, sort_keys=True, default=str)
