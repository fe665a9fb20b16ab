"""A test's result is on record before anything may fail that only shows it."""

from __future__ import annotations

import errno
import math
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, final

import numpy as np
import pytest
import torch.utils.tensorboard.summary
from lightning.pytorch import Callback, LightningModule, Trainer
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.summary.writer import event_file_writer
from torch.utils.tensorboard.writer import SummaryWriter

from cifar_lab.data.datamodule import DataModule
from cifar_lab.data.dataset import (
    Dataset,
    Split,
    digest_of,
    label_type,
    split_digest,
)
from cifar_lab.run import summary
from cifar_lab.training.callbacks import model_overview as overview
from cifar_lab.training.callbacks import prediction_figures as pictures
from cifar_lab.training.loggers.metrics_csv import MetricsCsv
from cifar_lab.training.loggers.tensorboard import TensorBoard
from tests.conftest import TINY, record_of
from tests.support.images import numbered
from tests.support.runs import rows

Lab = Callable[..., tuple[int, str, str]]

SMALL = (
    *(
        a
        for a in TINY
        if not a.startswith(("callbacks", "monitors", "model", "data", "trainer.max"))
    ),
    *("~monitors.progress", "model=cnn", "model.width=4", "trainer.max_epochs=1", "threads=1"),
    *("data=synthetic", "data.batch_size=50", "data.val_size=50"),
)
TEN = ("data.train_size=150", "data.test_size=100")


@final
@dataclass(kw_only=True, eq=False, repr=False)
class Others(DataModule):
    """A dataset of noise that a person brings along.

    Attributes:
        classes: its labels are 0..classes-1.
        size: (H, W) of its images.
        names: of its classes; null: nobody has named them.
    """

    classes: int
    size: list[int] = field(default_factory=lambda: [32, 32])
    names: list[str] | None = None

    def _read(self) -> Dataset:
        random = np.random.default_rng(0)

        def split(count: int) -> Split:
            labels = (np.arange(count) % self.classes).astype(label_type(self.classes))
            return Split(random.integers(0, 256, (count, 3, *self.size), np.uint8), labels)

        train, test = split(200), split(100)
        digest = digest_of(split_digest(train), split_digest(test))
        return Dataset(
            name="noise",
            layout="code",
            official=False,
            digest=digest,
            classes=tuple(self.names or numbered(self.classes)),
            train=train,
            test=test,
        )


def others(classes: int) -> tuple[str, ...]:
    """A command line with as many classes; the network follows them."""
    target = "data._target_=tests.training.test_results.Others"
    without = ("~data.train_size", "~data.test_size", "~data.data_seed")
    return (target, *without, f"+data.classes={classes}")


def events(run_dir: Path) -> EventAccumulator:
    return EventAccumulator(str(run_dir / "tensorboard")).Reload()


@pytest.mark.parametrize("augment", ["standard", "strong"])
@pytest.mark.parametrize("classes", [2, 10, 23])
def test_any_number_of_classes_is_trained_tested_and_drawn(
    lab: Lab, tmp_path: Path, classes: int, augment: str
) -> None:
    run_dir = tmp_path / "run"
    status, out, err = lab(
        *SMALL, *others(classes), f"augment={augment}", f"hydra.run.dir={run_dir}"
    )
    assert (status, err) == (0, "")
    record = record_of(run_dir)
    assert record["status"] == "finished"
    with np.load(run_dir / "predictions.npz") as kept:
        assert kept["logits"].shape == (100, classes)
        assert list(kept["classes"]) == record["data"]["classes"] == list(numbered(classes))
        right = int((kept["logits"].argmax(1) == kept["labels"]).sum())
    assert record["metrics"]["test/acc"] == right / 100
    assert "noise, from code" in out
    tags = events(run_dir).Tags()
    assert "test/confusion_matrix" in tags["images"]
    curves = {tag for tag in tags["tensors"] if tag.startswith("precision_recall/")}
    # nobody has named them: no noise is an airplane
    assert curves == {f"precision_recall/{label}" for label in range(classes)}


def test_a_network_for_other_classes_is_refused(lab: Lab, tmp_path: Path) -> None:
    status, out, err = lab(
        *SMALL, *others(7), "model.num_classes=10", f"hydra.run.dir={tmp_path}/run"
    )
    assert (status, out) == (2, "")
    assert err == (
        "cifar_lab: model.num_classes=10: the data has 7 classes; leave it out, or give 7\n"
    )
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("side", [8, 48, 130])
@pytest.mark.parametrize("loader", ["device", "torchvision"])
def test_images_of_any_size_are_augmented_trained_and_drawn(
    lab: Lab, tmp_path: Path, side: int, loader: str
) -> None:
    run_dir = tmp_path / "run"
    augment = "strong" if loader == "device" else "standard"
    status, _, err = lab(
        *(*SMALL, *others(2), f"+data.size=[{side},{side}]", "+data.names=[$a$,b$]"),
        *(f"augment={augment}", f"data.loader={loader}", "data.workers=0"),
        *("model=resnet10", "model.num_blocks=[1]", f"hydra.run.dir={run_dir}"),
    )
    assert (status, err) == (0, "")
    tags = events(run_dir).Tags()
    assert {"test/worst_mistakes", "test/confusion_matrix"} <= set(tags["images"])


