"""From a folder of runs to a folder that explains them."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from cifar_lab.errors import InputError
from cifar_lab.records.files import expanded, write_atomically
from cifar_lab.records.record import FILE_NAME
from cifar_lab.report.compare import Report, confusions, rank
from cifar_lab.report.groups import group
from cifar_lab.report.read import Reader

if TYPE_CHECKING:
    import pandas as pd

FOLDER = "report"


def write_report(path: Path, out: Path | None = None, *, console: Console | None = None) -> Path:
    """Reads every run below ``path`` and writes the report; returns its folder.

    Args:
        path: of one run, a sweep, or many.
        out: by default ``report`` below ``path``.
        console: the terminal's table goes there; None: nowhere.

    Raises:
        InputError: there is no such folder, no run in it, or ``out`` is one of runs.
        OSError: ``out`` can't be written.
    """
    out = destination(path, out)
    report = _found(path)
    write_files(report, out, watch_s=None)
    if console is not None:
        from cifar_lab.report.tables import print_report

        print_report(report.reading, report.groups, report.rankings, console)
    return out


def compare(folder: str | Path) -> pd.DataFrame:
    """The runs below a folder as the report's table: a row for each configuration, best first.

    Returns:
        Columns: ``data``, ``place`` (1 is the best; none without a finished run), ``configuration``
        and a column for each key that varies; ``runs`` and ``n`` (finished ones, one a seed);
        ``val/acc`` and ``test/acc`` with ``mean``, ``sd``, ``low`` and ``high`` (95% interval of
        the mean), fractions; ``p`` and ``p_adjusted`` against the best; ``fit_s``, ``images_per_s``
        and ``parameters``.

    Raises:
        InputError: there is no such folder, or no run in it.
    """
    from cifar_lab.report.tables import configurations

    path = expanded(folder)
    check_folder(path)
    report = _found(path)
    return configurations(report.rankings, report.keys)


def _found(path: Path) -> Report:
    report = compare_runs(path, Reader(path))
    if report is None:
        raise InputError(
            f"{path}: holds no {FILE_NAME}; give the folder of a run or a sweep, "
            "or one above them, e.g. outputs"
        )
    return report


def check_folder(path: Path) -> None:
    """Raises InputError where there is none to look for runs in."""
    if not os.path.isdir(path):  # False, too, for what can't be looked at
        what = "is a file" if os.path.exists(path) else "does not exist"
        raise InputError(f"{path}: {what}; give a folder with runs in it, e.g. outputs")


def destination(path: Path, out: Path | None) -> Path:
    """The folder to write to; InputError where it, or ``path``, can't be what it should."""
    check_folder(path)
    out = path / FOLDER if out is None else out
    if out.exists() and not out.is_dir():
        raise InputError(
            f"--out={out}: is a file; give a folder, which is made where it is missing"
        )
    if any((out / name).exists() for name in (FILE_NAME, "sweep.json")):
        # a sweep keeps a results.csv of its own there
        raise InputError(f"--out={out}: holds a run or a sweep; give another folder")
    return out


def compare_runs(path: Path, reader: Reader) -> Report | None:
    """Reads and compares; None where there is nothing, not even a broken record.

    Args:
        path: what the page is called by.
        reader: of the folder.
    """
    reading = reader.read()
    if not reading.runs and not reading.broken:
        return None
    groups, keys = group(reading.runs)
    rankings = rank(groups)
    title = path.resolve().name
    return Report(title, reading, groups, keys, rankings, [confusions(r) for r in rankings])


def write_files(report: Report, out: Path, *, watch_s: float | None) -> None:
    """Writes all files, each replaced whole; raises OSError."""
    from cifar_lab.report.markdown import render_markdown
    from cifar_lab.report.tables import as_csv, configurations, results

    out.mkdir(parents=True, exist_ok=True)
    write_atomically(out / "results.csv", as_csv(results(report.groups, report.keys)))
    table = configurations(report.rankings, report.keys)
    write_atomically(out / "configurations.csv", as_csv(table))
    figures = _write_figures(report, out / "figures")
    write_atomically(out / "report.md", render_markdown(report, figures=figures))
    write_page(report, out, watch_s=watch_s)


def write_page(report: Report, out: Path, *, watch_s: float | None) -> None:
    """Writes report.html alone; with ``watch_s`` it reloads itself as often."""
    from cifar_lab.report.page import render_page

    write_atomically(out / "report.html", render_page(report, watch_s=watch_s))


def _write_figures(report: Report, folder: Path) -> list[str]:
    """Draws the data set with the most finished runs; returns the figures' names."""
    from cifar_lab.report.figures import FORMATS, draw_all, saved

    if not report.rankings:
        return []
    folder.mkdir(exist_ok=True)
    names = []
    for name, figure in draw_all(report.rankings[0], report.keys, report.confusions[0]):
        names.append(name)
        for kind in FORMATS:
            write_atomically(folder / f"{name}.{kind}", saved(figure, kind))
    return names
