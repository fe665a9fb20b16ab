"""The figures for papers and slides, PNG and SVG, drawn by matplotlib without a display."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter, ScalarFormatter

from cifar_lab.report.ablation import worths
from cifar_lab.report.axes import (
    PALETTE,
    axis_keys,
    mean_curve,
    scale_of,
    time_unit,
    title_of,
    with_values,
)
from cifar_lab.report.compare import Confusion, Ranking, selected_by, selection
from cifar_lab.report.groups import Group, Key, level_of
from cifar_lab.report.statistics import estimate, pareto_front

FORMATS = ("png", "svg")
_LINES = ("-", "--", ":", "-.")
_MARKERS = "osD^vP*X"
_SHOWN = 7  # as many as there are colours
_DOTS = 20
_LEVELS = 12  # of a key, for lines or cells
_NAMED = 100  # classes whose names can be read


def draw_all(
    ranking: Ranking, keys: Sequence[Key], confusions: Sequence[Confusion]
) -> Iterator[tuple[str, Figure]]:
    """(name, figure) of all that the runs on one data set can be shown as."""
    if not ranking.ranked:
        return
    x, lines = axis_keys(keys)
    figures: list[tuple[str, Callable[[], Figure | None]]] = [
        ("learning_curves", lambda: learning_curves(ranking)),
        ("accuracy_over_key", lambda: accuracy_over_key(ranking, keys, x, lines) if x else None),
        ("heat_map", lambda: heat_map(ranking, keys, x, lines) if x and lines else None),
        ("accuracy_over_time", lambda: trade_off(ranking, "fit_s")),
        ("accuracy_over_parameters", lambda: trade_off(ranking, "parameters")),
        ("seeds", lambda: seeds(ranking)),
        ("ingredients", lambda: ingredients(ranking)),
        ("confusion_matrix", lambda: confusion_matrix(confusions[0]) if confusions else None),
    ]
    with mpl.rc_context(_STYLE):
        for name, draw in figures:
            if (figure := draw()) is not None:
                yield name, figure


# Any: matplotlib types the keys one by one, and each version has others
_STYLE: dict[Any, Any] = {
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.25,
    "font.size": 9,
    "legend.frameon": False,
    "legend.fontsize": 8,
    # text stays text, and the same figure gives the same bytes
    "svg.fonttype": "none",
    "svg.hashsalt": "cifar_lab",
}


def saved(figure: Figure, kind: str) -> bytes:
    """The figure as the bytes of a ``png`` or ``svg`` file."""
    buffer = io.BytesIO()
    with mpl.rc_context(_STYLE):
        metadata = {"Date": None} if kind == "svg" else None
        figure.savefig(buffer, format=kind, dpi=150, metadata=metadata)
    return buffer.getvalue()


def _new(width: float = 6.4, height: float = 4.0) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.subplots()


def learning_curves(ranking: Ranking) -> Figure | None:
    """The best configurations' mean curves, with one standard deviation around them."""
    metric = selected_by(ranking) if ranking.held_out else "train/acc"
    figure, axes = _new()
    for index, group in enumerate(ranking.ranked[:_SHOWN]):
        epochs, mean, sd = mean_curve(group.counted, metric)
        mean, sd = mean * scale_of(metric), sd * scale_of(metric)
        color = PALETTE[index]
        axes.plot(epochs, mean, color=color, label=_name(group))
        if len(group.counted) > 1:
            axes.fill_between(epochs, mean - sd, mean + sd, color=color, alpha=0.15, linewidth=0)
    if not any(line.get_xdata().size for line in axes.lines):  # type: ignore[union-attr]  # arrays
        return None
    axes.set(xlabel="epoch", ylabel=title_of(metric), title=_best_of(ranking))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    figure.legend(loc="outside lower center", ncols=2)
    return figure


