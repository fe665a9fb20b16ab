"""report.html: one file that needs no network, and is told so (its Content-Security-Policy)."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from datetime import datetime
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined, Template
from markupsafe import Markup
from numpy.typing import NDArray

from cifar_lab.report.axes import (
    DASHES,
    PALETTE,
    axis_keys,
    curve_names,
    scale_of,
    title_of,
)
from cifar_lab.report.compare import Confusion, Ranking, Report, best_run, selected_by
from cifar_lab.report.groups import Group, Key, level_of
from cifar_lab.report.notes import notes
from cifar_lab.report.read import Run
from cifar_lab.report.statistics import Estimate
from cifar_lab.report.tables import clock, rows, status_text, worth_rows
from cifar_lab.report.verdict import (
    alike,
    failures,
    interval_text,
    method,
    repeat_command,
    selected_note,
    spread_text,
    verdict,
)

TEMPLATES = Path(__file__).parent / "templates"
# All curves' numbers together: about 4 MB of text, which a phone reads in under a second.
_CURVE_NUMBERS = 600_000


def render_page(report: Report, *, watch_s: float | None) -> str:
    """The whole page; with ``watch_s`` it reloads itself as often."""
    rankings, keys = report.rankings, report.keys
    ordered = [group for r in rankings for group in (*r.ranked, *r.unranked)]
    data = {"watch": watch_s, **_data(ordered, keys, rankings, report.confusions)}
    loader = FileSystemLoader(TEMPLATES)
    environment = Environment(
        loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    numbered = enumerate((group, run) for group in ordered for run in group.runs)
    return filled(
        environment.get_template("page.html"),
        report,
        watch_s=watch_s,
        configurations=[row for ranking in rankings for row in rows(ranking)],
        groups=ordered,
        keys=keys,
        runs=[(number, group, run) for number, (group, run) in numbered],
        failures=failures(ordered),
        level_of=level_of,
        clock=clock,
        data=_as_script(data),
        style=_datatables("dt_bundle.css") + _read(TEMPLATES / "page.css"),
        script=_read(TEMPLATES / "charts.js") + _read(TEMPLATES / "page.js"),
        plotly=_read(_folder_of("plotly") / "package_data" / "plotly.min.js"),
        datatables=_datatables("dt_bundle.js"),
    )


def filled(template: Template, report: Report, **further: Any) -> str:
    """A template with what the page and the Markdown both show, and ``further`` of its own."""
    return template.render(
        title=report.title,
        written=datetime.now().astimezone().strftime("%Y-%m-%d %H:%M:%S %Z"),
        status=status_text(report.reading),
        broken=report.reading.broken,
        rankings=report.rankings,
        rows=rows,
        ingredients=[(r.data_name, found) for r in report.rankings if (found := worth_rows(r))],
        best_run=best_run,
        selected_by=selected_by,
        repeat_command=repeat_command,
        verdict=verdict,
        alike=alike,
        selected_note=selected_note,
        method=method,
        spread=spread_text,
        interval=interval_text,
        notes=notes(report.groups, report.rankings),
        **further,
    )


def _data(
    groups: Sequence[Group],
    keys: Sequence[Key],
    rankings: Sequence[Ranking],
    confusions: Sequence[Sequence[Confusion]],
) -> dict[str, Any]:
    """What charts.js draws."""
    return {
        "palette": PALETTE,
        "dashes": DASHES,
        **_axes(keys),
        **_runs(groups, keys, rankings),
        "data": [
            {
                "name": ranking.data_name,
                "accuracy": selected_by(ranking),
                "confusions": [{**vars(c), "counts": c.counts.tolist()} for c in its],
            }
            for ranking, its in zip(rankings, confusions, strict=True)
        ],
    }


def _axes(keys: Sequence[Key]) -> dict[str, Any]:
    x, lines = axis_keys(keys)
    return {
        "keys": [
            {
                "key": key.key,
                "name": key.name,
                "levels": key.levels,
                "numeric": key.numeric,
                "log": key.log,
            }
            for key in keys
        ],
        "x": keys.index(x) if x else 0,
        "lines": keys.index(lines) if lines else -1,
    }


def _runs(
    groups: Sequence[Group], keys: Sequence[Key], rankings: Sequence[Ranking]
) -> dict[str, Any]:
    """Groups and runs by number, as the script reads them."""
    place = {id(g): (at, i) for at, r in enumerate(rankings) for i, g in enumerate(r.ranked)}
    data_of = {id(g): at for at, r in enumerate(rankings) for g in (*r.ranked, *r.unranked)}
    every = [run for group in groups for run in group.runs]
    names = curve_names(every)
    most = max(20, _CURVE_NUMBERS // max(1, len(every) * len(names)))
    shown_groups: list[dict[str, Any]] = []
    shown_runs: list[dict[str, Any]] = []
    for number, group in enumerate(groups):
        ids = range(len(shown_runs), len(shown_runs) + len(group.runs))
        shown_groups.append(
            {
                "label": group.label,
                "data": data_of[id(group)],
                "place": place[id(group)][1] if id(group) in place else None,
                "levels": [level_of(key, group) for key in keys],
                "values": [group.values[key.key] if key.numeric else None for key in keys],
                "val": _interval(group.selection),
                "test": _interval(group.test),
                "runs": list(ids),
                "counted": [at for at, run in zip(ids, group.runs, strict=True)
                            if run in group.counted],
            }
        )  # fmt: skip
        shown_runs += [_run(run, number, names, most) for run in group.runs]
    return {
        "metrics": [{"name": n, "title": title_of(n), "scale": scale_of(n)} for n in names],
        "groups": shown_groups,
        "runs": shown_runs,
    }


def _interval(value: Estimate | None) -> dict[str, float | None] | None:
    return None if value is None else {"mean": value.mean, "low": value.low, "high": value.high}


def _run(run: Run, group: int, names: Sequence[str], most: int) -> dict[str, Any]:
    curves, epochs = run.curves, run.curves.get("epoch", np.empty(0))
    # evenly thinned, the last one always kept
    kept = np.unique(np.linspace(0, len(epochs) - 1, min(len(epochs), most)).round().astype(int))
    return {
        "name": run.name,
        "group": group,
        "seed": run.seed,
        "status": run.status,
        "val": run.selection,
        "test": run.test,
        "fit_s": run.fit_s,
        "parameters": run.parameters,
        "epochs": _short(epochs[kept]),
        "curves": {i: _short(curves[n][kept]) for i, n in enumerate(names) if n in curves},
    }


def _short(values: NDArray[np.float64]) -> list[float | None]:
    # five digits are finer than a pixel
    return [float(f"{v:.5g}") if math.isfinite(v) else None for v in values.tolist()]


def _as_script(data: Any) -> Markup:
    text = json.dumps(data, separators=(",", ":"), allow_nan=False, default=str)
    return Markup(text.replace("<", "\\u003c"))


def _read(path: Path) -> Markup:
    return Markup(path.read_text(encoding="utf-8"))


def _datatables(name: str) -> Markup:
    """DataTables, as itables ships it."""
    return _read(_folder_of("itables") / "html" / name)


def _folder_of(package: str) -> Path:
    # not imported: plotly and itables are here for the JavaScript that they carry
    spec = find_spec(package)
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin).parent
