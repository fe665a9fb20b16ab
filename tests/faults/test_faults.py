"""Whatever happens to a run, the run that continues it ends as if nothing had.

"The same" is: final weights, optimizer state, test logits, metrics.csv and TensorBoard scalars,
equal to the bit to an undisturbed run's (rates of images per second aside).
"""

from __future__ import annotations

import csv
import json
import os
import random
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from cifar_lab.records.checkpoint_file import load
from tests.conftest import TINY, is_timing, record_of, started
from tests.faults import child

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

Survived = Callable[[str], None]
_COMMON = (
    *[argument for argument in TINY if not argument.startswith("model")],
    "trainer.max_epochs=3",
    "callbacks.checkpoints.every_minutes=0.002",
    "threads=1",
)
MODELS = {
    "cnn": (*_COMMON, "model=cnn", "model.width=4"),
    "resnet": (*_COMMON, "model=resnet10", "model.num_blocks=[1,1]", "model.width=4"),
}
KILLS = 60  # of each model


def finish(process: Any, seconds: float = 120) -> int:
    process.join(seconds)
    assert process.exitcode is not None, "hangs"
    return int(process.exitcode)


class Run:
    """A run folder and the command line that starts and continues it."""

    def __init__(self, model: str, run_dir: Path) -> None:
        self.run_dir = run_dir
        self.arguments = (*MODELS[model], f"hydra.run.dir={run_dir}")
        self.output = run_dir.with_name(f"{run_dir.name}.out")

    def start(self, fault: dict[str, Any] | None = None) -> Any:
        self.output.write_text("")
        folder = self.run_dir.parent
        return child.start(self.arguments, folder=folder, output=self.output, fault=fault)

    def status(self, fault: dict[str, Any] | None = None) -> int:
        return finish(self.start(fault))

    def said(self) -> str:
        return self.output.read_text().strip()


@pytest.fixture(scope="session")
def whole(shared_folder: Path) -> Callable[[str], Run]:
    """The undisturbed run of a model, made once."""

    def of(model: str) -> Run:
        run = Run(model, shared_folder / model)
        if not run.run_dir.exists():
            assert run.status() == 0, run.said()
        return run

    return of


def curves(run_dir: Path) -> tuple[list[dict[str, str]], dict[str, list[tuple[int, float]]]]:
    with open(run_dir / "metrics.csv", newline="") as file:
        rows = [{k: v for k, v in r.items() if not is_timing(k)} for r in csv.DictReader(file)]
    events = EventAccumulator(str(run_dir / "tensorboard")).Reload()
    tags = [tag for tag in events.Tags()["scalars"] if not is_timing(tag)]
    return rows, {tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in tags}


def assert_same(run: Run, reference: Run) -> None:
    a, b = (
        torch.load(r.run_dir / "checkpoints" / "last.ckpt", weights_only=True)
        for r in (run, reference)
    )
    assert all(torch.equal(a["state_dict"][k], b["state_dict"][k]) for k in b["state_dict"])
    momenta = [c["optimizer_states"][0]["state"] for c in (a, b)]
    for key, state in momenta[1].items():
        assert torch.equal(momenta[0][key]["momentum_buffer"], state["momentum_buffer"])
    assert curves(run.run_dir) == curves(reference.run_dir)
    names = ("predictions.npz",)
    assert all(
        (run.run_dir / n).read_bytes() == (reference.run_dir / n).read_bytes() for n in names
    )
    records = [record_of(r.run_dir) for r in (run, reference)]
    for record in records:
        record["metrics"].pop("images_per_s", None)
    for field in ("status", "metrics", "epochs", "steps", "tested", "best_epoch", "error"):
        assert records[0][field] == records[1][field], field
    left = [p.name for p in run.run_dir.rglob(".*") if p.name not in (".hydra", ".lock")]
    assert left == []


# --- SIGKILL --------------------------------------------------------------------------------------


@pytest.mark.parametrize("model", MODELS)
def test_sigkill_at_random_moments(
    model: str, whole: Callable[[str], Run], tmp_path: Path, survived: Survived
) -> None:
    reference = whole(model)
    draw = random.Random(f"{model} 2026")
    started = time.monotonic()
    assert Run(model, tmp_path / "measured").status() == 0
    duration = time.monotonic() - started
    kills = 0
    for number in child.numbers():
        if kills >= KILLS:
            break
        run = Run(model, tmp_path / f"run{number}")
        for _ in range(12):
            process = run.start()
            process.join(draw.uniform(0, duration))
            if process.exitcode is None:
                process.kill()
            status = finish(process)
            if status == 0:
                break
            assert status == -signal.SIGKILL, run.said()
            kills += 1
            survived(f"SIGKILL at a random moment ({model})")
        assert run.status() == 0, run.said()
        assert_same(run, reference)


