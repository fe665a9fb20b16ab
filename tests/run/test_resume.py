"""A run that was stopped and continued is the run that was not."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from cifar_lab.config.compose import compose, run_config
from cifar_lab.errors import InputError
from cifar_lab.records.checkpoint_file import add_digest
from cifar_lab.records.digest import config_digest
from cifar_lab.records.record import RunRecord
from cifar_lab.report.groups import group
from cifar_lab.report.read import Reader
from cifar_lab.run import resume
from cifar_lab.training.callbacks import checkpoints
from cifar_lab.training.classifier import Classifier
from tests.conftest import merged, record_of
from tests.support.hostile import Payload
from tests.support.runs import SMALL, same, stop_at, stop_in

Lab = Callable[..., tuple[int, str, str]]


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
    early = ("callbacks=early_stopping",)
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
    add_digest(path)


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


def test_the_last_weights_are_tested_of_a_run_that_went_on_from_the_previous_checkpoint(
    lab: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = (*SMALL, "data.val_size=0", "trainer.max_epochs=3")
    assert lab(*arguments, f"hydra.run.dir={tmp_path}/whole")[0] == 0
    stop_at(monkeypatch, 15)
    assert lab(*arguments, f"hydra.run.dir={tmp_path}/cut")[0] == 130
    flip(tmp_path / "cut" / "checkpoints" / "last.ckpt")
    status, _, err = lab(*arguments, f"hydra.run.dir={tmp_path}/cut")
    assert status == 0, err
    # previous.ckpt has long been another by the end: it holds the last epoch but one
    same(tmp_path / "whole", tmp_path / "cut")


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


@pytest.mark.slow
@pytest.mark.parametrize(
    "more",
    [
        "callbacks=ema",
        "callbacks=sam",
        "callbacks=lookahead",
        "callbacks=swa callbacks.swa.start_fraction=0",
        "callbacks=swa callbacks.swa.start_fraction=0 callbacks.swa.every_steps=5",
        "callbacks=swa callbacks.swa.start_fraction=0.4",
        "callbacks=sam callbacks.sam.start_fraction=0.5",
        "callbacks=lookahead +callbacks.lookahead.power=3",
        "+optimizer.groups.early.parameters=biases +optimizer.groups.early.until=0.5",
        "hard_examples.share=0.5 hard_examples.proxy={width:2}",
    ],
)
def test_a_longer_run_equals_one_that_was_long_from_the_start_or_is_refused(
    lab: Lab, tmp_path: Path, more: str
) -> None:
    both = (*SMALL, "scheduler=constant", *more.split())
    assert lab(*both, f"hydra.run.dir={tmp_path}/cut")[0] == 0
    longer = (*both, "trainer.max_epochs=4")
    status, _, err = lab(*longer, f"hydra.run.dir={tmp_path}/cut")
    if status == 2:
        assert "is laid out by that number" in err
        return
    assert lab(*longer, f"hydra.run.dir={tmp_path}/whole")[0] == 0
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
        patch.setattr(checkpoints, "add_digest", full)
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


# --- under other settings -------------------------------------------------------------------------


ONLOOKER = "{_target_: lightning.pytorch.callbacks.LearningRateMonitor, logging_interval: epoch}"
GOES_ON = (
    "trainer.accelerator=auto",
    "trainer.precision=32",
    "trainer.max_time=00:01:00:00",
    "trainer.detect_anomaly=true",
    "trainer.profiler=simple",
    "trainer.log_every_n_steps=3",
    "callbacks.checkpoints.every_minutes=3",
    f"+monitors.lr={ONLOOKER}",
    f"+callbacks.lr={ONLOOKER}",
)
REFUSED = {
    **{
        f"{key}={now}": f"{key} ({before} there, {now} here); sums are rounded in another order"
        for key, before, now in (
            ("threads", 1, 2),
            ("channels_last", "true", "false"),
            ("compile", "none", "default"),
            ("trainer.deterministic", "false", "true"),
        )
    },
    "optimizer.lr=0.3": "optimizer.lr (0.03 there, 0.3 here); choose another folder",
    "trainer.precision=64": "trainer.precision (32-true there, 64-true here); choose another",
}


def finds(run_dir: Path, *arguments: str) -> resume.Earlier:
    """What the folder holds for a command line."""
    return resume.find(run_dir, run_config(compose(merged(*SMALL, *arguments))))


def test_what_decides_no_result_may_change_before_a_run_goes_on(
    lab: Lab, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cut = tmp_path / "cut"
    stop_at(monkeypatch, 3)
    assert lab(*SMALL, f"hydra.run.dir={cut}")[0] == 130
    for given in GOES_ON:
        assert finds(cut, given).checkpoint is not None, given
    for given, line in REFUSED.items():
        with pytest.raises(InputError, match="holds a run of another configuration") as told:
            finds(cut, given)
        assert line in str(told.value)
        assert "data.channels_last" not in str(told.value)
    # whatever looks on has columns of its own
    ours = [given for given in GOES_ON if ONLOOKER not in given]
    status, _, err = lab(*SMALL, *ours, f"hydra.run.dir={cut}")
    assert (status, err) == (0, "")
    assert finds(cut).finished
    same(whole, cut)
    # and in a report the two are one configuration
    found = group(Reader(tmp_path).read().runs)[0]
    assert [len(its.runs) for its in found] == [2]


def test_a_device_of_another_kind_is_another_run(whole: Path) -> None:
    record = RunRecord.read(whole)
    on_gpu = record.with_fields(device="1 x NVIDIA H100", status="interrupted")
    on_gpu.write(whole)
    with pytest.raises(InputError, match=r"trainer.accelerator \(cuda there, cpu here\)"):
        finds(whole, "trainer.accelerator=auto")


def test_more_time_is_for_a_run_that_has_not_ended_by_it(whole: Path) -> None:
    # one that came to its end needed none of the time that it is given now
    assert finds(whole, "trainer.max_time=00:01:00:00").finished
    record = RunRecord.read(whole)
    assert record.config is not None
    assert record.steps_planned == 16
    trainer = {**record.config["trainer"], "max_time": "00:00:00:01"}
    bounded = {**record.config, "trainer": trainer}
    record = record.with_fields(config=bounded, config_digest=config_digest(bounded))
    record.write(whole)
    assert finds(whole).finished  # which its time didn't end
    record.with_fields(steps=11).write(whole)
    for given in ("trainer.max_time=00:01:00:00", "trainer.max_time=null"):
        with pytest.raises(InputError) as told:
            finds(whole, given)
        assert str(told.value) == (
            f"{given}: the run in {whole} ended under trainer.max_time=00:00:00:01, after 11 of 16 "
            "steps, and has been tested; what followed would be no run that had the time from the "
            "start; choose another folder for that, or give trainer.max_time=00:00:00:01 to see "
            "its result"
        )
    # the same time is the same run; stopped otherwise, it goes on with another
    assert finds(whole, "trainer.max_time=00:00:00:01").finished
    record.with_fields(steps=11, status="interrupted").write(whole)
    assert finds(whole, "trainer.max_time=00:01:00:00").checkpoint is not None
