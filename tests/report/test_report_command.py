"""The command: what it writes, how it ends, and that it stays light."""

from __future__ import annotations

import errno
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from itertools import product
from pathlib import Path

import pytest

from cifar_lab.report.__main__ import main
from cifar_lab.report.compare import best_run, rank
from cifar_lab.report.groups import group
from cifar_lab.report.read import Reader
from cifar_lab.report.verdict import repeat_command
from cifar_lab.report.write import write_report
from tests.conftest import environment, record_of
from tests.report.conftest import config_of, rows_of, write_run

FIGURES = {"learning_curves", "accuracy_over_key", "heat_map", "accuracy_over_time", "seeds"}


def test_it_writes_all_of_it_below_the_path_and_says_where(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for number, (lr, blocks) in enumerate([(0.1, (1,)), (0.2, (1,)), (0.1, (2,)), (0.2, (2,))]):
        write_run(tmp_path / "runs" / str(number), lr=lr, num_blocks=blocks, test=0.4 + number / 30)
    write_run(tmp_path / "runs" / "bad", lr=0.3, status="failed", error="OSError: no", test=None)
    assert main([str(tmp_path / "runs")]) == 0
    out = tmp_path / "runs" / "report"
    printed = capsys.readouterr().out
    assert str(out / "report.html") in printed
    assert "OSError: no" in printed
    assert {path.stem for path in (out / "figures").glob("*.png")} >= FIGURES
    assert {path.stem for path in (out / "figures").glob("*.svg")} >= FIGURES
    rows = rows_of((out / "results.csv").read_text())
    assert len(rows) == 5
    assert rows[3]["test/acc"] == "0.5"
    assert {row["status"] for row in rows} == {"finished", "failed"}
    configurations = rows_of((out / "configurations.csv").read_text())
    assert [row["n"] for row in configurations] == ["1", "1", "1", "1", "0"]
    markdown = (out / "report.md").read_text()
    assert "![seeds](figures/seeds.png)" in markdown
    assert "OSError: no" in markdown


def test_a_figure_says_over_which_other_keys_it_takes_means(tmp_path: Path) -> None:
    for number, (lr, blocks, decay) in enumerate(product((0.1, 0.2), ((1,), (2,)), (0.0, 0.1))):
        config = config_of(lr, blocks, seed=0)
        config["optimizer"]["weight_decay"] = decay
        write_run(tmp_path / "runs" / str(number), config=config)
    out = write_report(tmp_path / "runs")
    for name in ("accuracy_over_key", "heat_map"):
        svg = (out / "figures" / f"{name}.svg").read_text()
        assert "means over all runs, whatever weight_decay" in svg


def test_the_report_of_a_report_is_the_same(tmp_path: Path) -> None:
    write_run(tmp_path / "runs" / "a")
    first = write_report(tmp_path / "runs")
    table = (first / "results.csv").read_text()
    figure = (first / "figures" / "seeds.svg").read_text()
    second = write_report(tmp_path / "runs")
    assert (second / "results.csv").read_text() == table
    assert (second / "figures" / "seeds.svg").read_text() == figure


@pytest.mark.parametrize("status", ["running", "failed", "diverged", "pruned", "interrupted"])
def test_a_folder_without_a_finished_run_is_reported_too(tmp_path: Path, status: str) -> None:
    write_run(tmp_path / "runs" / "only", status=status, test=None, curves=status != "failed")
    (tmp_path / "runs" / "broken").mkdir()
    (tmp_path / "runs" / "broken" / "run.json").write_text("{")
    assert main([str(tmp_path / "runs")]) == 0
    assert "No run has finished yet" in (tmp_path / "runs" / "report" / "report.html").read_text()


def test_a_folder_with_broken_records_only_says_so(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text("")
    assert main([str(tmp_path), "--out", "out"]) == 0
    assert "Invalid JSON" in Path("out/report.html").read_text()


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ([], "PATH"),
        (["nowhere"], "nowhere: does not exist"),
        (["file"], "file: is a file"),
        (["empty"], "holds no run.json"),
        (["runs", "--out", "file"], "--out=file: is a file"),
        (["runs", "--out", "runs/a"], "holds a run or a sweep"),
        (["runs", "--wacth"], "--wacth"),
        (["runs", "--watch", "0"], "seconds from 1"),
        (["--watch", "runs"], "seconds from 1"),
        (["runs", "--watch", "nan"], "seconds from 1"),
    ],
)
def test_wrong_input_is_one_line_and_status_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], says: str
) -> None:
    write_run(tmp_path / "runs" / "a")
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").touch()
    before = sorted(tmp_path.rglob("*"))
    assert main(words) == 2
    error = capsys.readouterr().err
    assert says in error
    assert error.count("\n") == 1
    assert sorted(tmp_path.rglob("*")) == before