def test_sigkill_at_every_change_on_the_disk(
    whole: Callable[[str], Run], tmp_path: Path, survived: Survived
) -> None:
    reference = whole("cnn")
    for number in child.numbers():
        run = Run("cnn", tmp_path / f"run{number}")
        # checkpoints by wall time come at other moments each time: here by epoch only
        run.arguments = (*run.arguments, "callbacks.checkpoints.every_minutes=null")
        status = run.status({"kind": "kill at file operation", "number": number})
        if status == 0:
            break
        assert status == -signal.SIGKILL, run.said()
        assert run.status() == 0, run.said()
        assert_same(run, reference)
        survived("SIGKILL before each rename, link, flush, removal (cnn)")
    assert number > 50


# --- signals --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("place", "call"),
    [
        *[("build", 0), ("fit", 0), ("fit", 9), ("fit", 15), ("validation", 0), ("validation", 6)],
        *[("checkpoint", 0), ("checkpoint", 2), ("logger", 1), ("epoch end", 2)],
        *[("test", 0), ("test", 3), ("predictions", 0)],
    ],
)
@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("times", [1, 2])
def test_signals_end_in_order(
    place: str,
    call: int,
    signum: signal.Signals,
    times: int,
    whole: Callable[[str], Run],
    tmp_path: Path,
    survived: Survived,
) -> None:
    run = Run("cnn", tmp_path / "run")
    fault = {"kind": "signal", "place": place, "call": call, "signums": [int(signum)] * times}
    assert run.status(fault) == 128 + signum, run.said()
    if place != "build":
        assert record_of(run.run_dir)["status"] == "interrupted"
        assert run.said().splitlines()[-1].startswith("cifar_lab: to continue: python -m cifar_lab")
    assert run.status() == 0, run.said()
    assert_same(run, whole("cnn"))
    survived(f"{signum.name}{', twice,' if times > 1 else ''} during: {place}")


# --- endings that are nobody's wish ---------------------------------------------------------------


@pytest.mark.parametrize(
    ("place", "call", "error"),
    [
        ("fit", 11, "MemoryError"),
        ("fit", 11, "OutOfMemoryError"),
        ("validation", 5, "OutOfMemoryError"),
        ("epoch end", 1, "ZeroDivisionError"),
        ("logger", 3, "ZeroDivisionError"),
        ("logger", 3, "ENOSPC"),
        ("checkpoint", 2, "ENOSPC"),
        ("checkpoint", 2, "EROFS"),
        ("test", 2, "ZeroDivisionError"),
        ("predictions", 0, "ENOSPC"),
    ],
)
def test_a_failure_is_recorded_and_the_run_goes_on_after_it(
    place: str,
    call: int,
    error: str,
    whole: Callable[[str], Run],
    tmp_path: Path,
    survived: Survived,
) -> None:
    run = Run("cnn", tmp_path / "run")
    fault = {"kind": "raise", "place": place, "call": call, "error": error}
    assert run.status(fault) == 1, run.said()
    record = record_of(run.run_dir)
    assert record["status"] == "failed"
    assert record["error"]
    assert run.said().splitlines()[-1] == f"cifar_lab: log: {run.run_dir / 'train.log'}"
    assert run.status() == 0, run.said()
    assert_same(run, whole("cnn"))
    survived(f"{error} raised during: {place}")


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[tuple[Path, Callable[[str], None]]]:
    """A tmpfs, and a function that gives it another size."""
    folder = tmp_path / "disk"
    folder.mkdir()

    def mount(options: str) -> int:
        command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)]
        return subprocess.run(command, capture_output=True, check=False).returncode

    def remount(options: str) -> None:
        assert mount(f"remount,{options}") == 0

    if mount("size=1m"):
        pytest.skip("may not mount a tmpfs here")
    yield folder, remount
    subprocess.run(["umount", str(folder)], check=False)


