"""The prepared day on a GPU: its clock, its file, what it reads and shows; all of it, tiny."""

from __future__ import annotations

import json
import sys
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import pytest

from benchmarks import random_images
from benchmarks.child import Ended
from benchmarks.gpu_day import __main__ as gpu_day
from benchmarks.gpu_day import blocks, pack, table
from benchmarks.gpu_day.day import FILE_NAME, Block, Day, Row, Task, read
from cifar_lab.errors import InputError

DESCRIBED: dict[str, Any] = {
    "machine": {"gpu": "G", "cpu": "C", "cores": 2, "cuda": "1", "cudnn": 2, "python": "3"},
    "packages": {"torch": "2"},
    "driver": None,
    "data": "abc",
}


def lines(ended: Ended, _: Path) -> list[Row]:
    return [json.loads(line) for line in ended.output.splitlines()]


def task(name: str, code: str, **more: Any) -> Task:
    code = f"import json, os, sys, time\n{code}"
    return Task(name=name, command=lambda _: [sys.executable, "-c", code], read=lines, **more)


def block(*tasks: Task, budget_s: float = 60) -> Block:
    return Block(name="block", title="", budget_s=budget_s, tasks=tasks)


def statuses(folder: Path) -> dict[str, str]:
    results = read(folder / FILE_NAME)["results"]["block"]
    return {name: result["status"] for name, result in results.items()}


def test_what_was_cut_off_is_repeated_and_nothing_else(tmp_path: Path) -> None:
    counted = f"open({str(tmp_path / 'count')!r}, 'a').write('x')\nprint(json.dumps({{'a': 1}}))"
    done, fails = task("done", counted), task("fails", "sys.exit('no such thing')")
    slow = task("slow", "print(json.dumps({'a': 1}), flush=True)\ntime.sleep(60)", limit_s=2)
    Day(tmp_path, DESCRIBED, 60).run([block(done, fails, slow)])
    assert statuses(tmp_path) == {"done": "done", "fails": "failed", "slow": "cut"}
    results = read(tmp_path / FILE_NAME)["results"]["block"]
    assert results["slow"]["rows"] == [{"a": 1}]  # what it told by then
    assert "no such thing" in results["fails"]["said"]
    Day(tmp_path, DESCRIBED, 60).run([block(done, fails, task("slow", ""))])
    assert statuses(tmp_path) == {"done": "done", "fails": "failed", "slow": "done"}
    assert (tmp_path / "count").read_text() == "x"
    assert len(read(tmp_path / FILE_NAME)["calls"]) == 2


