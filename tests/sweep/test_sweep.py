"""A sweep runs every point once, alone, and finds again what has been done."""

from __future__ import annotations

import csv
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from filelock import FileLock

from cifar_lab.records.digest import run_digest
from tests.conftest import TINY, environment, merged, record_of
from tests.sweep.conftest import SMALL

Lab = Callable[..., tuple[int, str, str]]
FATE = "+callbacks.fate._target_=fates.Fate"


def jobs_of(folder: Path) -> dict[str, dict[str, Any]]:
    """The record of every job, by the folder's name."""
    return {path.parent.name: record_of(path.parent) for path in sorted(folder.glob("*/run.json"))}


def by_fate(folder: Path) -> dict[str, dict[str, Any]]:
    return {r["config"]["callbacks"]["fate"]["how"]: r for r in jobs_of(folder).values()}


def rows_of(folder: Path) -> list[dict[str, str]]:
    with open(folder / "results.csv", newline="") as file:
        return list(csv.DictReader(file))


def weights_of(run_dir: Path) -> dict[str, torch.Tensor]:
    path = run_dir / "checkpoints" / "last.ckpt"
    state: dict[str, torch.Tensor] = torch.load(path, weights_only=True)["state_dict"]
    return state


def test_every_point_runs_in_a_plainly_named_folder_and_repeating_runs_nothing(
    lab: Lab, tmp_path: Path
) -> None:
    sweep = ("-m", *SMALL, "model.num_blocks=[1],[1,1]", "hydra.sweep.dir=sweep")
    status, out, err = lab(*sweep, "optimizer.lr=0.01,0.03")
    assert status == 0, err
    assert "sweep: 4 jobs" in out
    first = jobs_of(tmp_path / "sweep")
    assert len(first) == 4
    for name, record in first.items():
        assert record["status"] == "finished"
        assert not set("[],=' ") & set(name)
        assert name.endswith(run_digest(record["config_digest"], record["data"]["digest"])[:8])
    assert any(name.startswith("num_blocks1.1-lr0.03-") for name in first)
    rows = rows_of(tmp_path / "sweep")
    assert {row["optimizer.lr"] for row in rows} == {"0.01", "0.03"}
    assert all(float(row["test/acc"]) >= 0 for row in rows)

    # repeated: nothing runs; widened, and swept in another way: only what is new runs
    status, out, _ = lab(*sweep, "optimizer.lr=0.01,0.03")
    assert status == 0
    assert "4 ended before" in out
    assert jobs_of(tmp_path / "sweep") == first
    status, _, _ = lab(*sweep, "optimizer.lr=0.03", "seed=0,1")
    assert status == 0
    second = jobs_of(tmp_path / "sweep")
    assert len(second) == 6
    assert {name: second[name] for name in first} == first


def test_a_job_equals_the_run_alone_whatever_ran_before_it(
    lab: Lab, tmp_path: Path, fates: str
) -> None:
    arguments = (*TINY, "threads=1", FATE)
    status, _, err = lab(
        "-m", *arguments, f"{fates}=spoil,nothing", "slots=1", "hydra.sweep.dir=sweep"
    )
    assert status == 0, err
    alone = subprocess.run(
        [
            *(sys.executable, "-m", "cifar_lab", *arguments),
            *(f"{fates}=nothing", "hydra.run.dir=alone"),
        ],
        env=environment(),
        capture_output=True,
    )
    assert alone.returncode == 0, alone.stderr
    (swept,) = tmp_path.glob("sweep/*nothing*")
    assert (tmp_path / "working_directory").exists()
    assert "Warning" not in (swept / "console.log").read_text()
    records = record_of(swept), record_of(tmp_path / "alone")
    for key in ("config_digest", "threads", "steps", "parameters", "data"):
        assert records[0][key] == records[1][key]
    losses = [{k: v for k, v in r["metrics"].items() if "/" in k} for r in records]
    assert losses[0] == losses[1]
    expected = weights_of(tmp_path / "alone")
    assert all(torch.equal(value, expected[key]) for key, value in weights_of(swept).items())


