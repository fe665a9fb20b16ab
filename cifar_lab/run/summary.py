"""The closing table of a run."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from rich.console import Console
from rich.text import Text

from cifar_lab.formats import clock, images_per_s, percent
from cifar_lab.records.record import Data, RunRecord


def print_summary(record: RunRecord, run_dir: Path, *, console: Console | None = None) -> None:
    """Prints a finished run's result, what it was made with, and the next commands.

    Args:
        record: of the run; what it doesn't know has no line.
        run_dir: the run folder.
        console: None is standard output; without a terminal there: plain text.
    """
    console = console or Console(highlight=False)
    console.print()
    for name, value in _lines(record):
        _print_line(console, name, value, style="bold" if name == "test accuracy" else "")
    console.print()
    for name, value in (("run folder", str(run_dir)), *_next_commands(run_dir)):
        _print_line(console, name, value)


def _print_line(console: Console, name: str, value: str, style: str = "") -> None:
    # never wrapped: a path or a command that is cut in two can't be copied
    console.print(Text.assemble((f"{name:<15}", "dim"), (value, style)), soft_wrap=True)


def _lines(record: RunRecord) -> Iterator[tuple[str, str]]:
    metrics, timings = record.metrics, record.timings
    if (accuracy := metrics.get("test/acc")) is not None:
        loss = _number(", loss {:.4f}", metrics, "test/loss")
        yield "test accuracy", f"{percent(accuracy)}{loss}{_views(record)}"
        yield "tested", _tested(record)
    if (accuracy := metrics.get("val/acc")) is not None:
        loss = _number(", loss {:.4f}", metrics, "val/loss")
        yield "validation", f"{percent(accuracy)}{loss}"
    yield "trained", f"{record.epochs} epochs{_steps(record)}"
    for departure in record.departures:
        yield "not as asked", departure
    if timings.fit_s is not None:
        speed = timings.images_per_s
        took = f"{clock(timings.fit_s)} in all"
        yield "time", took if speed is None else f"{took}, {images_per_s(speed)} in training"
    if record.parameters is not None:
        yield "parameters", f"{record.parameters:,}"
    if record.device is not None:
        yield "device", record.device
    if record.data.name:
        yield "data", describe_data(record.data)


OFFICIAL_TITLES = {
    "cifar10": "CIFAR-10",
    "cifar100": "CIFAR-100",
    "cifar100_coarse": "CIFAR-100 with coarse labels",
}


def describe_data(data: Data) -> str:
    """The record's ``data`` in words; says when the bytes are not the official ones."""
    if data.name == "synthetic":
        return "synthetic, drawn by code: no benchmark"
    if (title := OFFICIAL_TITLES.get(data.name)) is None:
        return f"{data.name}, from {data.layout}"
    if data.official:
        return f"{title}, the official bytes"
    return f"{title} from {data.layout}: not the official bytes"


def _tested(record: RunRecord) -> str:
    because, epoch = record.tested_because, record.best_epoch
    if record.tested == "best":
        details = [f"epoch {epoch}"] if epoch else []
        return f"best checkpoint by validation{_in_brackets([*details, because])}"
    return f"last epoch{_in_brackets([because])}"


def _views(record: RunRecord) -> str:
    tta = (record.config or {}).get("tta", "none")
    if tta == "none":
        return ""
    plain = record.metrics.get("test/acc_without_tta")
    beside = "" if plain is None else f"; {percent(plain)} without"
    return f" (with tta={tta}{beside})"


def _in_brackets(details: Iterable[str | None]) -> str:
    known = ", ".join(detail for detail in details if detail)
    return f" ({known})" if known else ""


def _steps(record: RunRecord) -> str:
    steps, planned = record.steps, record.steps_planned
    of = "" if planned in (None, steps) else f" of {planned:,}"
    return f", {steps:,}{of} steps"


def _number(pattern: str, values: Mapping[str, float | None], key: str) -> str:
    value = values.get(key)
    return "" if value is None else pattern.format(value)


def _next_commands(run_dir: Path) -> Iterator[tuple[str, str]]:
    if next(run_dir.rglob("*tfevents*"), None) is None:
        return  # no logger wrote what a dashboard shows
    # outputs/ holds this run and the ones to compare it with
    outputs = next((folder for folder in run_dir.parents if folder.name == "outputs"), run_dir)
    yield "dashboard", shlex.join(["tensorboard", "--logdir", str(outputs)])
