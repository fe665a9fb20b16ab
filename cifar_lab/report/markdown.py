"""report.md: the tables, the verdict and the figures, for a repository or an issue."""

from __future__ import annotations

from collections.abc import Sequence

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from cifar_lab.report.ablation import worths
from cifar_lab.report.compare import Ranking, best_run, selected_by
from cifar_lab.report.groups import Group
from cifar_lab.report.notes import notes
from cifar_lab.report.page import TEMPLATES
from cifar_lab.report.read import Reading
from cifar_lab.report.tables import rows, status_text, worth_rows
from cifar_lab.report.verdict import (
    alike,
    failures,
    interval_text,
    method,
    repeat_command,
    selected_note,
    spread_text,
)
from cifar_lab.report.verdict import verdict as verdict_of


def render_markdown(
    *,
    title: str,
    written: str,
    reading: Reading,
    groups: Sequence[Group],
    rankings: Sequence[Ranking],
    figures: Sequence[str],
) -> str:
    """The report as Markdown; ``figures`` are names of files below ``figures/``."""
    loader = FileSystemLoader(TEMPLATES)
    # Markdown, not HTML: what a name must not do is end a table's cell
    environment = Environment(
        loader=loader, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["cell"] = _cell
    return environment.get_template("report.md").render(
        title=title,
        written=written,
        status=status_text(reading),
        runs=reading.runs,
        broken=reading.broken,
        rankings=rankings,
        rows=rows,
        worths=worths,
        worth_rows=worth_rows,
        best_run=best_run,
        selected_by=selected_by,
        repeat_command=repeat_command,
        verdict=verdict_of,
        alike=alike,
        selected_note=selected_note,
        method=method,
        spread=spread_text,
        interval=interval_text,
        failures=failures(groups),
        notes=notes(groups, rankings),
        figures=figures,
    )


def _cell(text: object) -> str:
    line = " ".join(str(text).splitlines())
    return line.replace("\\", "\\\\").replace("|", "\\|").replace("<", "&lt;")