WRONG = [
    (["optimizer.lr=0.01,-1", "seed=0,1"], ["optimizer.lr=-1", "above 0", "1 further"]),
    (["model.num_blocks=[1,1],[2,0]"], ["model.num_blocks=[2,0]", "at least 1"]),
    (["modle=cnn,resnet10"], ["modle=cnn", "did you mean model?"]),
    (["slots=1,2"], ["slots", "whole sweep"]),
    (["slots=0", "seed=0,1"], ["slots=0", "at least 1"]),
    (["retries=-1", "seed=0,1"], ["retries=-1"]),
    (["job_timeout=0", "seed=0,1"], ["job_timeout=0"]),
    (["optimizer=glob(q*)"], ["optimizer", "no values"]),
    (["optimizer.lr=interval(0.1,1)"], ["optimizer.lr", "sweep=optuna"]),
    (["hydra.sweep.dir=newest"], ["newest", "holds no sweep"]),
    (["hydra.sweep.dir=/dev/null/sweep"], ["hydra.sweep.dir=/dev/null/sweep", "can't be written"]),
]


@pytest.mark.parametrize(("arguments", "parts"), WRONG, ids=lambda value: " ".join(value)[:40])
def test_a_wrong_point_is_named_before_anything_runs(
    lab: Lab, tmp_path: Path, arguments: list[str], parts: list[str]
) -> None:
    status, out, err = lab("-m", *SMALL, *arguments)
    assert status == 2, err
    assert len(err.strip().splitlines()) == 1, err
    assert out == ""
    for part in parts:
        assert part in err
    assert not (tmp_path / "outputs").exists()


def test_a_preset_of_a_sweep_without_m_is_wrong_input(lab: Lab) -> None:
    status, _, err = lab("sweep=lr_blocks")
    assert status == 2
    assert "sweep=lr_blocks: sweeps optimizer.lr, model.num_blocks; it needs -m" in err


def test_jobs_that_die_in_every_way_are_on_record_and_the_rest_runs(
    lab: Lab, tmp_path: Path, fates: str
) -> None:
    status, _, err = lab(
        *("-m", *SMALL, FATE, "hydra.sweep.dir=sweep"),
        f"{fates}=raise,sys.exit,os._exit,kill,kill_once,memory_once,nothing",
    )
    assert status == 1
    records = by_fate(tmp_path / "sweep")
    ended = {how: record["status"] for how, record in records.items()}
    assert [how for how, status in ended.items() if status == "finished"] == sorted(
        ["kill_once", "memory_once", "nothing"], key=list(ended).index
    )
    assert set(ended.values()) == {"finished", "failed"}
    assert records["raise"]["error"] == "ZeroDivisionError: on purpose"
    assert "status 3" in records["os._exit"]["error"]
    assert "SIGKILL" in records["kill"]["error"]
    lines = err.strip().splitlines()
    assert lines[-5] == "4 of 7 jobs failed:"
    assert all("log: " in line for line in lines[-4:])
    rows = {row["+callbacks.fate.how".lstrip("+")]: row for row in rows_of(tmp_path / "sweep")}
    assert rows["kill"]["status"] == "failed"


def test_a_job_that_hangs_is_stopped_and_fail_fast_stops_the_rest(
    lab: Lab, tmp_path: Path, fates: str
) -> None:
    status, _, err = lab(
        *("-m", *SMALL, FATE, f"{fates}=hang", "seed=0,1,2", "hydra.sweep.dir=sweep"),
        *("job_timeout=2", "fail_fast=true", "slots=1"),
    )
    assert status == 1
    (record,) = jobs_of(tmp_path / "sweep").values()
    assert record["status"] == "failed"
    assert "job_timeout=2" in record["error"]
    assert "to continue: python -m cifar_lab -m" in err.strip().splitlines()[-1]


