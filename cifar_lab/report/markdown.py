"""report.md: the tables, the verdict and the figures, for a repository or an issue."""

from __future__ import annotations

from collections.abc import Sequence

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from cifar_lab.report.compare import Report
from cifar_lab.report.page import TEMPLATES, filled
from cifar_lab.report.verdict import failures


def render_markdown(report: Report, *, figures: Sequence[str]) -> str:
    """The report as Markdown; ``figures`` are names of files below ``figures/``."""
    loader = FileSystemLoader(TEMPLATES)
    # Markdown, not HTML: what a name must not do is end a table's cell
    environment = Environment(
        loader=loader, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["cell"] = _cell
    return filled(
        environment.get_template("report.md"),
        report,
        runs=report.reading.runs,
        failures=failures(report.groups),
        figures=figures,
    )


def _cell(text: object) -> str:
    line = " ".join(str(text).splitlines())
    return line.replace("\\", "\\\\").replace("|", "\\|").replace("<", "&lt;")
