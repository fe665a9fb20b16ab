from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.custom_scalar import layout_pb2
from tensorboard.plugins.custom_scalar import metadata as layout_metadata
from tensorboard.plugins.hparams import metadata

from cifar_lab.training.loggers.tensorboard import RESULTS, TensorBoard, hparams_of
from tests.support.toy import MakeData, MakeTrainer, Toy

CONFIG: dict[str, Any] = {
    "data": {
        "_target_": "cifar_lab.data.datamodule.Cifar10",
        "root": "somewhere",
        "batch_size": 128,
        "val_size": 5000,
        "normalization": "channel",
    },
    "augment": {
        "_target_": "cifar_lab.data.augment.Pipeline",
        "transforms": {
            "flip": {"_target_": "cifar_lab.data.augment.RandomFlip", "p": 0.5},
            "crop": {"_target_": "cifar_lab.data.augment.RandomCrop", "padding": 4},
            "mixup": {"_target_": "cifar_lab.data.augment.Mixup", "p": 0.0},
            "cutout": None,
        },
    },
    "model": {"_target_": "cifar_lab.model.resnet.ResNet", "num_blocks": [2, 2, 2, 2], "width": 64},
    "loss": {"_target_": "torch.nn.CrossEntropyLoss", "label_smoothing": 0.0},
    "optimizer": {
        "_target_": "torch.optim.SGD",
        "_partial_": True,
        "lr": 0.01,
        "nesterov": False,
        "dampening": None,
    },
    "scheduler": {"_target_": "cifar_lab.training.schedules.cosine", "_partial_": True},
    "trainer": {"_target_": "lightning.pytorch.Trainer", "max_epochs": 20, "precision": 32},
    "callbacks": {"progress": {"_target_": "cifar_lab.training.callbacks.progress.ProgressBar"}},
    "logger": {"csv": {}},
    "seed": 3,
    "resume": "auto",
}


def events(run: Path) -> EventAccumulator:
    accumulator = EventAccumulator(str(run / "tensorboard"))
    accumulator.Reload()
    return accumulator


def test_the_main_hyperparameters_are_flat_and_typed() -> None:
    assert hparams_of(CONFIG) == {
        "seed": 3,
        "model": "ResNet",
        "model.num_blocks": "[2,2,2,2]",
        "model.width": 64,
        "loss": "CrossEntropyLoss",
        "loss.label_smoothing": 0.0,
        "optimizer": "SGD",
        "optimizer.lr": 0.01,
        "optimizer.nesterov": False,
        "scheduler": "cosine",
        "data": "Cifar10",
        "data.batch_size": 128,
        "data.val_size": 5000,
        "data.normalization": "channel",
        "trainer.max_epochs": 20,
        "trainer.precision": "32",
        "augment": "flip+crop",
    }


def test_what_was_swept_or_typed_joins_the_main_hyperparameters() -> None:
    overrides = [
        "+data.root=x",
        "augment.transforms.crop.padding=4",
        "optimizer.lr=0.01",
        "resume=auto",
    ]
    more = dict(hparams_of(CONFIG, overrides).items() - hparams_of(CONFIG).items())
    assert more == {"augment.transforms.crop.padding": 4}


def test_no_augmentation_is_called_none() -> None:
    bare = CONFIG | {"augment": {"_target_": "cifar_lab.data.augment.Pipeline", "transforms": {}}}
    assert hparams_of(bare)["augment"] == "none"


@pytest.fixture
def run(tmp_path: Path, toy: Toy, toy_data: MakeData, make_trainer: MakeTrainer) -> Path:
    board = TensorBoard(save_dir=tmp_path)
    board.log_hyperparams(hparams_of(CONFIG))
    trainer = make_trainer(logger=board)
    trainer.fit(toy, datamodule=toy_data())
    trainer.test(toy, datamodule=toy_data(), verbose=False)
    final = {"test/acc": 0.75, "test/loss": 1.5, "val/acc": 0.7, "images_per_s": 1234.5}
    board.finish(final | {"parameters": 30730, "lr": 0.1}, trainer.global_step)
    board.finalize("success")
    return tmp_path


