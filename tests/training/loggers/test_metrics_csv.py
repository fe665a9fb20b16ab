from __future__ import annotations

import csv
import math
from pathlib import Path

import pytest

from cifar_lab.errors import InputError
from cifar_lab.training.loggers.metrics_csv import MetricsCsv


def rows(folder: Path) -> list[dict[str, str]]:
    with open(folder / "metrics.csv", newline="") as file:
        return list(csv.DictReader(file))


def columns(folder: Path) -> list[str]:
    return (folder / "metrics.csv").read_text().splitlines()[0].split(",")


def written(folder: Path, epochs: range, *, resumed_at: int | None = None) -> None:
    """Ten steps per epoch, logged as Lightning does: validation, then training, at the last."""
    log = MetricsCsv(save_dir=folder)
    if resumed_at is not None:
        log.resume(resumed_at)
    for epoch in epochs:
        step = 10 * epoch + 9
        log.log_metrics({"val/acc": epoch / 7, "epoch": epoch}, step)
        log.save()
        log.log_metrics({"train/loss": 1 / (epoch + 3), "lr": 0.1, "epoch": epoch}, step)
        log.save()


def test_validation_and_training_of_an_epoch_share_a_row(tmp_path):
    written(tmp_path, range(2))
    assert columns(tmp_path) == ["epoch", "step", "val/acc", "train/loss", "lr"]
    assert [(r["epoch"], r["step"]) for r in rows(tmp_path)] == [("0", "9"), ("1", "19")]


def test_numbers_come_back_to_the_last_bit(tmp_path):
    values = {"a": 0.1 + 0.2, "b": 1e-300, "c": 123456789.123456789, "d": math.nan, "e": -math.inf}
    log = MetricsCsv(save_dir=tmp_path)
    log.log_metrics(values, 0)
    log.save()
    read = {key: float(rows(tmp_path)[0][key]) for key in values}
    assert math.isnan(read.pop("d"))
    assert read == {key: value for key, value in values.items() if key != "d"}


def test_a_column_may_appear_late(tmp_path):
    written(tmp_path, range(2))
    log = MetricsCsv(save_dir=tmp_path)
    log.log_metrics({"test/acc": 0.5, "epoch": 2}, 20)
    log.save()
    assert columns(tmp_path)[-1] == "test/acc"
    assert [r["test/acc"] for r in rows(tmp_path)] == ["", "", "0.5"]


def test_a_resumed_file_is_the_file_of_an_uninterrupted_run(tmp_path):
    (whole := tmp_path / "whole").mkdir()
    (broken := tmp_path / "broken").mkdir()
    written(whole, range(6))
    written(broken, range(4))  # died in the fifth epoch; the checkpoint is that of the second
    written(broken, range(2, 6), resumed_at=20)
    assert (broken / "metrics.csv").read_bytes() == (whole / "metrics.csv").read_bytes()


def test_resume_keeps_the_checkpoint_s_own_epoch_and_drops_what_came_later(tmp_path):
    written(tmp_path, range(4))
    MetricsCsv(save_dir=tmp_path).resume(20)
    assert [r["step"] for r in rows(tmp_path)] == ["9", "19"]


def test_resume_in_mid_epoch_keeps_the_epochs_before(tmp_path):
    written(tmp_path, range(3))
    MetricsCsv(save_dir=tmp_path).resume(25)
    assert [r["step"] for r in rows(tmp_path)] == ["9", "19"]


def test_the_same_step_in_another_epoch_is_another_row(tmp_path):
    log = MetricsCsv(save_dir=tmp_path)
    log.log_metrics({"val/acc": 0.5, "epoch": 1}, 19)
    log.log_metrics({"test/acc": 0.6, "epoch": 2}, 19)
    log.save()
    assert len(rows(tmp_path)) == 2


def test_a_failed_save_leaves_the_file_whole_and_nothing_beside_it(tmp_path, monkeypatch):
    written(tmp_path, range(2))
    before = (tmp_path / "metrics.csv").read_bytes()

    def full(fd: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    log = MetricsCsv(save_dir=tmp_path)
    log.log_metrics({"val/acc": 1.0, "epoch": 2}, 29)
    with pytest.raises(OSError, match="No space"):
        log.save()
    assert (tmp_path / "metrics.csv").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.csv"]


def test_a_file_of_something_else_is_not_overwritten(tmp_path):
    (tmp_path / "metrics.csv").write_text("name,price\nbread,3\n")
    with pytest.raises(InputError, match=r"metrics\.csv: is no metrics\.csv of a run"):
        MetricsCsv(save_dir=tmp_path).log_metrics({"val/acc": 1.0}, 0)


def test_nothing_is_written_before_something_is_logged(tmp_path):
    log = MetricsCsv(save_dir=tmp_path / "run")
    log.save()
    log.finalize("success")
    assert not (tmp_path / "run").exists()


def test_a_real_fit_and_test_fill_one_row_per_epoch_and_one_for_the_test(
    tmp_path, toy, toy_data, make_trainer
):
    trainer = make_trainer(logger=MetricsCsv(save_dir=tmp_path))
    trainer.fit(toy, datamodule=toy_data())
    trainer.test(toy, datamodule=toy_data(), verbose=False)
    assert [(r["epoch"], r["step"]) for r in rows(tmp_path)] == [("0", "3"), ("1", "7"), ("2", "8")]
    assert all(r[name] for r in rows(tmp_path)[:2] for name in ("train/loss", "val/acc", "lr"))
    assert float(rows(tmp_path)[2]["test/acc"]) == 0.75


def test_resume_drops_the_row_of_the_step_that_comes_next(tmp_path):
    log = MetricsCsv(save_dir=tmp_path)
    for step in (0, 1, 2):
        log.log_metrics({"val/acc": 0.5, "epoch": step}, step)  # epochs of a single step
    log.save()
    MetricsCsv(save_dir=tmp_path).resume(2)
    assert [r["step"] for r in rows(tmp_path)] == ["0", "1"]
