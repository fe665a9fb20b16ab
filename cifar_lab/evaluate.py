"""``python -m cifar_lab.evaluate RUN…``: a finished run measured again, on its test set or others.

    python -m cifar_lab.evaluate RUN... [--data PATH] [--ckpt best|last|FILE]
                                 [--tta none|flip|flip+shift] [--corrupt] [--json]
                                 [--out DIR] [--trust MODULE]

Without options it repeats the run's own test, to the last digit.

--data     an archive, a .zip or class folders of (some of) the same classes; with --corrupt also
           the unpacked archive CIFAR-10-C
--corrupt  15 corruptions in 5 strengths, and the mean corruption error
--out      where figures go (RUN/evaluation); with --json they are drawn only where it is given
--trust    a module of your own that a record may name

Several runs: the ensemble (mean of probabilities) beside each one.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cifar_lab.config.command import Parser, run_command, table_console, usage_in
from cifar_lab.errors import InputError
from cifar_lab.records.files import expanded

if TYPE_CHECKING:
    from rich.console import Console

    from cifar_lab.data.datamodule import DataModule
    from cifar_lab.inference.evaluation import Evaluation
    from cifar_lab.inference.robustness import Robustness
    from cifar_lab.run.load import Run


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit status (0, 1, 2 for wrong input, 130 or 143)."""
    return run_command(arguments, lambda words: _evaluate(_parse(words)), text=__doc__)


def _evaluate(given: argparse.Namespace) -> int:
    from cifar_lab.inference.evaluation import ensemble, evaluate, summarize
    from cifar_lab.inference.show import print_comparison, print_evaluation
    from cifar_lab.run.load import load_run

    console = table_console()
    runs = [load_run(path, given.ckpt, trust=given.trust) for path in given.runs]
    _check_alike(runs, given)
    archive = _archive(given)
    evaluated: list[Evaluation] = []
    tables: dict[str, Robustness] = {}
    written: list[Path] = []
    for run, name in zip(runs, _names(runs), strict=True):
        data, held_out, notes = (None, None, ()) if archive else _images(run, given.data)
        for note in notes:
            print(f"cifar_lab: {run.folder}: {note}", file=sys.stderr)
        if data is not None:
            one = evaluate(run, data, held_out=held_out, tta=given.tta)
            for note in (*one.notes, *_departure(run, one, given)):
                print(f"cifar_lab: {run.folder}: {note}", file=sys.stderr)
            evaluated.append(one)
            if not given.json:
                _print_head(run, data, given, console)
                print_evaluation(one, console)
            folder = _out(given, run, name, len(runs))
            if folder is not None:
                written += _drawn(one, data, folder)
        if given.corrupt:
            table = _corrupted(run, archive or data, evaluated[-1:], given)
            tables[name] = table
            if not given.json:
                from cifar_lab.inference.show import print_robustness

                print_robustness(table, console)
    if len(evaluated) > 1:
        joined = ensemble([one.outputs for one in evaluated])
        together = summarize(f"ensemble of {len(evaluated)}", joined, runs[0].classes)
        if not given.json:
            print_comparison([*evaluated, together], console)
        evaluated.append(together)
    if given.json:
        print(json.dumps(_json(given, runs, evaluated, tables), indent=2))
    for path in written if not given.json else ():
        console.print(f"figure         {path}", soft_wrap=True, markup=False)
    return 0


def _images(run: Run, root: str | None) -> tuple[DataModule, DataModule | None, tuple[str, ...]]:
    """What is measured on, and what holds the held-out images."""
    from cifar_lab.inference.images import feed_of, other_images, own_images

    if root is None:
        own = own_images(run)
        return own, own, ()
    data = other_images(run, root)
    if run.record.data.holds(data.dataset.digest):  # moved; the split is a matter of its rows
        return data, feed_of(run, data.dataset, hold_out=True), ()
    try:
        return data, own_images(run), ()
    except InputError:
        note = "its own images are not here: no temperature is fitted"
        return data, None, (note,)


def _corrupted(
    run: Run, data: Any, evaluated: Sequence[Evaluation], given: argparse.Namespace
) -> Robustness:
    from rich.console import Console
    from rich.progress import Progress

    from cifar_lab.inference.evaluation import Tester
    from cifar_lab.inference.robustness import measure

    clean = evaluated[0].accuracy if evaluated else None
    console = Console(stderr=True)
    bar = Progress(console=console, transient=True, disable=not console.is_terminal)
    with bar as progress:
        task = progress.add_task("corruptions", total=75)
        return measure(
            run,
            Tester(run, tta=given.tta),
            data,
            clean=clean,
            done=lambda: progress.advance(task),
        )


