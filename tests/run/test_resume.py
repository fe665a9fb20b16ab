"""A run that was stopped and continued is the run that was not."""

from __future__ import annotations

import csv
import errno
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from cifar_lab.records.checkpoint_file import seal
from cifar_lab.training.callbacks import checkpoints
from cifar_lab.training.classifier import Classifier
from tests.conftest import TINY, is_timing, record_of
from tests.records.test_checkpoint_file import Payload

Lab = Callable[..., tuple[int, str, str]]


# dropout draws from the global RNG, augmentation from its own, momentum carries history
SMALL = (
    *[a for a in TINY if not a.startswith("model")],
    "model=cnn",
    "model.width=4",
    "threads=1",
)


def stop_at(monkeypatch: pytest.MonkeyPatch, *steps: int) -> None:
    """Ctrl-C arrives in the middle of these steps, each once."""
    pending = list(steps)
    step = Classifier.training_step

    def stopped(self: Classifier, batch: Any, batch_idx: int) -> Any:
        if pending and self.global_step == pending[0]:
            pending.pop(0)
            signal.raise_signal(signal.SIGINT)
        return step(self, batch, batch_idx)

    monkeypatch.setattr(Classifier, "training_step", stopped)


def weights(run_dir: Path) -> dict[str, torch.Tensor]:
    path = run_dir / "checkpoints" / "last.ckpt"
    state: dict[str, torch.Tensor] = torch.load(path, weights_only=True)["state_dict"]
    return state


def rows(run_dir: Path) -> list[dict[str, str]]:
    with open(run_dir / "metrics.csv", newline="") as file:
        return [{k: v for k, v in row.items() if not is_timing(k)} for row in csv.DictReader(file)]


# 8 steps an epoch; 3 epochs. Stopped in mid-epoch, at its last step, at the first of the next.
@pytest.mark.parametrize("steps", [(3,), (7,), (8,), (2, 11, 12, 20)], ids=str)
def test_stopped_and_continued_equals_undisturbed_to_the_bit(
    lab: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, steps: tuple[int, ...]
) -> None:
    arguments = (*SMALL, "trainer.max_epochs=3")
    assert lab(*arguments, f"hydra.run.dir={tmp_path}/whole")[0] == 0
    stop_at(monkeypatch, *steps)
    for _ in steps:
        status, _, err = lab(*arguments, f"hydra.run.dir={tmp_path}/cut")
        assert status == 130, err
        assert record_of(tmp_path / "cut")["status"] == "interrupted"
    status, _, err = lab(*arguments, f"hydra.run.dir={tmp_path}/cut")
    assert status == 0, err
    same(tmp_path / "whole", tmp_path / "cut")


