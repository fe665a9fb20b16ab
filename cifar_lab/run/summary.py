"""The closing table of a run."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.text import Text

from cifar_lab.formats import clock, images_per_s, percent


def print_summary(
    record: Mapping[str, Any], run_dir: Path, *, console: Console | None = None
) -> None:
    """Prints a finished run's result, what it was made with, and the next commands.

    Args:
        record: the fields of run.json; a field that is missing has no line.
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


def _lines(record: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    metrics, timings = record.get("metrics") or {}, record.get("timings") or {}
    if (accuracy := metrics.get("test/acc")) is not None:
        yield (
            "test accuracy",
            f"{percent(accuracy)}{_number(', loss {:.4f}', metrics, 'test/loss')}",
        )
        yield "tested", _tested(record)
    if (accuracy := metrics.get("val/acc")) is not None:
        loss = _number(", loss {:.4f}", metrics, "val/loss")
        yield "validation", f"{percent(accuracy)}{loss}"
    if record.get("epochs") is not None:
        yield "trained", f"{record['epochs']} epochs{_steps(record)}"
    for departure in record.get("departures") or ():
        yield "not as asked", departure
    if timings.get("fit_s") is not None:
        speed = timings.get("images_per_s")
        took = f"{clock(timings['fit_s'])} in all"
        yield "time", took if speed is None else f"{took}, {images_per_s(speed)} in training"
    if record.get("parameters") is not None:
        yield "parameters", f"{record['parameters']:,}"
    if record.get("device") is not None:
        yield "device", str(record["device"])
    if record.get("data"):
        yield "data", describe_data(record["data"])


def describe_data(data: Mapping[str, Any]) -> str:
    """The record's ``data`` in words; says when the bytes are not the official ones."""
    if data.get("name") == "synthetic":
        return "synthetic, drawn by code: no benchmark"
    if data.get("name", "cifar10") != "cifar10":
        return f"{data['name']}, from {data.get('layout')}"
    if data.get("official"):
        return "CIFAR-10, the official bytes"
    return f"CIFAR-10 from {data.get('layout')}: not the official bytes"


def _tested(record: Mapping[str, Any]) -> str:
    because, epoch = record.get("tested_because"), record.get("best_epoch")
    if record.get("tested") == "best":
        details = [f"epoch {epoch}"] if epoch else []
        return f"best checkpoint by validation{_in_brackets([*details, because])}"
    return f"last epoch{_in_brackets([because])}"


def _in_brackets(details: Iterable[str | None]) -> str:
    known = ", ".join(detail for detail in details if detail)
    return f" ({known})" if known else ""


def _steps(record: Mapping[str, Any]) -> str:
    steps, planned = record.get("steps"), record.get("steps_planned")
    if steps is None or planned in (None, steps):
        return _number(", {:,} steps", record, "steps")
    return f", {steps:,} of {planned:,} steps"


def _number(pattern: str, values: Mapping[str, Any], key: str) -> str:
    value = values.get(key)
    return "" if value is None else pattern.format(value)


def _next_commands(run_dir: Path) -> Iterator[tuple[str, str]]:
    # outputs/ holds this run and the ones to compare it with
    outputs = next((folder for folder in run_dir.parents if folder.name == "outputs"), run_dir)
    yield "dashboard", f"tensorboard --logdir {outputs}    (in the repository: make dashboard)"
