"""Tables that a spreadsheet opens: no name of anybody's is a formula there, and numbers stay."""

from __future__ import annotations

from pathlib import Path

import pytest

from cifar_lab.formats import csv_cell
from cifar_lab.report.write import write_report
from tests.report.conftest import config_of, rows_of, write_run

FORMULAS = ["=1+1", "+cmd|' /C calc'!A0", "-2+3", "@SUM(A1)", "\t=1", "\r=1", '=HYPERLINK("x")']


@pytest.mark.parametrize("text", FORMULAS)
def test_text_that_would_be_a_formula_is_text(text: str) -> None:
    assert csv_cell(text) == f"'{text}"


@pytest.mark.parametrize(
    "value", ["-0.1", "+3", "-1e-3", "-inf", -0.1, 3, None, True, "a=b", "", "lr0.1-seed0", "0=1"]
)
def test_numbers_and_other_text_stay(value: object) -> None:
    assert csv_cell(value) is value


def test_the_reports_tables_hold_no_formula(tmp_path: Path) -> None:
    runs = [("=1+1", 0.1, "@x"), ("-2+3", -0.2, "+y"), ("@c", 0.1, "+y"), ("+d", -0.2, "@x")]
    for name, lr, tag in runs:
        config = config_of(lr, (1,), seed=0)
        config["model"]["tag"] = tag
        write_run(tmp_path / "runs" / name, lr=lr, config=config, error="=1", status="failed")
    out = write_report(tmp_path / "runs")
    for table in ("results.csv", "configurations.csv"):
        rows = rows_of((out / table).read_text())
        cells = [cell for row in rows for cell in row.values()]
        assert not [cell for cell in cells if cell != csv_cell(cell)]
        assert {"'@x", "'+y"} <= set(cells)
        assert {row["optimizer.lr"] for row in rows} == {"0.1", "-0.2"}
