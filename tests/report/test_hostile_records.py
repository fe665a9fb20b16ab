"""Each field of a record, set to what no run writes: listed, or unreadable with a reason."""

from __future__ import annotations

import copy
import io
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from cifar_lab.report.read import Reader
from cifar_lab.report.write import write_report
from tests.report.conftest import write_run

HOSTILE: dict[str, str] = {
    "400 digits": "9" * 400,
    "400 digits below 0": "-" + "9" * 400,
    "nan": "NaN",
    "infinite": "1e999",
    "the largest": "1e308",
    "percent": "95.0",
    "below 0": "-1",
    "text": '"x"',
    "a naive time": '"2026-01-01T00:00:00"',
    "null": "null",
    "true": "true",
    "a list": "[[1, [2]]]",
    "a dictionary": '{"a": {"": [1]}}',
    "deep": "[" * 150 + "]" * 150,
    "deeper than any reader goes": "[" * 5000 + "]" * 5000,
    "marks of every kind": json.dumps("=cmd|\\x1b[31m[bold]\\n</script>\\0"),
}
PLACE = "the place of it"


def places(node: Any) -> Iterator[tuple[Any, ...]]:
    yield ()
    entries = node.items() if isinstance(node, dict) else ()
    for key, value in entries:
        for below in places(value):
            yield (key, *below)


def put(record: dict[str, Any], place: tuple[Any, ...], text: str) -> str:
    if not place:
        return text
    changed = copy.deepcopy(record)
    node = changed
    for key in place[:-1]:
        node = node[key]
    node[place[-1]] = PLACE
    return json.dumps(changed).replace(json.dumps(PLACE), text)


@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE)
def test_every_run_is_listed_or_said_to_be_unreadable(tmp_path: Path, text: str) -> None:
    more: dict[str, Any] = {
        "timings": {"fit_s": 1.0, "images_per_s": 2.0},
        "best_epoch": 2,
        "threads": 1,
    }
    folder = write_run(tmp_path / "runs" / "good", parameters=5, **more)
    record = json.loads((folder / "run.json").read_text())
    every = list(places(record))
    for number, place in enumerate(every):
        for seed in (0, 1):  # two of one configuration: their mean
            other = {**copy.deepcopy(record), "seed": seed}
            bad = tmp_path / "runs" / f"{number}-{seed}"
            bad.mkdir()
            (bad / "run.json").write_text(put(other, place, text))
    reading = Reader(tmp_path / "runs").read()
    assert len(reading.runs) + len(reading.broken) == 2 * len(every) + 1
    assert all(reason and "\n" not in reason for _, reason in reading.broken)
    assert all(run.test is None or 0 <= run.test <= 1 for run in reading.runs)
    console = Console(file=io.StringIO(), width=140)
    out = write_report(tmp_path / "runs", tmp_path / "out", console=console)
    assert (out / "report.html").exists()


def test_no_process_has_a_number_below_1(tmp_path: Path) -> None:
    # 0 and -1 would be answered for by this very group of processes, and live for ever
    for pid in (0, -1):
        write_run(tmp_path / str(pid), status="running", pid=pid)
    reading = Reader(tmp_path).read()
    assert [reason.partition(":")[0] for _, reason in reading.broken] == ["pid", "pid"]


def test_files_that_are_none_and_those_too_large_are_told_of(tmp_path: Path) -> None:
    (tmp_path / "pipe").mkdir()
    os.mkfifo(tmp_path / "pipe" / "run.json")
    (tmp_path / "large").mkdir()
    with (tmp_path / "large" / "run.json").open("wb") as file:
        file.truncate(2**30)
    folder = write_run(tmp_path / "curves")
    with (folder / "metrics.csv").open("r+b") as file:
        file.truncate(2**30)
    told = dict(Reader(tmp_path).read().broken)
    assert told == {
        "pipe": "run.json: is no file",
        "large": "run.json: has 1,073,741,824 bytes; at most 16,777,216 are read",
        "curves/metrics.csv": "curves left out: metrics.csv: has 1,073,741,824 bytes; at most "
        "67,108,864 are read",
    }


def test_references_to_references_are_not_followed(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", config=None)
    (folder / ".hydra").mkdir()
    lines = ["a0: &a0 [x, x]", *(f"a{i}: &a{i} [*a{i - 1}, *a{i - 1}]" for i in range(1, 60))]
    (folder / ".hydra" / "config.yaml").write_text("\n".join(lines))
    [(_, reason)] = Reader(tmp_path).read().broken
    assert reason == "config.yaml: holds references, as no run writes them"


@pytest.mark.parametrize(
    "arrays",
    [
        {"labels": np.array([2**62] * 3), "logits": np.eye(3)},
        {"labels": np.arange(3), "logits": np.zeros((3, 0))},
        {"labels": np.arange(3) * 10**5, "logits": np.eye(3)},
    ],
)
def test_predictions_of_no_network_count_as_missing(tmp_path: Path, arrays: dict[str, Any]) -> None:
    folder = write_run(tmp_path / "run")
    np.savez(folder / "predictions.npz", **arrays)
    [run] = Reader(tmp_path).read().runs
    assert run.predictions() is None