def test_images_that_are_not_square_are_refused(lab: Lab, tmp_path: Path) -> None:
    status, _, err = lab(*SMALL, *others(2), "+data.size=[24,32]", f"hydra.run.dir={tmp_path}/run")
    assert status == 2
    assert err == "cifar_lab: data: noise has images of 24x32 pixels; they must be square\n"


def test_a_thousand_classes_are_drawn_without_a_million_numbers() -> None:
    matrix = np.eye(1000, dtype=np.int64)
    names = [str(label) for label in range(1000)]
    for figure in (
        pictures.draw_confusion_matrix(matrix, names),
        pictures.draw_per_class_accuracy(matrix, names),
    ):
        (axes,) = figure.axes
        assert len(axes.texts) == 0
        assert len(axes.get_yticklabels()) < 20  # matplotlib's own choice of numbers, or none


# --- what may fail --------------------------------------------------------------------------------

DECORATIONS: dict[str, tuple[Any, str]] = {
    "confusion matrix": (pictures, "confusion_matrix"),
    "picture of it": (pictures, "draw_confusion_matrix"),
    "accuracy per class": (pictures, "draw_per_class_accuracy"),
    "mistakes": (pictures, "draw_worst_mistakes"),
    "drawing": (pictures, "rendered"),
    "curves": (pictures, "add_pr_curves"),
    "filters": (overview, "filter_sheet"),
    "configuration": (overview, "as_text"),
    "graph": (overview, "_traced"),
    "an image written": (SummaryWriter, "add_image"),
    "a text written": (SummaryWriter, "add_text"),
    "a graph written": (SummaryWriter, "add_graph"),
    "a curve written": (SummaryWriter, "add_pr_curve"),
    "the layout": (SummaryWriter, "add_custom_scalars"),
    "hyperparameters": (torch.utils.tensorboard.summary, "hparams"),
    "the closing table": (summary, "_lines"),
}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, float]:
    """The metrics of a run in which nothing fails."""
    from cifar_lab.__main__ import main

    folder = tmp_path_factory.mktemp("undisturbed")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert main([*SMALL, *TEN, f"hydra.run.dir={folder}/run"]) == 0
    metrics: Mapping[str, float] = record_of(folder / "run")["metrics"]
    return metrics


PURPOSE, FULL = RuntimeError("on\npurpose"), OSError(errno.ENOSPC, "no space")


@pytest.mark.parametrize(
    ("place", "error"),
    [
        *((place, PURPOSE) for place in DECORATIONS),
        *((place, FULL) for place in ("an image written", "a text written", "hyperparameters")),
    ],
    ids=str,
)
def test_a_decoration_that_fails_costs_nothing_but_itself(
    lab: Lab,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    undisturbed: Mapping[str, float],
    place: str,
    error: Exception,
) -> None:
    def fail(*arguments: Any, **named: Any) -> Any:
        raise error

    monkeypatch.setattr(*DECORATIONS[place], fail)
    status, _, err = lab(*SMALL, *TEN, f"hydra.run.dir={tmp_path}/run")
    assert status == 0, err
    record = record_of(tmp_path / "run")
    assert (record["status"], record["error"]) == ("finished", None)
    assert record["metrics"] == undisturbed
    assert all(len(line) < 300 for line in err.splitlines())
    if place not in ("graph", "a graph written", "the closing table"):  # many a network has none
        assert f"{type(error).__name__}: " in err
        assert "not in TensorBoard: " in (tmp_path / "run" / "train.log").read_text()


def test_a_writer_that_dies_after_the_fit_costs_no_result(
    lab: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, undisturbed: Mapping[str, float]
) -> None:
    log_metrics = TensorBoard.log_metrics

    def dies(self: TensorBoard, metrics: Mapping[str, float], step: int | None = None) -> None:
        log_metrics(self, metrics, step)
        if "test/acc" in metrics:  # as its thread would leave it upon a full disk
            for thread in threading.enumerate():
                if type(thread).__module__ == event_file_writer.__name__:
                    vars(thread)["exception"] = OSError(errno.ENOSPC, "no space")

    monkeypatch.setattr(TensorBoard, "log_metrics", dies)
    status, _, err = lab(*SMALL, *TEN, f"hydra.run.dir={tmp_path}/run")
    assert status == 0, err
    record = record_of(tmp_path / "run")
    assert record["status"] == "finished"
    assert record["metrics"] == undisturbed
    assert "not in TensorBoard: " in err