def accuracy_over_key(ranking: Ranking, keys: Sequence[Key], x: Key, lines: Key | None) -> Figure:
    """Accuracy over a numeric key, each run a dot, a line through the means of each second key.

    Args:
        ranking: of one data set.
        keys: all that differ between its runs.
        x: numeric.
        lines: None: a single line.
    """
    if lines and len(lines.levels) > _LEVELS:
        lines = None
    figure, axes = _new()
    for index, level in enumerate(lines.levels if lines else ("",)):
        its = [g for g in ranking.ranked if lines is None or level_of(lines, g) == level]
        points: dict[float, list[float]] = {}
        for group in its:
            points.setdefault(float(group.values[x.key]), []).extend(_values(ranking, group))
        color, marker = PALETTE[index % 7], _MARKERS[index % 7]
        for value, accuracies in points.items():
            axes.plot([value] * len(accuracies), accuracies, ".", color=color, alpha=0.45)
        means = [estimate(points[value]).mean for value in sorted(points)]
        label = f"{lines.name}={level}" if lines else None
        style = _LINES[index // 7 % 4]
        if lines is None and len(means) > 2 * _LEVELS:
            continue  # a line through a search's scattered points would be a scribble
        axes.plot(sorted(points), means, style, marker=marker, color=color, label=label)
    if x.log:
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 3)))
        axes.xaxis.set_major_formatter(ScalarFormatter())
        axes.xaxis.set_minor_formatter(NullFormatter())
    title = _mean_over(keys, x, lines)
    axes.set(xlabel=x.key, ylabel=title_of(selected_by(ranking)), title=title)
    if lines:
        figure.legend(loc="outside lower center", ncols=3)
    return figure


def heat_map(ranking: Ranking, keys: Sequence[Key], x: Key, y: Key) -> Figure | None:
    """The mean accuracy of the runs at each pair of two keys' values; None if they are many."""
    if max(len(x.levels), len(y.levels)) > _LEVELS:
        return None
    cells: dict[tuple[int, int], list[float]] = {}
    for group in ranking.ranked:
        place = y.levels.index(level_of(y, group)), x.levels.index(level_of(x, group))
        cells.setdefault(place, []).extend(_values(ranking, group))
    grid = np.full((len(y.levels), len(x.levels)), np.nan)
    for place, accuracies in cells.items():
        grid[place] = estimate(accuracies).mean
    figure, axes = _new(2.4 + 0.7 * len(x.levels), 1.8 + 0.45 * len(y.levels))
    axes.grid(False)
    shown = axes.imshow(grid, cmap="cividis", aspect="auto", origin="lower")
    _write_cells(axes, grid, "{:.1f}", np.nanmin(grid), np.nanmax(grid))
    axes.set_xticks(range(len(x.levels)), x.levels)
    axes.set_yticks(range(len(y.levels)), y.levels)
    axes.set(xlabel=x.key, ylabel=y.key, title=_mean_over(keys, x, y))
    figure.colorbar(shown, label=title_of(selected_by(ranking)))
    return figure


def trade_off(ranking: Ranking, cost: str) -> Figure | None:
    """Accuracy against ``fit_s`` or ``parameters``: runs, configurations, and the Pareto front.

    Args:
        ranking: of one data set.
        cost: ``fit_s`` or ``parameters``.
    """
    groups = with_values(ranking.ranked, cost)
    if len(groups) < 2:
        return None
    unit, length = time_unit([g.mean(cost) or 0.0 for g in groups]) if cost == "fit_s" else ("", 1)
    costs = [(group.mean(cost) or 0.0) / length for group in groups]
    gains = [estimate(_values(ranking, group)).mean for group in groups]
    figure, axes = _new()
    for group in groups:
        at = [(getattr(run, cost) or np.nan) / length for run in group.counted]
        axes.plot(at, _values(ranking, group), ".", color=PALETTE[5], alpha=0.5, zorder=1)
    axes.plot(costs, gains, "o", color=PALETTE[0], label="configuration (mean)", zorder=2)
    front = pareto_front(costs, gains)
    ends = [costs[i] for i in front], [gains[i] for i in front]
    axes.step(
        *ends, "-D", where="post", color=PALETTE[1], label="Pareto front", markersize=7, zorder=3
    )
    name = f"training time ({unit})" if cost == "fit_s" else "parameters (count)"
    axes.set(xlabel=name, ylabel=title_of(selected_by(ranking)))
    if max(costs) >= 8 * min(costs) > 0:
        axes.set_xscale("log")
    axes.legend()
    return figure


