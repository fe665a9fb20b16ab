"""``python -m cifar_lab.predict RUN IMAGE…``: what a finished run's network says to pictures.

    python -m cifar_lab.predict RUN IMAGE... [--top K] [--json | --csv] [--sheet out.png]
                                [--explain] [--ckpt best|last|FILE] [--trust MODULE]

IMAGE is a PNG, JPEG, WebP, BMP or GIF of any size and mode, a folder, a pattern, or - for standard
input.

--top      so many classes for each (3)
--sheet    draws the pictures with their answers (the first 100)
--explain  adds to the sheet where the network saw the class (Grad-CAM)
--trust    a module of your own that a record may name

A picture that can't be read is one line on standard error; the others go on, and the exit status is
1 in the end.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from cifar_lab.config.command import Parser, run_command, usage_in
from cifar_lab.errors import InputError, printable
from cifar_lab.formats import csv_cell
from cifar_lab.records.files import expanded

if TYPE_CHECKING:
    from cifar_lab.inference.prediction import Prediction
    from cifar_lab.run.load import Run

_LONG = 100  # pictures from which on a bar is shown


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit status.

    0: done. 1: a picture couldn't be read. 2: wrong input. 130, 143: stopped by Ctrl-C, SIGTERM.
    """
    return run_command(arguments, lambda words: _predict(_parse(words)), text=__doc__)


def _predict(given: argparse.Namespace) -> int:
    _check(given)
    from rich.console import Console
    from rich.progress import Progress

    from cifar_lab.inference.prediction import find_pictures, predict
    from cifar_lab.run.load import load_run

    run = load_run(given.run, given.ckpt, trust=given.trust)
    names = find_pictures(given.images)
    if given.sheet and any(_is_one(name, expanded(given.sheet)) for name in names):
        raise InputError(f"--sheet={given.sheet}: is one of the pictures; give another file")
    console = Console(stderr=True)
    failed = False
    found: list[Prediction] = []
    bar = Progress(
        console=console, transient=True, disable=len(names) < _LONG or not console.is_terminal
    )
    with bar as progress:
        task = progress.add_task("pictures", total=len(names))
        for one in predict(
            run, names, keep_pixels=bool(given.sheet), done=lambda n: progress.advance(task, n)
        ):
            found.append(one)
            if one.error is not None:
                failed = True
                print(f"cifar_lab: {one.error}", file=sys.stderr)
    _print(found, run.classes, given)
    if given.sheet and any(one.pixels is not None for one in found):
        _draw(run, found, given)
    return 1 if failed else 0


def _check(given: argparse.Namespace) -> None:
    if given.json and given.csv:
        raise InputError("--json and --csv: give one of them")
    if given.explain and not given.sheet:
        raise InputError("--explain: draws into the sheet; add --sheet out.png")
    if given.explain:
        from importlib.util import find_spec

        if find_spec("captum") is None:
            raise InputError("--explain: needs captum; pip install 'cifar-lab[explain]'")
    if given.sheet is not None:
        sheet = expanded(given.sheet)
        if sheet.suffix.lower() not in (".png", ".jpg", ".jpeg", ".webp"):
            raise InputError(f"--sheet={given.sheet}: must be a .png, .jpg or .webp")
        if not sheet.parent.is_dir():
            raise InputError(f"--sheet={given.sheet}: there is no folder {sheet.parent}")
        if sheet.is_dir():
            raise InputError(f"--sheet={given.sheet}: is a folder; give a file")


def _is_one(name: str, sheet: Path) -> bool:
    return os.path.exists(name) and os.path.exists(sheet) and os.path.samefile(name, sheet)


def _print(found: Sequence[Prediction], classes: Sequence[str], given: argparse.Namespace) -> None:
    if given.json:
        rows = [
            {
                "file": one.name,
                "error": one.error,
                "top": [
                    {"class": name, "probability": p} for name, p in one.top(classes, given.top)
                ],
            }
            for one in found
        ]
        print(json.dumps(rows, indent=2))
        return
    if given.csv:
        count = min(given.top, len(classes))
        writer = csv.writer(sys.stdout, lineterminator="\n")
        header = [f"{what}_{i + 1}" for i in range(count) for what in ("class", "probability")]
        writer.writerow(["file", *header, "error"])
        for one in found:
            cells = [cell for pair in one.top(classes, count) for cell in pair]
            cells += [""] * (2 * count - len(cells))
            writer.writerow(map(csv_cell, [one.name, *cells, one.error or ""]))
        return
    width = max((len(printable(one.name)) for one in found), default=0)
    for one in found:
        if one.error is None:
            answers = [f"{name} {100 * p:.1f} %" for name, p in one.top(classes, given.top)]
            print(f"{printable(one.name):<{width}}  {', '.join(answers)}")


def _draw(run: Run, found: Sequence[Prediction], given: argparse.Namespace) -> None:
    import numpy as np
    from PIL import Image

    from cifar_lab.inference.figures import MOST_PICTURES, draw_sheet
    from cifar_lab.inference.prediction import activation_maps
    from cifar_lab.training.callbacks.prediction_figures import rendered

    shown = [one for one in found if one.pixels is not None and one.probabilities is not None]
    if len(shown) > MOST_PICTURES:
        print(
            f"cifar_lab: --sheet: the first {MOST_PICTURES} of {len(shown)} pictures are drawn",
            file=sys.stderr,
        )
        shown = shown[:MOST_PICTURES]
    pixels = [one.pixels for one in shown if one.pixels is not None]
    captions = []
    for one in shown:
        ((name, p),) = one.top(run.classes, 1)
        captions.append(f"{printable(Path(one.name).name)[:24]}\n{name} {100 * p:.0f} %")
    maps = None
    if given.explain:
        answers = [
            int(np.argmax(one.probabilities)) for one in shown if one.probabilities is not None
        ]
        maps = activation_maps(run, np.stack(pixels), answers)
    try:
        Image.fromarray(rendered(draw_sheet(pixels, captions, maps))).save(expanded(given.sheet))
    except OSError as error:
        raise InputError(
            f"--sheet={given.sheet}: can't be written ({error.strerror or error})"
        ) from error


def _parse(words: Sequence[str]) -> argparse.Namespace:
    parser = Parser(usage_in(__doc__))
    parser.add_argument("run", metavar="RUN")
    parser.add_argument("images", nargs="+", metavar="IMAGE")
    parser.add_argument("--top", type=_at_least_one, default=3)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--csv", action="store_true")
    parser.add_argument("--sheet")
    parser.add_argument("--explain", action="store_true")
    parser.add_argument("--ckpt", default="best")
    parser.add_argument("--trust", action="append", default=[])
    return parser.parse_args(list(words))


def _at_least_one(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text}: must be at least 1")
    return int(text)


if __name__ == "__main__":
    sys.exit(main())
