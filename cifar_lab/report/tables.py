"""The numbers as rows: results.csv, configurations.csv, and what the terminal and the page show."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from cifar_lab import formats
from cifar_lab.report.ablation import worths
from cifar_lab.report.compare import Ranking, best_run, selected_by, selection
from cifar_lab.report.groups import Group, Key
from cifar_lab.report.notes import notes
from cifar_lab.report.read import Reading
from cifar_lab.report.statistics import Difference
from cifar_lab.report.verdict import (
    alike,
    failures,
    interval_text,
    method,
    p_text,
    repeat_command,
    spread_text,
    verdict,
)

_NONE = "–"  # noqa: RUF001  (an en dash)
_TERMINAL_ROWS = 20
_METRICS = ("val/loss", "test/loss", "train/acc", "train/loss")


@dataclass(frozen=True)
class Row:
    """A configuration as text, for a reader; ``sort`` has the numbers behind some of its cells."""

    place: int | None
    label: str
    data: str
    runs: str
    validation: str
    test: str
    interval: str
    difference: str
    p: str
    time: str
    parameters: str
    sort: dict[str, float]


def rows(ranking: Ranking) -> list[Row]:
    """The ranked configurations, best first, then the others."""
    against = {id(comparison.other): comparison for comparison in ranking.comparisons}
    found = []
    for place, group in enumerate((*ranking.ranked, *ranking.unranked), 1):
        comparison = against.get(id(group))
        seconds, parameters = group.mean("fit_s"), group.mean("parameters")
        numbers = {
            "validation": group.selection.mean if group.selection else None,
            "test": group.test.mean if group.test else None,
            "time": seconds,
            "parameters": parameters,
            "p": comparison.p_adjusted if comparison else None,
            "behind": comparison.difference if comparison else None,
            "interval": group.test.low if group.test else None,
        }
        found.append(
            Row(
                place=place if place <= len(ranking.ranked) else None,
                label=group.label,
                data=ranking.data_name,
                runs=_runs_text(group),
                validation=spread_text(group.selection),
                test=spread_text(group.test),
                interval=interval_text(group.test),
                difference=f"{100 * comparison.difference:+.1f}" if comparison else _NONE,
                p=(
                    f"{p_text(comparison.p_adjusted)} ({comparison.test})"
                    if comparison and comparison.p_adjusted is not None
                    else _NONE
                ),
                time=_NONE if seconds is None else clock(seconds),
                parameters=_NONE if parameters is None else f"{parameters:,.0f}",
                sort={name: value for name, value in numbers.items() if value is not None},
            )
        )
    return found


@dataclass(frozen=True)
class WorthRow:
    """An ingredient as text."""

    name: str
    n: str
    held_out: str
    test: str
    seconds: str
    p: str
    verdict: str


def worth_rows(ranking: Ranking) -> list[WorthRow]:
    """What each ingredient is worth, where runs with and without it are there."""
    return [
        WorthRow(
            name=f"{worth.name} (alone)" if worth.added else worth.name,
            n=f"{worth.n[0]}, {worth.n[1]}",
            held_out=_difference_text(worth.held_out, 100, 2),
            test=_difference_text(worth.test, 100, 2),
            seconds=_difference_text(worth.seconds, 1, 1),
            p=_NONE if worth.p_holm is None else p_text(worth.p_holm),
            verdict=worth.verdict,
        )
        for worth in worths(ranking)
    ]


def _difference_text(value: Difference | None, scale: float, decimals: int) -> str:
    if value is None:
        return _NONE
    mean = f"{scale * value.mean:+.{decimals}f}"
    if value.low is None or value.high is None:
        return mean
    return f"{mean} ({scale * value.low:+.{decimals}f} to {scale * value.high:+.{decimals}f})"


def _runs_text(group: Group) -> str:
    total = len(group.runs) - len(group.repeated)
    n = len(group.counted)
    return str(n) if n == total else f"{n} of {total}"


def clock(seconds: float) -> str:
    """``0.4 s``, ``12 s``, ``2:03`` or ``1:02:03``."""
    if seconds < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    return formats.clock(seconds)


def status_text(reading: Reading) -> str:
    """``12 finished, 2 running``, the most frequent first."""
    counts = Counter(run.status for run in reading.runs)
    words = [f"{count} {status}" for status, count in counts.most_common()]
    return ", ".join([*words, *([f"{len(reading.broken)} unreadable"] if reading.broken else [])])


def results(groups: Sequence[Group], keys: Sequence[Key]) -> pd.DataFrame:
    """A row for each run; accuracies are fractions with all their digits, times are seconds."""
    records = []
    for group in groups:
        for run in group.runs:
            records.append(
                {
                    "run": run.name,
                    "configuration": group.label,
                    "counted": run in group.counted,
                    "status": run.status,
                    **{key.key: group.values[key.key] for key in keys},
                    "seed": run.seed,
                    "epochs": run.epochs,
                    "best_epoch": run.record.best_epoch,
                    "val/acc": run.selection,
                    "test/acc": run.test,
                    **{name: run.record.metrics.get(name) for name in _METRICS},
                    "parameters": run.parameters,
                    "fit_s": run.fit_s,
                    "images_per_s": run.images_per_s,
                    "device": run.record.device,
                    "data": run.data_name,
                    "data_digest": run.data,
                    "config_digest": run.record.config_digest,
                    "error": run.error,
                }
            )
    return pd.DataFrame.from_records(records)


def as_csv(table: pd.DataFrame) -> str:
    """A table as a spreadsheet may be given it."""
    for name in table.select_dtypes(exclude="number").columns:
        # as objects: pandas would make other numbers of those beside a None
        table[name] = pd.Series(map(formats.csv_cell, table[name]), index=table.index, dtype=object)
    return table.to_csv(index=False, lineterminator="\n")


def configurations(rankings: Sequence[Ranking], keys: Sequence[Key]) -> pd.DataFrame:
    """A row for each configuration: all digits of the statistics; accuracies are fractions."""
    records = []
    for ranking in rankings:
        against = {id(comparison.other): comparison for comparison in ranking.comparisons}
        for place, group in enumerate((*ranking.ranked, *ranking.unranked), 1):
            record = {
                "data": ranking.data_name,
                "place": place if group in ranking.ranked else None,
                "configuration": group.label,
                **{key.key: group.values[key.key] for key in keys},
                "runs": len(group.runs),
                "n": len(group.counted),
            }
            for split, value in (("val/acc", group.selection), ("test/acc", group.test)):
                for field in ("mean", "sd", "low", "high"):
                    record[f"{split} {field}"] = getattr(value, field) if value else None
            if comparison := against.get(id(group)):
                record |= {"difference": comparison.difference, "test": comparison.test}
                record |= {
                    "p": comparison.p,
                    "p_adjusted": comparison.p_adjusted,
                    "why": comparison.why,
                }
            for name in ("fit_s", "images_per_s", "parameters"):
                record[name] = group.mean(name)
            records.append(record)
    return pd.DataFrame.from_records(records)


def print_report(
    reading: Reading, groups: Sequence[Group], rankings: Sequence[Ranking], console: Console
) -> None:
    """The terminal's version: a table for each data set, the verdict, failures, what to mind."""
    console.print(Text(f"{len(reading.runs)} runs: {status_text(reading)}"), soft_wrap=True)
    for ranking in rankings:
        _print_ranking(ranking, console)
    for run in failures(groups):
        style = "red" if run.status in ("failed", "diverged") else ""
        line = f"{run.status:<12} {run.name}  {run.error or ''}".rstrip()
        console.print(Text(line, style=style), soft_wrap=True)
    for name, reason in reading.broken:
        console.print(Text(f"unreadable   {name}: {reason}", style="red"), soft_wrap=True)
    for note in notes(groups, rankings):
        console.print(Text(f"note: {note}"), soft_wrap=True)