@pytest.mark.parametrize("kib", [4, 40, 100, 160, 240, 280, 320, 360, 400, 440, 500])
def test_a_full_disk_ends_with_1_and_the_run_goes_on_when_there_is_room(
    kib: int,
    small_disk: tuple[Path, Callable[[str], None]],
    whole: Callable[[str], Run],
    survived: Survived,
) -> None:
    disk, remount = small_disk
    remount(f"size={kib}k")
    run = Run("cnn", disk / "run")
    run.output = disk.with_name("said")
    status = run.status()
    assert status == 1, run.said()
    assert "No space left on device" in run.said()
    record = run.run_dir / "run.json"
    if record.exists() and json.loads(record.read_text())["status"] == "running":
        assert f"{record} can't be written" in run.said()
    remount("size=64m")
    assert run.status() == 0, run.said()
    assert_same(run, whole("cnn"))
    survived("a full disk (tmpfs of 4 to 500 KiB)")


def test_a_disk_that_fills_up_during_the_run(
    small_disk: tuple[Path, Callable[[str], None]],
    whole: Callable[[str], Run],
    survived: Survived,
) -> None:
    disk, remount = small_disk
    remount("size=8m")
    run = Run("cnn", disk / "run")
    run.output = disk.with_name("said")
    process = run.start({"kind": "signal", "place": "fit", "call": 12, "signums": [signal.SIGSTOP]})
    wait_until_stopped(process.pid)
    filler = disk / "filler"
    with open(filler, "wb", buffering=0) as file, suppress(OSError):
        while True:
            file.write(bytes(4096))
    assert os.statvfs(disk).f_bavail == 0
    os.kill(process.pid, signal.SIGCONT)
    assert finish(process) == 1, run.said()
    filler.unlink()
    assert run.status() == 0, run.said()
    assert_same(run, whole("cnn"))
    survived("a disk that is full from the 12th step on")


def wait_until_stopped(pid: int) -> None:
    while Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "T":
        time.sleep(0.02)


# --- damage, and company --------------------------------------------------------------------------


@pytest.mark.parametrize("number", range(12))
def test_random_damage_to_the_last_checkpoint(
    number: int, whole: Callable[[str], Run], tmp_path: Path, survived: Survived
) -> None:
    draw = random.Random(number)
    run = Run("cnn", tmp_path / "run")
    call = draw.randrange(9, 23)
    fault = {"kind": "signal", "place": "fit", "call": call, "signums": [int(signal.SIGTERM)]}
    assert run.status(fault) == 143
    last = run.run_dir / "checkpoints" / "last.ckpt"
    data = bytearray(last.read_bytes())
    kind = ("bit-flipped", "truncated", "empty")[number % 3]
    if kind == "bit-flipped":
        data[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
    else:
        del data[draw.randrange(len(data)) if kind == "truncated" else 0 :]
    last.unlink()
    last.write_bytes(data)
    assert run.status() == 0, run.said()
    assert "going on from previous.ckpt" in run.said()
    assert_same(run, whole("cnn"))
    survived(f"last.ckpt {kind}")


def test_a_second_process_is_refused_and_the_first_goes_on(
    whole: Callable[[str], Run], tmp_path: Path, survived: Survived
) -> None:
    run = Run("cnn", tmp_path / "run")
    fault = {"kind": "signal", "place": "fit", "call": 12, "signums": [int(signal.SIGSTOP)]}
    first = run.start(fault)
    wait_until_stopped(first.pid)
    second = Run("cnn", run.run_dir)
    second.output = tmp_path / "second"
    assert second.status() == 2
    assert "is running in it" in second.said()
    os.kill(first.pid, signal.SIGCONT)
    assert finish(first) == 0, run.said()
    assert_same(run, whole("cnn"))
    survived("a second process on the same folder")


def test_sigterm_to_the_first_process_of_a_ddp_run_ends_all_of_them(
    tmp_path: Path, survived: Survived
) -> None:
    run_dir = tmp_path / "run"
    arguments = (*TINY, "trainer=ddp", "trainer.accelerator=cpu", "trainer.max_epochs=300")
    process = started(run_dir, *arguments)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 143, err
    assert record_of(run_dir)["status"] == "interrupted"
    assert load(run_dir / "checkpoints" / "last.ckpt")["global_step"] > 0
    deadline = time.monotonic() + 60
    while any(Path(f"/proc/{child}").exists() for child in children):
        assert time.monotonic() < deadline, "a rank goes on"
        time.sleep(0.1)
    survived("SIGTERM to the first of two DDP processes (gloo)")