def test_a_block_has_its_budget_and_what_the_one_before_left(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Day(tmp_path, DESCRIBED, 60).run([block(task("a", ""), budget_s=1)])
    assert "a: not reached" in capsys.readouterr().out
    early = Block(name="early", title="", budget_s=30, tasks=[])
    Day(tmp_path, DESCRIBED, 60).run([early, block(task("a", ""), budget_s=1)])
    assert statuses(tmp_path) == {"a": "done"}


def test_a_file_that_is_none_is_refused(tmp_path: Path) -> None:
    (tmp_path / FILE_NAME).write_text("{}")
    with pytest.raises(InputError, match="can't be read"):
        Day(tmp_path, DESCRIBED, 1)


def ended(output: str) -> Ended:
    return Ended(status=1, output=output, errors="", wall_s=1, first_line_s=None, timed_out=False)


def test_tests_are_counted_however_many_run_at_a_time() -> None:
    said = f"FAILURE {json.dumps(['tests/x.py::test_b[a, b]', 'E  assert'])}"
    parallel = (
        f"[gw0] [ 50%] PASSED tests/x.py::test_a \n{said}\n"
        "[gw1] [ 99%] FAILED tests/x.py::test_b[a, b] \n"
        "FAILED tests/x.py::test_b[a, b] - AssertionError\n"
    )
    alone = f"tests/x.py::test_a PASSED   [ 50%]\n{said}\ntests/x.py::test_b[a, b] FAILED [ 99%]\n"
    for output in (parallel, alone):
        counts, failure = blocks.read_tests(ended(output), Path())
        assert counts == {"passed": 1, "failed": 1, "error": 0, "skipped": 0}
        assert failure == {
            "test": "tests/x.py::test_b[a, b]",
            "end": "failed",
            "said": "E  assert",
        }


def test_a_public_script_tells_accuracies_and_seconds() -> None:
    output = (
        "|  run     |  epoch  |  train_acc  |  val_acc  |  tta_val_acc  |  time_seconds  |\n"
        "|       0  |      7  |     0.9500  |   0.9340  |               |        2.1000  |\n"
        "|          |   eval  |     0.9500  |   0.9340  |       0.9402  |        2.5900  |\n"
    )
    assert blocks.read_public(ended(output), Path()) == [
        {"test/acc": 0.9402, "test/acc_without_tta": 0.9340, "fit_s": 2.59}
    ]


def test_packed_images_are_the_same_images(tmp_path: Path) -> None:
    random_images.make(tmp_path / "random", 200)
    data = tmp_path / "random" / random_images.ZIP_NAME
    pack.compress(data, tmp_path / pack.IMAGES)
    again = pack.unpacked(tmp_path / pack.IMAGES, tmp_path)
    with zipfile.ZipFile(data) as one, zipfile.ZipFile(again) as other:
        assert one.namelist() == other.namelist()
        assert all(one.read(name) == other.read(name) for name in one.namelist())
    assert tarfile.is_tarfile(tmp_path / pack.IMAGES)


def test_an_interval_is_students(tmp_path: Path) -> None:
    # t(0.975, 2) = 4.303, and the standard deviation of .89, .90, .91 is .01
    assert table.interval([0.89, 0.90, 0.91]) == f"90.00 ± {4.303 / 3**0.5:.2f}"
    assert table.interval([0.9]) == "90.00"
    assert table.interval([]) == ""


def test_an_ablation_is_a_row_for_the_recipe_and_one_without_each_ingredient() -> None:
    whole = [{"ablation": None, "test/acc": 0.9, "fit_s": 2.0}] * 2
    without = [{"ablation": "without_flip", "test/acc": 0.8, "fit_s": 1.0}]
    tasks = {"speed94": {"rows": [*whole, *without], "seconds": 9.0, "status": "done"}}
    state = {"calls": [{**DESCRIBED, "started": "2026-01-01"}], "results": {"ablations": tasks}}
    rows = [line.split(" | ") for line in table.markdown(state).splitlines() if "speed94" in line]
    assert [(row[0], row[1], row[-1]) for row in rows] == [
        ("| speed94, whole", "90.00 ± 0.00", "2 |"),
        ("| speed94, without_flip", "80.00", "1 |"),
    ]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "--data: name the images"),
        (["--data=nowhere"], "--data=nowhere: isn't there"),
        (["--tiny", "--blocks=laws,lunch"], "--blocks lunch: must be of laws,speed"),
        (["--tiny", "--also=x"], "--also x: must read NAME=COMMAND"),
    ],
)
def test_wrong_input_is_one_line(
    capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    assert gpu_day.main(arguments) == 2
    said = capsys.readouterr().err
    assert message in said
    assert len(said.strip().splitlines()) == 1


@pytest.mark.slow
def test_all_of_it_runs_on_a_cpu(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert gpu_day.main(["--tiny", f"--out={tmp_path}/out"]) == 0
    state = read(tmp_path / "out" / FILE_NAME)
    results = [r for tasks in state["results"].values() for r in tasks.values()]
    assert results
    # a busy machine may cut some off
    assert not [r["said"] for r in results if r["status"] == "failed"]
    assert "### laws" in (tmp_path / "out" / "gpu_day.md").read_text()