def test_events_lie_right_below_the_tensorboard_folder(run: Path) -> None:
    files = sorted(path.relative_to(run) for path in run.rglob("*") if path.is_file())
    assert files
    assert all(path.parts[0] == "tensorboard" and len(path.parts) == 2 for path in files)
    assert all(path.name.startswith("events.out.tfevents") for path in files)


def test_the_hparams_tab_holds_typed_hyperparameters_and_every_result(run: Path) -> None:
    start = metadata.parse_session_start_info_plugin_data(
        events(run).SummaryMetadata(metadata.SESSION_START_INFO_TAG).plugin_data.content
    )
    assert start.hparams["optimizer.lr"].number_value == 0.01
    assert start.hparams["model.num_blocks"].string_value == "[2,2,2,2]"
    assert start.hparams["optimizer.nesterov"].string_value == "false"
    # TensorBoard takes the columns of all runs from the first "experiment" that it finds
    assert metadata.EXPERIMENT_TAG not in events(run).PluginTagToContent("hparams")
    end = metadata.parse_session_end_info_plugin_data(
        events(run).SummaryMetadata(metadata.SESSION_END_INFO_TAG).plugin_data.content
    )
    assert end.status == 1  # STATUS_SUCCESS


def test_every_result_has_its_final_value_and_none_is_minus_one(run: Path) -> None:
    read = events(run)
    last = {name: read.Scalars(f"final/{name}")[-1].value for name in RESULTS}
    assert last == pytest.approx(
        {
            "test/acc": 0.75,
            "val/acc": 0.7,
            "test/loss": 1.5,
            "images_per_s": 1234.5,
            "parameters": 30730,
        }
    )
    assert "hp_metric" not in read.Tags()["scalars"]


def test_the_final_values_are_what_the_tab_shows_unasked(run: Path) -> None:
    # TensorBoard sorts by name and ticks the first five
    assert set(sorted(events(run).Tags()["scalars"])[:5]) == {f"final/{name}" for name in RESULTS}


def test_before_the_end_the_declared_results_have_no_values(tmp_path: Path) -> None:
    board = TensorBoard(save_dir=tmp_path)
    board.log_hyperparams(hparams_of(CONFIG))
    board.save()
    assert events(tmp_path).Tags()["scalars"] == []
    assert metadata.SESSION_START_INFO_TAG in events(tmp_path).PluginTagToContent("hparams")


def test_a_resumed_run_continues_its_curves_without_overlap_or_gap(tmp_path: Path) -> None:
    def log(board: TensorBoard, epochs: range) -> None:
        for epoch in epochs:
            board.log_metrics({"val/acc": 0.1 * epoch, "epoch": epoch}, 10 * epoch + 9)
        board.finalize("success")

    log(TensorBoard(save_dir=tmp_path), range(4))
    resumed = TensorBoard(save_dir=tmp_path)
    resumed.resume(20)  # from the checkpoint of the second epoch
    log(resumed, range(2, 6))
    curve = events(tmp_path).Scalars("val/acc")
    assert [event.step for event in curve] == [9, 19, 29, 39, 49, 59]
    assert [event.value for event in curve] == pytest.approx([0.1 * epoch for epoch in range(6)])


def layouts(run: Path) -> list[layout_pb2.Layout]:
    tensors = events(run).Tensors(layout_metadata.CONFIG_SUMMARY_TAG)
    return [layout_pb2.Layout.FromString(t.tensor_proto.string_val[0]) for t in tensors]


def test_the_layout_has_each_curve_that_matters_once(run: Path) -> None:
    (layout,) = layouts(run)
    (category,) = layout.category
    assert not category.closed
    tags = [tag for chart in category.chart for tag in chart.multiline.tag]
    for wanted in ("train/acc", "val/acc", "train/loss", "val/loss", "lr", "images_per_s"):
        assert [wanted] == [wanted for tag in tags if re.match(tag, wanted)]


def test_a_resumed_run_has_one_layout(tmp_path: Path) -> None:
    for start in range(3):
        board = TensorBoard(save_dir=tmp_path)
        if start:
            board.resume(20 * start)
        board.log_hyperparams(hparams_of(CONFIG))
        board.log_metrics({"val/acc": 0.5}, 20 * start + 19)
        board.finalize("success")
    assert len(layouts(tmp_path)) == 1
