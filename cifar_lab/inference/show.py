"""An evaluation as tables, as JSON and as files."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from cifar_lab.inference.evaluation import LEVEL, Evaluation
from cifar_lab.inference.robustness import DRAWN_HERE, Robustness

_NONE = "–"  # noqa: RUF001  (an en dash)
_MOST_CLASSES = 20  # that a terminal shows


def as_json(one: Evaluation) -> dict[str, Any]:
    """Plain values: fractions with all their digits."""
    return {
        "name": one.name,
        "images": one.images,
        "accuracy": one.accuracy,
        "interval": {"level": LEVEL, "low": one.low, "high": one.high, "method": "wilson"},
        "loss": one.loss,
        "calibration": asdict(one.calibration),
        "temperature": one.temperature,
        "calibrated": None if one.calibrated is None else asdict(one.calibrated),
        "classes": [vars(c) for c in one.classes],
        "confusion_matrix": one.matrix.tolist(),
        "notes": list(one.notes),
    }


def robustness_json(one: Robustness) -> dict[str, Any]:
    """Plain values."""
    return {
        "mean_corruption_error": one.mean_error,
        "normalized": False,
        "clean": one.clean,
        "source": "drawn here" if one.drawn_here else "archive",
        "notes": list(one.notes),
        "accuracy": {name: list(values) for name, values in one.accuracy.items()},
    }


def print_evaluation(one: Evaluation, console: Console) -> None:
    """Numbers, then the classes."""

    def line(name: str, value: str) -> None:
        console.print(Text.assemble((f"{name:<15}", "dim"), value), soft_wrap=True)

    line("accuracy", f"{_percent(one.accuracy)} (95% interval {_interval(one)})")
    line("images", f"{one.images:,}")
    if one.loss is not None:
        line("loss", f"{one.loss:.4f}")
    line(
        "calibration",
        f"error {_percent(one.calibration.ece)}, cross-entropy {one.calibration.cross_entropy:.4f}",
    )
    if one.calibrated is not None and one.temperature is not None:
        line(
            "temperature",
            f"{one.temperature:.3f}, fitted on held-out images: error "
            f"{_percent(one.calibrated.ece)}, cross-entropy {one.calibrated.cross_entropy:.4f}",
        )
    table = Table(box=box.SIMPLE_HEAD)
    table.add_column("class", overflow="fold")
    for name in ("images", "accuracy", "precision", "mostly taken for"):
        table.add_column(name, justify="right")
    worst = sorted(range(len(one.classes)), key=lambda i: one.classes[i].recall or 0)
    shown = range(len(one.classes)) if len(one.classes) <= _MOST_CLASSES else worst[:_MOST_CLASSES]
    for index in shown:
        its = one.classes[index]
        table.add_row(
            Text(its.name),
            f"{its.images:,}",
            _percent(its.recall),
            _percent(its.precision),
            Text(_taken_for(one, index)),
        )
    console.print(table)
    if len(one.classes) > _MOST_CLASSES:
        console.print(
            f"the {_MOST_CLASSES} worst of {len(one.classes)} classes; --json has all of them"
        )


def _taken_for(one: Evaluation, index: int) -> str:
    row = one.matrix[index].copy()
    row[index] = 0
    most = int(row.argmax())
    return f"{one.classes[most].name} ({row[most]})" if row[most] else _NONE


def print_comparison(evaluated: Sequence[Evaluation], console: Console) -> None:
    """A row for each, the ensemble's last."""
    table = Table(box=box.SIMPLE_HEAD)
    table.add_column("run", overflow="fold")
    for name in ("accuracy", "95% interval", "cross-entropy", "calibration error"):
        table.add_column(name, justify="right")
    for one in evaluated:
        table.add_row(
            Text(one.name),
            _percent(one.accuracy),
            _interval(one),
            f"{one.calibration.cross_entropy:.4f}",
            _percent(one.calibration.ece),
        )
    console.print(table)


def print_robustness(one: Robustness, console: Console) -> None:
    """A row for each corruption, then the mean error."""
    table = Table(box=box.SIMPLE_HEAD, title="accuracy by strength", title_justify="left")
    table.add_column("corruption")
    for name in ("1", "2", "3", "4", "5", "mean"):
        table.add_column(name, justify="right")
    for name, values in one.accuracy.items():
        cells = (*values, sum(values) / len(values))
        table.add_row(name, *(f"{100 * value:.1f}" for value in cells))
    console.print(table)
    clean = "" if one.clean is None else f"; {_percent(1 - one.clean)} on the images as they are"
    console.print(f"mean corruption error {_percent(one.mean_error)}, not normalized{clean}")
    if one.drawn_here:
        console.print(Text(DRAWN_HERE), soft_wrap=True)
    for note in one.notes:
        console.print(Text(note), soft_wrap=True)


def write_figures(one: Evaluation, images: NDArray[np.uint8], folder: Path) -> list[Path]:
    """reliability.png, confusion_matrix.png and mistakes.png; raises OSError.

    Args:
        one: of the run.
        images: (M, 3, H, W) of which the first N were tested.
        folder: made where it is missing.
    """
    from PIL import Image

    from cifar_lab.inference.figures import draw_reliability
    from cifar_lab.training.callbacks.prediction_figures import (
        draw_confusion_matrix,
        draw_worst_mistakes,
        rendered,
    )

    names = [c.name for c in one.classes]
    logits, labels = one.outputs.logits, one.outputs.labels
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for name, figure in (
        ("reliability", draw_reliability(one.calibration, one.calibrated)),
        ("confusion_matrix", draw_confusion_matrix(one.matrix, names)),
        ("mistakes", draw_worst_mistakes(images, logits, labels, names, confident=True)),
    ):
        path = folder / f"{name}.png"
        Image.fromarray(rendered(figure)).save(path)
        written.append(path)
    return written


def _percent(fraction: float | None) -> str:
    return _NONE if fraction is None else f"{100 * fraction:.2f} %"


def _interval(one: Evaluation) -> str:
    return f"{100 * one.low:.2f} to {100 * one.high:.2f} %"
