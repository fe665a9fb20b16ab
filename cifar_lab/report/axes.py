"""What figures and page agree on: which keys span the axes, how curves become lines."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from cifar_lab.report.groups import Group, Key
from cifar_lab.report.read import Run

# Okabe & Ito 2008: colours that colour-blind readers tell apart; their yellow, #F0E442, can't be
# seen on white, and on dark ground page.js puts it in the place of what can't be seen there.
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
DASHES = ("solid", "dash", "dot", "dashdot")
METRIC_NAMES = {
    "val/acc": "validation accuracy (%)",
    "train/acc": "training accuracy (%)",
    "test/acc": "test accuracy (%)",
    "val/loss": "validation loss (nats)",
    "train/loss": "training loss (nats)",
    "lr": "learning rate",
    "images_per_s": "training speed (images/s)",
    "grad_norm": "gradient norm",
}
MAX_METRICS = 10


def axis_keys(keys: Sequence[Key]) -> tuple[Key | None, Key | None]:
    """The key along the axis (numeric, if any is) and the one that makes lines of its own."""
    x = next((key for key in keys if key.numeric), None)
    lines = next((key for key in keys if key is not x), None)
    return x, lines


def curve_names(runs: Sequence[Run]) -> list[str]:
    """The metrics that have curves: accuracies and losses first, at most `MAX_METRICS`."""
    found = {name for run in runs for name in run.curves} - {"epoch"}
    known = [name for name in METRIC_NAMES if name in found]
    return [*known, *sorted(found - set(known))][:MAX_METRICS]


def scale_of(metric: str) -> float:
    """What a metric is multiplied with to be shown: accuracies are in percent."""
    return 100.0 if metric.endswith("acc") else 1.0


def title_of(metric: str) -> str:
    """A metric's name and unit for an axis."""
    return METRIC_NAMES.get(metric, metric)


def mean_curve(
    runs: Sequence[Run], metric: str
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Epochs, mean and standard deviation (0 for one run) over the runs that got that far."""
    curves = [run.curves for run in runs if metric in run.curves]
    epochs = np.unique(np.concatenate([c["epoch"] for c in curves])) if curves else np.empty(0)
    values = np.full((len(curves), len(epochs)), np.nan)
    for row, curve in zip(values, curves, strict=True):
        row[np.searchsorted(epochs, curve["epoch"])] = curve[metric]
    known = (~np.isnan(values)).sum(axis=0)
    epochs, values, known = epochs[known > 0], values[:, known > 0], known[known > 0]
    mean = np.nansum(values, axis=0) / known
    squares = np.nansum((values - mean) ** 2, axis=0)
    return epochs, mean, np.sqrt(squares / np.maximum(known - 1, 1))


def time_unit(seconds: Sequence[float]) -> tuple[str, float]:
    """The unit that suits these times, and its length in seconds."""
    longest = max(seconds, default=0.0)
    if longest >= 2 * 3600:
        return "h", 3600.0
    return ("min", 60.0) if longest >= 300 else ("s", 1.0)


def with_values(groups: Sequence[Group], *names: str) -> list[Group]:
    """The groups that have a mean of each name."""
    return [group for group in groups if all(group.mean(name) is not None for name in names)]