def seeds(ranking: Ranking) -> Figure:
    """Each seed a dot; the mean and its 95% interval, for the best configurations."""
    groups = ranking.ranked[:_DOTS]
    figure, axes = _new(height=1.4 + 0.28 * len(groups))
    for row, group in enumerate(reversed(groups)):
        values = _values(ranking, group)
        axes.plot(values, [row] * len(values), "o", color=PALETTE[5], alpha=0.7)
        value = selection(ranking, group)
        assert value is not None
        axes.plot(100 * value.mean, row, "D", color=PALETTE[0])
        if value.low is not None and value.high is not None:
            ends = [100 * max(0.0, value.low), 100 * min(1.0, value.high)]
            axes.plot(ends, [row, row], "-", color=PALETTE[0])
    axes.set_yticks(range(len(groups)), [_name(group) for group in reversed(groups)])
    axes.set(xlabel=title_of(selected_by(ranking)), title=_best_of(ranking, _DOTS))
    return figure


def ingredients(ranking: Ranking) -> Figure | None:
    """What each ingredient of a recipe is worth, with 95% intervals; None if none was left out."""
    found = worths(ranking)[::-1]
    if not found:
        return None
    figure, axes = _new(height=1.6 + 0.32 * len(found))
    for row, worth in enumerate(found):
        for offset, color, marker, value in (
            (0.12, PALETTE[0], "D", worth.held_out),
            (-0.12, PALETTE[1], "o", worth.test),
        ):
            if value is None:
                continue
            if value.low is not None and value.high is not None:
                ends = [100 * value.low, 100 * value.high]
                axes.plot(ends, [row + offset] * 2, "-", color=color)
            axes.plot(100 * value.mean, row + offset, marker, color=color)
    axes.axvline(0, color="0.5", linewidth=0.8)
    names = [f"{worth.name} (alone)" if worth.added else worth.name for worth in found]
    axes.set_yticks(range(len(found)), [_short(name.replace("$", r"\$")) for name in names])
    axes.set(xlabel="accuracy with it minus without it (percentage points)")
    kinds = (("D", 0, "held-out images"), ("o", 1, "test images"))
    handles = [Line2D([], [], marker=m, color=PALETTE[i], label=text) for m, i, text in kinds]
    figure.legend(handles=handles, loc="outside lower center", ncols=2)
    return figure


def confusion_matrix(confusion: Confusion) -> Figure:
    """How often each class was predicted as each, in percent of the true class."""
    totals = confusion.counts.sum(axis=1, keepdims=True)
    share = 100 * confusion.counts / np.maximum(totals, 1)
    names = [name.replace("$", r"\$") for name in confusion.classes]  # no mathematics
    figure, axes = _new(6.4, 5.6)
    axes.grid(False)
    shown = axes.imshow(share, cmap="cividis", vmin=0, vmax=100)
    _write_cells(axes, share, "{:.0f}", 0, 100)
    if len(names) <= _NAMED:
        size = 10 if len(names) <= 20 else 4
        axes.set_xticks(range(len(names)), names, rotation=45, ha="right", fontsize=size)
        axes.set_yticks(range(len(names)), names, fontsize=size)
    runs = "one run" if confusion.runs == 1 else f"{confusion.runs} runs"
    axes.set(
        xlabel="predicted class", ylabel="true class", title=f"{_short(confusion.label)} ({runs})"
    )
    figure.colorbar(shown, label="share of the true class (%)")
    return figure


def _write_cells(axes: Axes, grid: np.ndarray, pattern: str, low: float, high: float) -> None:
    if grid.size > 400:
        return
    for (row, column), value in np.ndenumerate(grid):
        if np.isfinite(value):
            color = "white" if value < (low + high) / 2 else "black"
            text = pattern.format(value)
            axes.text(column, row, text, ha="center", va="center", color=color, fontsize=7)


def _values(ranking: Ranking, group: Group) -> list[float]:
    pick = [run.selection if ranking.held_out else run.test for run in group.counted]
    return [100 * value for value in pick if value is not None]


def _best_of(ranking: Ranking, shown: int = _SHOWN) -> str:
    count = len(ranking.ranked)
    return f"the best {shown} of {count} configurations" if count > shown else ""


def _mean_over(keys: Sequence[Key], *shown: Key | None) -> str:
    """The further keys that a mean spans; empty where there are none."""
    others = [key.name for key in keys if key not in shown]
    return _short(f"means over all runs, whatever {', '.join(others)}") if others else ""


def _name(group: Group) -> str:
    # a leading underscore would hide it from the legend, a dollar begin a formula
    return _short(group.label.replace("$", r"\$")).lstrip("_")


def _short(label: str) -> str:
    return label if len(label) <= 60 else label[:59] + "…"