def test_a_curve_of_the_fit_that_can_not_be_written_ends_the_run(
    lab: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*arguments: Any, **named: Any) -> None:
        raise OSError(errno.ENOSPC, "no space")

    monkeypatch.setattr(SummaryWriter, "add_scalar", full)
    status, _, _ = lab(*SMALL, *TEN, f"hydra.run.dir={tmp_path}/run")
    assert status == 1
    assert record_of(tmp_path / "run")["status"] == "failed"


class Crash(Callback):
    """A person's callback that fails when the test is over."""

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        raise ZeroDivisionError("on purpose")


@pytest.mark.parametrize("place", ["a callback", "metrics.csv"])
def test_a_failure_after_the_test_is_one_but_the_result_is_on_record(
    lab: Lab,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    undisturbed: Mapping[str, float],
    place: str,
) -> None:
    arguments = [*SMALL, *TEN, f"hydra.run.dir={tmp_path}/run"]
    if place == "a callback":
        arguments.append("+callbacks.crash._target_=tests.training.test_results.Crash")
    log_metrics = MetricsCsv.log_metrics

    def full(self: MetricsCsv, metrics: Mapping[str, float], step: int | None = None) -> None:
        if place == "metrics.csv" and "test/acc" in metrics:
            raise OSError(errno.ENOSPC, "no space")
        log_metrics(self, metrics, step)

    monkeypatch.setattr(MetricsCsv, "log_metrics", full)
    assert lab(*arguments)[0] == 1
    record = record_of(tmp_path / "run")
    assert record["status"] == "failed"
    assert record["metrics"] == undisturbed
    assert record["tested"] == "best"
    with np.load(tmp_path / "run" / "predictions.npz") as kept:
        assert (kept["logits"].argmax(1) == kept["labels"]).mean() == record["metrics"]["test/acc"]
    assert math.isfinite(record["metrics"]["test/loss"])


class SameName(Callback):
    """Logs under a name that the run has for its own."""

    def __init__(self, name: str) -> None:
        self.name = name

    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        pl_module.log(self.name, 0.99)


def test_a_callback_can_not_mix_its_number_into_the_run_s(lab: Lab, tmp_path: Path) -> None:
    """Lightning logs the mean of both."""
    asked = (*TINY, "trainer.max_epochs=1", f"hydra.run.dir={tmp_path}/run")
    own = "+callbacks.own={_target_:tests.training.test_results.SameName,name:test/acc}"
    status, _, err = lab(*asked, own)
    assert (status, err) == (
        0,
        "test/acc: a callback's is left out, for the run logs its own; rename it\n",
    )
    with np.load(tmp_path / "run" / "predictions.npz") as found:
        accuracy = (found["logits"].argmax(1) == found["labels"]).mean()
    assert record_of(tmp_path / "run")["metrics"]["test/acc"] == pytest.approx(accuracy)


class Unkept(Callback):
    def state_dict(self) -> dict[str, Any]:
        return {"path": Path()}


def test_a_callback_whose_state_no_checkpoint_gives_back_is_refused(
    lab: Lab, tmp_path: Path
) -> None:
    own = "+callbacks.own={_target_:tests.training.test_results.Unkept}"
    status, _, err = lab(*TINY, own, f"hydra.run.dir={tmp_path}/run")
    assert status == 2
    assert err.startswith("cifar_lab: callbacks.own: path: a checkpoint can't keep its state (")
    assert len(err.splitlines()) == 1
    assert not (tmp_path / "run").exists()


class Looking(Callback):
    def __init__(self) -> None:
        self.seen: list[str] = []

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.seen.append(f"{float(trainer.callback_metrics['train/acc'])!r}")

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        Path("seen").write_text(" ".join(self.seen))


@pytest.mark.parametrize("group", ["callbacks", "monitors"])
def test_a_callback_sees_the_metrics_of_the_epoch_that_ends(
    lab: Lab, tmp_path: Path, group: str
) -> None:
    own = f"+{group}.own={{_target_:tests.training.test_results.Looking}}"
    status, _, err = lab(*TINY, own, "logger=csv", f"hydra.run.dir={tmp_path}/run")
    assert status == 0, err
    curves = rows(tmp_path / "run")
    assert Path("seen").read_text().split() == [
        row["train/acc"] for row in curves if row["train/acc"]
    ]