def test_a_folder_that_cannot_be_made_is_one_line_and_status_1(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_run(tmp_path / "runs" / "a")
    (tmp_path / "file").touch()
    assert main(["runs", "--out", "file/below"]) == 1
    error = capsys.readouterr().err
    assert "file/below: can't be written" in error
    assert error.count("\n") == 1


def test_a_full_disk_is_one_line_and_status_1(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    write_run(tmp_path / "runs" / "a")
    monkeypatch.setattr("os.fsync", full)
    assert main(["runs"]) == 1
    error = capsys.readouterr().err
    assert error.startswith("runs/report: can't be written (No space left on device)")
    assert error.count("\n") == 1
    assert not any((tmp_path / "runs" / "report").iterdir())  # nothing half-written


def test_it_loads_neither_torch_nor_hydra(tmp_path: Path) -> None:
    write_run(tmp_path / "runs" / "a")
    write_run(tmp_path / "runs" / "b", lr=0.3, curves=False)
    (tmp_path / "runs" / "b" / "tensorboard").mkdir()
    code = """
import sys
from cifar_lab.report.__main__ import main
assert not {"pandas", "matplotlib", "scipy"} & set(sys.modules)  # a sweep's end may ask for help
assert main(["runs"]) == 0
print(sorted({"torch", "lightning", "hydra", "omegaconf", "plotly"} & set(sys.modules)))
"""
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment(), capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines()[-1] == "[]"


def test_watching_refreshes_until_it_is_stopped(tmp_path: Path) -> None:
    (tmp_path / "runs").mkdir()
    process = subprocess.Popen(
        [sys.executable, "-m", "cifar_lab.report", "runs", "--watch", "1"],
        env=environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    table, page = tmp_path / "runs/report/results.csv", tmp_path / "runs/report/report.html"
    try:
        write_run(tmp_path / "runs" / "a", status="running", heartbeat=2 * "9999")
        _wait_until(page.exists, process)
        assert '"watch":1.0' in page.read_text()
        write_run(tmp_path / "runs" / "b", seed=1)
        _wait_until(lambda: len(rows_of(table.read_text())) == 2, process)
        _wait_until(lambda: "runs/b" in page.read_text() or ">b<" in page.read_text(), process)
        process.send_signal(signal.SIGINT)
        _, error = process.communicate(timeout=30)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == 130
    assert error == ""
    assert '"watch":null' in page.read_text()


def _wait_until(holds: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 60
    while not holds():
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_the_command_in_the_report_repeats_the_best_run_of_a_real_sweep(
    sweep: Path, lab: Callable[..., tuple[int, str, str]], tmp_path: Path
) -> None:
    ranking = rank(group(Reader(sweep).read().runs)[0])[0]
    best = best_run(ranking)
    words = shlex.split(repeat_command(best))
    assert words[:3] == ["python", "-m", "cifar_lab"]
    status, _, error = lab(*words[3:], "hydra.run.dir=again")
    assert status == 0, error
    assert record_of(tmp_path / "again")["metrics"]["test/acc"] == best.test