def _print_worth(found: Sequence[WorthRow], console: Console) -> None:
    table = Table(
        title="what each ingredient is worth: with it minus without it",
        title_justify="left",
        box=box.SIMPLE_HEAD,
    )
    table.add_column("ingredient", overflow="fold")
    for column in ("n", "held-out (points)", "test (points)", "fit (s)", "p (Holm)"):
        table.add_column(column, justify="right")
    table.add_column("")
    for row in found:
        cells = (row.n, row.held_out, row.test, row.seconds, row.p, row.verdict)
        table.add_row(Text(row.name), *cells)
    console.print(table)


def _print_ranking(ranking: Ranking, console: Console) -> None:
    by = "validation" if ranking.held_out else "test"
    table = Table(
        title=f"{ranking.data_name}, best first by {by} accuracy",
        title_justify="left",
        box=box.SIMPLE_HEAD,
    )
    table.add_column("", justify="right")
    table.add_column("configuration", overflow="fold")
    for column in ("n", "validation", "test", "95% interval", "behind", "p (corrected)", "time"):
        table.add_column(column, justify="right")
    shown = rows(ranking)
    for row in shown[:_TERMINAL_ROWS]:
        cells = (row.runs, row.validation, row.test, row.interval, row.difference, row.p, row.time)
        place = "" if row.place is None else str(row.place)
        table.add_row(place, Text(row.label), *cells, style="bold" if row.place == 1 else "")
    console.print(table)
    if len(shown) > _TERMINAL_ROWS:
        console.print(f"... and {len(shown) - _TERMINAL_ROWS} more in configurations.csv\n")
    if ranking.ranked:
        best = ranking.ranked[0]
        value = selection(ranking, best)
        lines = [
            f"best       {best.label}: {selected_by(ranking)} {spread_text(value)}, "
            f"test {spread_text(best.test)}",
            f"           {verdict(ranking)}",
            f"           {alike(ranking)} {method(ranking)}",
            f"repeat it  {repeat_command(best_run(ranking))}",
        ]
        if not ranking.comparisons:
            del lines[2]
        for line in lines:  # never cut in two: a command has to be copied whole
            console.print(Text(line), soft_wrap=True)
        console.print()
    if worth := worth_rows(ranking):
        _print_worth(worth, console)