def test_a_sweep_ends_with_its_report_and_a_report_that_fails_changes_nothing(
    lab: Lab, tmp_path: Path
) -> None:
    sweep = ("-m", *SMALL, "seed=0,1", "hydra.sweep.dir=sweep")
    status, out, err = lab(*sweep, "report=true")
    assert status == 0, err
    page = tmp_path / "sweep" / "report" / "report.html"
    assert str(page) in out
    before = page.stat().st_mtime_ns
    status, out, _ = lab(*sweep)
    assert (status, page.stat().st_mtime_ns) == (0, before)
    assert "2 ended before" in out  # the switch is no part of a run's identity
    shutil.rmtree(page.parent)
    page.parent.touch()
    status, _, err = lab(*sweep, "report=true")
    assert status == 0
    assert len(err.strip().splitlines()) == 1
    assert err.startswith("cifar_lab: no report was written: ")


def test_a_second_sweep_into_the_folder_refuses(lab: Lab, tmp_path: Path) -> None:
    (tmp_path / "sweep").mkdir()
    with FileLock(tmp_path / "sweep" / ".lock"):
        status, _, err = lab("-m", *SMALL, "seed=0,1", "hydra.sweep.dir=sweep")
    assert status == 2
    assert "another sweep runs in it" in err


@pytest.mark.parametrize(("signum", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_stopped_sweep_stops_its_jobs_in_order_and_says_how_to_continue(
    tmp_path: Path, signum: signal.Signals, status: int, lab: Lab
) -> None:
    arguments = [*TINY, "trainer.max_epochs=400", "seed=0,1", "hydra.sweep.dir=sweep"]
    process = started(arguments, tmp_path)
    wait_for(lambda: len(list(tmp_path.glob("sweep/*/checkpoints/last.ckpt"))) == 2, process)
    process.send_signal(signum)
    _, err = process.communicate(timeout=60)
    assert process.returncode == status
    assert {r["status"] for r in jobs_of(tmp_path / "sweep").values()} == {"interrupted"}
    last_line = err.strip().splitlines()[-1]
    assert last_line.startswith("cifar_lab: to continue: python -m cifar_lab -m data=synthetic")
    assert f"hydra.sweep.dir={tmp_path}/sweep" in last_line


def test_workers_end_with_their_parent(tmp_path: Path) -> None:
    arguments = [*TINY, "trainer.max_epochs=400", "seed=0,1", "hydra.sweep.dir=sweep"]
    process = started(arguments, tmp_path)
    wait_for(lambda: len(jobs_of(tmp_path / "sweep")) == 2, process)
    workers = [record["pid"] for record in jobs_of(tmp_path / "sweep").values()]
    process.kill()
    process.communicate()
    deadline = time.monotonic() + 20  # a second, on a machine that has nothing else to do
    while any(alive(pid) for pid in workers):
        assert time.monotonic() < deadline
        time.sleep(0.02)


def started(arguments: list[str], cwd: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "cifar_lab", "-m", *merged(*arguments)],
        env=environment(),
        cwd=cwd,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )


def wait_for(condition: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    while not condition():
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.05)


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    stat = Path(f"/proc/{pid}/stat")
    # one that nobody has waited for yet has ended all the same
    return not stat.exists() or stat.read_text().rpartition(")")[2].split()[0] != "Z"


@pytest.mark.slow
def test_random_kills_lose_nothing_and_repeat_nothing(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "benchmarks.sweep_kills", "--jobs", "8", "--kills", "10"]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.slow
def test_ranks_of_a_job_run_that_job(tmp_path: Path, lab: Lab) -> None:
    status, _, err = lab(
        *("-m", *TINY, "trainer=ddp", "trainer.accelerator=cpu", "seed=0,1", "slots=1"),
        "hydra.sweep.dir=sweep",
    )
    assert status == 0, err
    assert {r["steps"] for r in jobs_of(tmp_path / "sweep").values()} == {16}
    assert not (tmp_path / "outputs").exists()