def _departure(run: Run, one: Evaluation, given: argparse.Namespace) -> list[str]:
    """Says where the run's own test, repeated, has another result."""
    recorded = run.metrics.get("test/acc")
    repeated = given.data is None and given.ckpt == "best" and given.tta is None
    if not repeated or recorded is None or recorded == one.accuracy:
        return []
    from cifar_lab.records.environment import package_versions
    from cifar_lab.records.record import Start, made_otherwise

    others = made_otherwise(run.record.all_starts, Start(packages=package_versions(run.config)))
    made = f"; it was made with {others}" if others else ""
    return [f"its own test had an accuracy of {recorded}, and here it is {one.accuracy}{made}"]


def _archive(given: argparse.Namespace) -> Path | None:
    from cifar_lab.inference.corruptions import is_archive

    if given.data is None or not is_archive(expanded(given.data)):
        return None
    if not given.corrupt:
        raise InputError(f"--data={given.data}: is an archive of corrupted images; add --corrupt")
    return expanded(given.data)


def _check_alike(runs: Sequence[Run], given: argparse.Namespace) -> None:
    first = runs[0]
    for run in runs[1:]:
        if run.classes != first.classes:
            raise InputError(
                f"{run.folder}: has other classes than {first.folder}; give each a command"
            )
        if given.data is None and run.record.data.digest != first.record.data.digest:
            raise InputError(
                f"{run.folder}: was tested on other images than {first.folder}; give each a "
                "command, or images for all with --data"
            )


def _names(runs: Sequence[Run]) -> list[str]:
    """Of the folders; those that are alike get a number."""
    names = [run.folder.name for run in runs]
    return [
        f"{name}-{place + 1}" if names.count(name) > 1 else name for place, name in enumerate(names)
    ]


def _out(given: argparse.Namespace, run: Run, name: str, runs: int) -> Path | None:
    if given.out is not None:
        out = expanded(given.out)
        return out / name if runs > 1 else out
    return None if given.json else run.folder / "evaluation"


def _drawn(one: Evaluation, data: DataModule, folder: Path) -> list[Path]:
    from cifar_lab.inference.show import write_figures

    try:
        return write_figures(one, data.dataset.test.images, folder)
    except OSError as error:
        raise InputError(
            f"{folder}: can't be written ({error.strerror or error}); give another with --out"
        ) from error


def _print_head(run: Run, data: DataModule, given: argparse.Namespace, console: Console) -> None:
    from cifar_lab.run.summary import describe_data

    described = describe_data(run.record.data)
    where = f"its own test images ({described})" if given.data is None else given.data
    tta = _tta(run, given)
    extra = "" if tta == "none" else f", mean of the logits over the views of tta={tta}"
    for name, value in (
        ("run", str(run.folder)),
        ("checkpoint", f"{run.checkpoint.name} ({run.digest[:12]}){extra}"),
        ("data", where),
    ):
        console.print(f"{name:<15}{value}", soft_wrap=True, markup=False)


def _tta(run: Run, given: argparse.Namespace) -> str:
    """What is used: the run's own, where none is asked for."""
    return given.tta or str(run.config.get("tta", "none"))


def _json(
    given: argparse.Namespace,
    runs: Sequence[Run],
    evaluated: Sequence[Evaluation],
    tables: dict[str, Robustness],
) -> dict[str, Any]:
    from cifar_lab.inference.show import as_json, robustness_json

    found = []
    for place, (run, name) in enumerate(zip(runs, _names(runs), strict=True)):
        one = as_json(evaluated[place]) if evaluated else {}
        one |= {"run": str(run.folder), "checkpoint": str(run.checkpoint), "digest": run.digest}
        one["tta"] = _tta(run, given)
        if name in tables:
            one["corruptions"] = robustness_json(tables[name])
        found.append(one)
    together = as_json(evaluated[-1]) if len(evaluated) > len(runs) else None
    return {"data": given.data, "runs": found, "ensemble": together}


def _parse(words: Sequence[str]) -> argparse.Namespace:
    parser = Parser(usage_in(__doc__))
    parser.add_argument("runs", nargs="+", metavar="RUN")
    parser.add_argument("--data")
    parser.add_argument("--ckpt", default="best")
    parser.add_argument("--tta", choices=("none", "flip", "flip+shift"))
    parser.add_argument("--corrupt", action="store_true")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--out")
    parser.add_argument("--trust", action="append", default=[])
    return parser.parse_args(list(words))


if __name__ == "__main__":
    sys.exit(main())