def test_tensorboard_continues_without_gap_or_overlap(
    lab: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = (*SMALL, "trainer.max_epochs=3", f"hydra.run.dir={tmp_path}/run")
    stop_at(monkeypatch, 11)
    assert lab(*arguments)[0] == 130
    assert lab(*arguments)[0] == 0
    events = EventAccumulator(str(tmp_path / "run" / "tensorboard")).Reload()
    assert [event.step for event in events.Scalars("val/acc")] == [7, 15, 23]


def stop_in(monkeypatch: pytest.MonkeyPatch, method: str, call: int, times: int = 1) -> None:
    """Ctrl-C arrives, `times` times over, in this call of a method of Classifier; once."""
    original, calls = getattr(Classifier, method), iter(range(10**9))

    def stopped(self: Classifier, *arguments: Any) -> Any:
        if next(calls) == call:
            for _ in range(times):
                signal.raise_signal(signal.SIGINT)
        return original(self, *arguments)

    monkeypatch.setattr(Classifier, method, stopped)


def same(whole: Path, cut: Path) -> None:
    """Weights, curves and record agree to the bit; timings aside."""
    a, b = weights(whole), weights(cut)
    assert all(torch.equal(a[key], b[key]) for key in a)
    assert rows(whole) == rows(cut)
    for field in ("metrics", "epochs", "steps", "tested", "best_epoch", "status"):
        one, other = record_of(whole)[field], record_of(cut)[field]
        if field == "metrics":
            one.pop("images_per_s", None), other.pop("images_per_s", None)
        assert one == other, field
    assert (whole / "predictions.npz").read_bytes() == (cut / "predictions.npz").read_bytes()


@pytest.fixture
def whole(lab: Lab, tmp_path: Path) -> Path:
    """An undisturbed run of two epochs."""
    assert lab(*SMALL, f"hydra.run.dir={tmp_path}/whole")[0] == 0
    return tmp_path / "whole"


# 4 batches a validation, 4 in the test: the first, one in the middle, the last
@pytest.mark.parametrize(
    ("method", "call"),
    [
        *[("validation_step", call) for call in (0, 2, 3, 5)],
        *[("test_step", call) for call in (0, 3)],
        ("on_train_epoch_end", 0),
        ("on_save_checkpoint", 0),
    ],
)
def test_stopped_outside_the_training_step_equals_undisturbed(
    lab: Lab, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str, call: int
) -> None:
    stop_in(monkeypatch, method, call)
    status, _, err = lab(*SMALL, f"hydra.run.dir={tmp_path}/cut")
    assert status == 130, err
    assert record_of(tmp_path / "cut")["status"] == "interrupted"
    last = tmp_path / "cut" / "checkpoints" / "last.ckpt"
    saved = torch.load(last, weights_only=True)["timings"]
    status, _, err = lab(*SMALL, f"hydra.run.dir={tmp_path}/cut")
    assert status == 0, err
    same(whole, tmp_path / "cut")
    # adds up: never less than what the checkpoint had measured
    assert record_of(tmp_path / "cut")["timings"]["fit_s"] >= round(saved["fit_s"], 3)


def test_a_second_signal_does_not_cost_the_checkpoint_of_the_first(
    lab: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stop_at(monkeypatch, 3)
    stop_in(monkeypatch, "on_save_checkpoint", 0, times=2)
    assert lab(*SMALL, f"hydra.run.dir={tmp_path}/cut")[0] == 130
    last = tmp_path / "cut" / "checkpoints" / "last.ckpt"
    assert torch.load(last, weights_only=True)["global_step"] == 4


def test_interrupted_in_the_test_repeats_only_the_test(
    lab: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stop_in(monkeypatch, "test_step", 1)
    early = ("callbacks=early_stopping", "~callbacks.progress", "~callbacks.pictures")
    arguments = (
        *SMALL,
        *early,
        "callbacks.early_stopping.patience=1",
        "callbacks.early_stopping.min_delta=1",  # never good enough: stops after two epochs
        "trainer.max_epochs=5",
        f"hydra.run.dir={tmp_path}/run",
    )
    assert lab(*arguments)[0] == 130
    before = (tmp_path / "run" / "metrics.csv").read_text()

    def trained(self: Classifier, *arguments: Any) -> None:
        raise AssertionError("trained again")

    monkeypatch.setattr(Classifier, "training_step", trained)
    status, _, err = lab(*arguments)
    assert status == 0, err
    record = record_of(tmp_path / "run")
    assert (record["epochs"], record["steps"]) == (2, 16)
    assert {"train/acc", "val/acc", "test/acc", "lr"} <= set(record["metrics"])
    after = (tmp_path / "run" / "metrics.csv").read_text()
    assert before.splitlines()[1:3] == [row.rstrip(",") for row in after.splitlines()[1:3]]


# --- damage ---------------------------------------------------------------------------------------


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 16
    path.unlink()  # best.ckpt may be the same file
    path.write_bytes(data)


def cut_off(path: Path) -> None:
    data = path.read_bytes()
    path.unlink()
    path.write_bytes(data[: len(data) // 2])


def empty(path: Path) -> None:
    path.unlink()
    path.touch()


def poison(path: Path) -> None:
    path.unlink()
    torch.save({"state_dict": Payload(path.parent / "proof")}, path)
    seal(path)


@pytest.mark.parametrize("damage", [flip, cut_off, empty, poison, Path.unlink])
def test_a_damaged_last_checkpoint_is_reported_and_the_previous_one_used(
    lab: Lab, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damage: Any
) -> None:
    stop_at(monkeypatch, 13)
    arguments = (*SMALL, f"hydra.run.dir={tmp_path}/cut")
    assert lab(*arguments)[0] == 130
    folder = tmp_path / "cut" / "checkpoints"
    damage(folder / "last.ckpt")
    status, _, err = lab(*arguments)
    assert status == 0, err
    if damage is not Path.unlink:
        assert "last.ckpt" in err
        assert "going on from previous.ckpt" in err
        assert (folder / "last.ckpt.damaged").exists()
    assert not (folder / "proof").exists()
    same(whole, tmp_path / "cut")


def test_when_all_checkpoints_are_damaged_nothing_is_touched(
    lab: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stop_at(monkeypatch, 13)
    arguments = (*SMALL, f"hydra.run.dir={tmp_path}/cut")
    assert lab(*arguments)[0] == 130
    folder = tmp_path / "cut" / "checkpoints"
    flip(folder / "last.ckpt")
    empty(folder / "previous.ckpt")
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    status, _, err = lab(*arguments)
    assert status == 2
    assert "last.ckpt is damaged" in err
    assert "previous.ckpt is empty" in err
    assert before == {path.name: path.read_bytes() for path in folder.iterdir()}


def test_a_damaged_best_checkpoint_is_never_tested(
    lab: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stop_in(monkeypatch, "test_step", 0)
    arguments = (*SMALL, "optimizer.lr=0.2", f"hydra.run.dir={tmp_path}/run")
    assert lab(*arguments)[0] == 130
    folder = tmp_path / "run" / "checkpoints"
    best = torch.load(folder / "best.ckpt", weights_only=True)["global_step"]
    flip(folder / "best.ckpt")
    status, _, err = lab(*arguments)
    # two epochs: last.ckpt or previous.ckpt holds the best one
    assert status == 0, err
    if best == 16:  # put back from last.ckpt, which says it was the best
        assert torch.load(folder / "best.ckpt", weights_only=True)["global_step"] == best
    else:
        assert "best.ckpt is damaged" in err
    assert record_of(tmp_path / "run")["tested"] == "best"


# --- longer, moved, two at once -------------------------------------------------------------------


@pytest.mark.parametrize("stopped", [False, True])
def test_a_longer_run_with_a_constant_rate_equals_one_that_was_long_from_the_start(
    lab: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stopped: bool
) -> None:
    constant = (*SMALL, "scheduler=constant")
    assert lab(*constant, "trainer.max_epochs=3", f"hydra.run.dir={tmp_path}/whole")[0] == 0
    if stopped:
        stop_at(monkeypatch, 11)
    first = lab(*constant, f"hydra.run.dir={tmp_path}/cut")[0]
    assert first == (130 if stopped else 0)
    status, _, err = lab(*constant, "trainer.max_epochs=3", f"hydra.run.dir={tmp_path}/cut")
    assert status == 0, err
    assert "1 more epochs" in err
    same(tmp_path / "whole", tmp_path / "cut")


def test_a_longer_run_is_refused_where_the_schedule_depends_on_the_length(
    lab: Lab, whole: Path
) -> None:
    before = (whole / "run.json").read_bytes()
    status, _, err = lab(*SMALL, "trainer.max_epochs=3", f"hydra.run.dir={whole}")
    assert status == 2
    assert "trainer.max_epochs=3" in err
    assert "scheduler=cosine" in err
    assert len(err.strip().splitlines()) == 1
    assert (whole / "run.json").read_bytes() == before


def test_an_unfinished_run_of_another_configuration_is_refused_by_name(
    lab: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stop_at(monkeypatch, 3)
    assert lab(*SMALL, "optimizer.lr=0.02", f"hydra.run.dir={tmp_path}/cut")[0] == 130
    status, _, err = lab(*SMALL, "optimizer.lr=0.5", f"hydra.run.dir={tmp_path}/cut")
    assert status == 2
    assert "optimizer.lr (0.02 there, 0.5 here)" in err


def test_a_moved_folder_is_continued(
    lab: Lab, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stop_at(monkeypatch, 13)
    assert lab(*SMALL, f"hydra.run.dir={tmp_path}/cut")[0] == 130
    (tmp_path / "cut").rename(tmp_path / "elsewhere")
    assert lab(*SMALL, f"hydra.run.dir={tmp_path}/elsewhere")[0] == 0
    same(whole, tmp_path / "elsewhere")
    assert not (tmp_path / "cut").exists()


def test_resume_must_needs_a_checkpoint(
    lab: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stop_at(monkeypatch, 3)
    arguments = (*SMALL, f"hydra.run.dir={tmp_path}/cut")
    assert lab(*arguments)[0] == 130
    for path in (tmp_path / "cut" / "checkpoints").iterdir():
        path.unlink()
    status, _, err = lab(*arguments, "resume=must")
    assert status == 2
    assert "has left no checkpoint" in err


def test_half_written_files_of_a_killed_process_are_cleared(
    lab: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stop_at(monkeypatch, 3)
    arguments = (*SMALL, f"hydra.run.dir={tmp_path}/cut")
    assert lab(*arguments)[0] == 130
    left = [".run.json.123", ".metrics.csv.123", "checkpoints/.last.ckpt.partial"]
    for name in left:
        (tmp_path / "cut" / name).write_text("half")
    assert lab(*arguments)[0] == 0
    assert not any((tmp_path / "cut" / name).exists() for name in left)


def test_a_full_disk_during_a_checkpoint_leaves_the_last_good_one(
    lab: Lab, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Path) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    arguments = (*SMALL, f"hydra.run.dir={tmp_path}/cut")
    stop_at(monkeypatch, 11)
    assert lab(*arguments)[0] == 130
    good = (tmp_path / "cut" / "checkpoints" / "last.ckpt").read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr(checkpoints, "seal", full)
        status, _, err = lab(*arguments)
    assert status == 1
    assert err.strip().splitlines()[-1] == f"cifar_lab: log: {tmp_path / 'cut' / 'train.log'}"
    record = record_of(tmp_path / "cut")
    assert (record["status"], record["error"]) == (
        "failed",
        "OSError: [Errno 28] No space left on device",
    )
    assert (tmp_path / "cut" / "checkpoints" / "last.ckpt").read_bytes() == good
    assert lab(*arguments)[0] == 0
    same(whole, tmp_path / "cut")
