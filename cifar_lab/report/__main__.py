"""``python -m cifar_lab.report PATH``: compares the runs below a folder.

    python -m cifar_lab.report PATH [--out DIR] [--watch [SECONDS]]

Reads every run.json below PATH: finished, running and failed ones. Prints a table, and writes
results.csv, configurations.csv, report.md, figures/ and report.html, a page that needs no network,
to DIR (PATH/report). With --watch it does so again every SECONDS (30) until Ctrl-C.
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from cifar_lab import signals
from cifar_lab.config.command import Parser, run_command, table_console, usage_in
from cifar_lab.errors import Interrupted

WATCH_S = 30.0


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit status (0, 1, 2 for wrong input, 130 or 143)."""
    return run_command(arguments, lambda words: _report(_parse(words)), text=__doc__, prefix="")


def _report(given: argparse.Namespace) -> int:
    from cifar_lab.report.write import write_report

    console = table_console()
    try:
        if given.watch is not None:
            _watch(given.path, given.out, given.watch)
        folder = write_report(given.path, given.out, console=console)
    except OSError as error:  # reading raises none: what can't be read is in the report
        print(
            f"{given.out or given.path / 'report'}: can't be written ({error.strerror or error}); "
            "free some space there, or give another folder with --out",
            file=sys.stderr,
        )
        return 1
    console.print(f"report     {folder / 'report.html'}", soft_wrap=True, markup=False)
    return 0


def _watch(path: Path, out: Path | None, seconds: float) -> NoReturn:
    """Writes again and again; ends by a signal, with a page that doesn't reload any more."""
    from cifar_lab.report.read import Reader
    from cifar_lab.report.tables import status_text
    from cifar_lab.report.write import compare_runs, destination, write_files, write_page

    folder, reader, console, report = destination(path, out), Reader(path), table_console(), None
    console.print(
        f"report     {folder / 'report.html'} (Ctrl-C ends)", soft_wrap=True, markup=False
    )
    try:
        while True:
            begun = time.monotonic()
            if (found := compare_runs(path, reader)) is None:
                said = "no runs yet"
            else:
                write_files(found, folder, watch_s=seconds)
                report = found
                said = f"{status_text(found.reading)}; took {time.monotonic() - begun:.1f} s"
            console.print(f"{time.strftime('%H:%M:%S')}  {said}", soft_wrap=True, markup=False)
            time.sleep(seconds)
    except Interrupted:
        if report is not None:
            with signals.shielded():
                write_page(report, folder, watch_s=None)
        raise


def _parse(words: Sequence[str]) -> argparse.Namespace:
    parser = Parser(usage_in(__doc__))
    parser.add_argument("path", type=Path, metavar="PATH")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--watch", type=_seconds, nargs="?", const=WATCH_S)
    return parser.parse_args(list(words))


def _seconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 1 <= value <= 86400:
        raise argparse.ArgumentTypeError(f"{text}: must be seconds from 1 to 86400, after PATH")
    return value


if __name__ == "__main__":
    sys.exit(main())
