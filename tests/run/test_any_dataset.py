"""Runs on a person's own images: alone, resumed, in a sweep, and in the report."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tests.conftest import TINY, record_of
from tests.support.class_folders import write_class_folders, zipped

Lab = Callable[..., tuple[int, str, str]]

SEVEN = ("rose", "daisy", "$a$ tulip$", "été", "lily of the valley", "10", "9")
SMALL = (
    *(a for a in TINY if not a.startswith(("data", "model.num", "model.w", "callbacks"))),
    *("data=folders", "data.batch_size=8", "model.num_blocks=[1]", "model.width=4"),
    *("threads=1", "callbacks=default", "monitors=default", "~monitors.progress"),
)


@pytest.mark.parametrize("model", ["cnn", "resnet10"])
def test_seven_classes_need_a_root_and_nothing_else(lab: Lab, tmp_path: Path, model: str) -> None:
    root = write_class_folders(tmp_path / "mine", SEVEN, size=(50, 36))
    network = ("model=cnn", "model.width=2") if model == "cnn" else ()
    small = [a for a in SMALL if model != "cnn" or not a.startswith("model")]
    status, out, err = lab(*small, *network, f"data.root={root}", "hydra.run.dir=run")
    assert status == 0, err
    assert "42 of the 42 pictures were resized to 32x32" in err
    assert err.count("\n") == 2  # that, and how long decoding took
    record = record_of(tmp_path / "run")
    names = sorted(SEVEN)
    assert record["data"]["classes"] == names
    assert record["data"]["images"] == {"train": 25, "val": 3, "test": 14}  # a tenth of 28
    with np.load(tmp_path / "run" / "predictions.npz", allow_pickle=False) as kept:
        assert kept["classes"].tolist() == names
        assert kept["logits"].shape == (14, 7)
    assert "folders" in out
    tags = EventAccumulator(str(tmp_path / "run" / "tensorboard")).Reload().Tags()
    assert {"test/confusion_matrix", "test/per_class_accuracy"} <= set(tags["images"])
    curves = [tag for tag in tags["tensors"] if tag.startswith("precision_recall/")]
    assert len(curves) == 7
    assert "precision_recall/lily of the valley" in curves


def test_a_run_goes_on_with_a_moved_folder_and_not_with_another_size(
    lab: Lab, tmp_path: Path
) -> None:
    root = write_class_folders(tmp_path / "mine", SEVEN, size=(20, 20))
    line = (*SMALL, "scheduler=constant", "hydra.run.dir=run")
    assert lab(*line, f"data.root={root}", "trainer.max_epochs=1")[0] == 0
    moved = zipped(root, tmp_path / "moved.zip")
    status, _, err = lab(*line, f"data.root={moved}", "trainer.max_epochs=2")
    assert status == 0, err
    assert record_of(tmp_path / "run")["epochs"] == 2
    assert record_of(tmp_path / "run")["resumed"] is True
    status, _, err = lab(*line, f"data.root={moved}", "data.image_size=16", "trainer.max_epochs=2")
    assert status == 2
    assert "data.image_size (32 there, 16 here)" in err


def test_a_sweep_over_picture_sizes_and_its_report(lab: Lab, tmp_path: Path) -> None:
    root = write_class_folders(tmp_path / "mine", SEVEN, size=(24, 24))
    status, out, err = lab(
        *("-m", *SMALL[:-1], f"data.root={root}", "data.image_size=16,24", "hydra.sweep.dir=sweep"),
        *("trainer.max_epochs=1", "callbacks=checkpoints", "logger=csv"),
    )
    assert status == 0, err + out
    records = [record_of(path.parent) for path in (tmp_path / "sweep").glob("*/run.json")]
    assert sorted(r["config"]["data"]["image_size"] for r in records) == [16, 24]
    assert {tuple(r["data"]["classes"]) for r in records} == {tuple(sorted(SEVEN))}
    page = (tmp_path / "sweep" / "report" / "report.html").read_text("utf-8")
    assert json.dumps("lily of the valley") in page
    assert list((tmp_path / "sweep" / "report").rglob("confusion_matrix*.png"))


def test_three_hundred_classes_train_and_are_reported(lab: Lab, tmp_path: Path) -> None:
    names = [f"kind {number:03}" for number in range(300)]
    root = write_class_folders(tmp_path / "mine", names, train=2, test=1, size=(8, 8))
    arguments = (*SMALL, f"data.root={root}", "data.image_size=8", "augment=strong")
    arguments = (*arguments, "augment.transforms.cutout.size=4", "data.batch_size=100")
    status, _, err = lab(*arguments, "trainer.max_epochs=1", "hydra.run.dir=runs/a")
    assert status == 0, err
    with np.load(tmp_path / "runs" / "a" / "predictions.npz") as kept:
        assert kept["logits"].shape == (300, 300)
        assert kept["labels"].max() == 299
    from cifar_lab.report.__main__ import main

    assert main([str(tmp_path / "runs")]) == 0
    assert "kind 299" in (tmp_path / "runs" / "report" / "report.html").read_text("utf-8")


def test_a_mistyped_root_and_labels_are_one_line(lab: Lab, tmp_path: Path) -> None:
    for arguments, line in (
        ((f"data.root={tmp_path}/nowhere",), f"data.root={tmp_path}/nowhere: does not exist; "),
        ((), "data.root=null: data=folders needs a folder or a .zip with train/<class>/ and "),
        (("data.image_size=3",), "data.image_size=3: must be a whole number in 4..1024"),
        (("data=cifar100", "data.labels=rough"), "data.labels=rough: must be fine, coarse"),
        (("data.val_size=1.5",), "data.val_size=1.5: must be a whole number of 0 or more"),
    ):
        status, out, err = lab(*SMALL, *arguments, "hydra.run.dir=run")
        assert (status, out, err.count("\n")) == (2, "", 1), err
        assert err.startswith(f"cifar_lab: {line}"), err
        assert not (tmp_path / "run").exists()
