"""Whatever a callback changes of what was configured is refused, or found out and recorded."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning.pytorch.callbacks as theirs
import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import nn

from cifar_lab.errors import InputError
from cifar_lab.run import compatibility
from cifar_lab.training import layout
from cifar_lab.training.callbacks.ema import Ema
from tests.conftest import TINY, record_of
from tests.support.runs import SMALL, stop_at

Lab = Callable[..., tuple[int, str, str]]
THEIRS = "lightning.pytorch.callbacks"

# what Lightning has, and why it may stay: nothing that was configured changes, or it is recorded
REFUSED = {
    "BackboneFinetuning": "keeps layers out",
    "BaseFinetuning": "keeps layers out",
    "BatchSizeFinder": "-m data.batch_size=64,128,256",
    "EMAWeightAveraging": "callbacks=ema",
    "GradientAccumulationScheduler": "trainer.accumulate_grad_batches",
    "LearningRateFinder": "-m optimizer.lr=0.01,0.03,0.1",
    "ModelPruning": "prune the checkpoint",
    "OnExceptionCheckpoint": "callbacks.checkpoints",
    "StochasticWeightAveraging": "callbacks=swa",
    "WeightAveraging": "callbacks=ema",
}
HARMLESS = {
    "BasePredictionWriter",  # of Trainer.predict alone
    "Callback",  # does nothing
    "Checkpoint",  # likewise
    "DeviceStatsMonitor",
    "EarlyStopping",  # the record has the steps made and the steps planned
    "LambdaCallback",  # whatever it does is found out as another's
    "LearningRateMonitor",
    "ModelCheckpoint",  # files of its own
    "ModelSummary",
    "ProgressBar",
    "RichModelSummary",
    "RichProgressBar",
    "SpikeDetection",  # ends the run, which is recorded as failed
    "TQDMProgressBar",
    "ThroughputMonitor",
    "Timer",  # as EarlyStopping
}


def test_every_callback_of_lightning_is_decided_upon() -> None:
    assert set(theirs.__all__) == set(REFUSED) | HARMLESS
    for name in theirs.__all__:
        kind = getattr(theirs, name)
        for one in (kind, type("Mine", (kind,), {})):
            if name in REFUSED:
                with pytest.raises(InputError, match=REFUSED[name]):
                    compatibility.check_callback("callbacks.x", one)
            else:
                compatibility.check_callback("callbacks.x", one)
    compatibility.check_callback("callbacks.ema", Ema)
    compatibility.check_callback("callbacks.ema", type("Mine", (Ema,), {}))


def averaging() -> Callback:
    return theirs.StochasticWeightAveraging(swa_lrs=0.01)


@pytest.mark.parametrize(
    ("more", "line"),
    [
        (
            (f"+callbacks.x._target_={THEIRS}.BatchSizeFinder",),
            "callbacks.x: BatchSizeFinder changes the batch that was configured; "
            "compare sizes with -m data.batch_size=64,128,256 instead",
        ),
        (
            (
                f"+callbacks.x._target_={THEIRS}.StochasticWeightAveraging",
                "+callbacks.x.swa_lrs=0.01",
            ),
            "callbacks.x: StochasticWeightAveraging has an average that is in no checkpoint and is "
            "not tested; use callbacks=swa",
        ),
        (
            (
                f"+callbacks.x._target_={THEIRS}.GradientAccumulationScheduler",
                "+callbacks.x.scheduling={0:2}",
            ),
            "callbacks.x: GradientAccumulationScheduler changes the number of steps that the "
            "learning rates are laid out for; use trainer.accumulate_grad_batches, one number for "
            "the whole fit",
        ),
        (
            (f"+callbacks.x._target_={__name__}.averaging",),
            "callbacks: StochasticWeightAveraging has an average that is in no checkpoint and is "
            "not tested; use callbacks=swa",
        ),
        (
            tuple(f"+callbacks.{x}._target_={THEIRS}.EarlyStopping" for x in "xy")
            + tuple(f"+callbacks.{x}.monitor=val/loss" for x in "xy"),
            "trainer: RuntimeError: Found more than one stateful callback of type `EarlyStopping`",
        ),
    ],
    ids=["batch", "average", "accumulation", "from a function", "two of a kind"],
)
def test_a_refusal_is_one_line_and_nothing_is_on_disk(
    lab: Lab, tmp_path: Path, more: tuple[str, ...], line: str
) -> None:
    status, out, err = lab(*SMALL, *more, f"hydra.run.dir={tmp_path}/run")
    assert (status, out) == (2, "")
    assert err.startswith(f"cifar_lab: {line}")
    assert len(err.splitlines()) == 1
    assert not (tmp_path / "run").exists()


def size_of(batch: Any) -> int:
    return len(batch[0])


class Writer(theirs.BasePredictionWriter):
    def __init__(self) -> None:
        super().__init__("batch")


@pytest.mark.filterwarnings("ignore:When using the `ThroughputMonitor`")
def test_the_others_of_lightning_change_nothing(lab: Lab, tmp_path: Path) -> None:
    assert lab(*SMALL, f"hydra.run.dir={tmp_path}/alone")[0] == 0
    plain = (
        *("Callback", "Checkpoint", "LambdaCallback", "LearningRateMonitor", "ModelSummary"),
        *("RichModelSummary", "SpikeDetection", "TQDMProgressBar", "Timer"),
    )
    status, _, err = lab(
        *SMALL,
        *(f"+callbacks.{name}._target_={THEIRS}.{name}" for name in plain),
        f"+callbacks.writer._target_={__name__}.Writer",
        f"+callbacks.stats._target_={THEIRS}.DeviceStatsMonitor",
        "+callbacks.stats.cpu_stats=true",  # it needs psutil else
        f"+callbacks.throughput._target_={THEIRS}.ThroughputMonitor",
        f"+callbacks.throughput.batch_size_fn._target_={__name__}.size_of",
        "+callbacks.throughput.batch_size_fn._partial_=true",
        f"hydra.run.dir={tmp_path}/all",
    )
    assert status == 0, err
    record = record_of(tmp_path / "all")
    assert record["departures"] == []
    # they add curves of their own
    kept = {k: v for k, v in record["metrics"].items() if k in ("val/loss", "test/loss")}
    assert kept.items() <= record_of(tmp_path / "alone")["metrics"].items()
    a, b = (
        torch.load(tmp_path / run / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
        for run in ("alone", "all")
    )
    assert all(torch.equal(a[key], b[key]) for key in a)


# --- somebody's own -------------------------------------------------------------------------------


class Accumulating(Callback):
    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        trainer.accumulate_grad_batches = 2


class Resizing(Callback):
    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        trainer.datamodule.batch_size = 25  # type: ignore[attr-defined]


class RateOfEpoch(Callback):
    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        trainer.optimizers[0].param_groups[0]["lr"] = 0.001


class RateOfSteps(Callback):
    def on_train_batch_start(self, trainer: Trainer, *_: Any) -> None:
        trainer.optimizers[0].param_groups[0]["lr"] = 0.001


class Rescheduling(Callback):
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        trainer.lr_scheduler_configs[0].scheduler.base_lrs = [0.001]


class Longer(Callback):
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        trainer.fit_loop.max_epochs += 1  # type: ignore[operator]


def halve(module: LightningModule) -> None:
    for parameter in module.parameters():
        parameter.data.mul_(0.5)


class ChangesEpochs(Callback):
    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        halve(pl_module)


class ChangesTheEnd(Callback):
    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        halve(pl_module)


class Decaying(Callback):
    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        trainer.optimizers[0].param_groups[0]["weight_decay"] = 0.5


class Clipping(Callback):
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        trainer.gradient_clip_val = 0.001


class ValidatesAnother(Callback):
    """As averages that are put in place for a validation alone, and are in no checkpoint."""

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        halve(pl_module)

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        for parameter in pl_module.parameters():
            parameter.data.mul_(2)


class TestsAnother(Callback):
    __test__ = False

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        halve(pl_module)


STEPS = "{} optimizer steps instead of the 16 that the learning rates are laid out for"


@pytest.mark.parametrize(
    ("callback", "images", "said"),
    [
        (Accumulating, 100, ["100 images per optimizer step instead of 50", STEPS.format(8)]),
        (Resizing, 25, ["25 images per optimizer step instead of 50", STEPS.format(32)]),
        (RateOfEpoch, 50, ["the learning rate of step 1 was 0.001 instead of"]),
        (RateOfSteps, 50, ["the learning rate of step 8 was 0.001 instead of"]),
        (Rescheduling, 50, ["the learning rate of step 8 was"]),
        (Longer, 50, [STEPS.format(24)]),
        (ChangesEpochs, 50, ["the weights were changed after their validation"]),
        (ChangesTheEnd, 50, ["the weights were changed when training was over"]),
        (Decaying, 50, ["optimizer.weight_decay was 0.5 instead of 0.0005"]),
        (Clipping, 50, ["trainer.gradient_clip_val was 0.001 instead of None"]),
        (ValidatesAnother, 50, ["the weights were changed after their validation"]),
        (TestsAnother, 50, ["the weights were changed for the test"]),
    ],
)
def test_what_another_callback_changes_is_said_and_recorded(
    lab: Lab, tmp_path: Path, callback: type[Callback], images: int, said: list[str]
) -> None:
    target = f"+callbacks.mine._target_={__name__}.{callback.__name__}"
    status, out, err = lab(*SMALL, target, f"hydra.run.dir={tmp_path}/run")
    assert status == 0
    record = record_of(tmp_path / "run")
    assert len(record["departures"]) == len(said) == len(err.splitlines())
    for text, line, printed in zip(said, record["departures"], err.splitlines(), strict=True):
        assert line.startswith(text)
        assert printed == f"not as asked: {line}"
        assert line in out
    assert record["images_per_step"] == images
    assert record["steps_planned"] == 16


def test_what_is_tested_is_in_a_checkpoint(lab: Lab, tmp_path: Path) -> None:
    """The change at the end is in none, and takes no part."""
    last = (*SMALL, "data.val_size=0")
    assert lab(*last, f"hydra.run.dir={tmp_path}/alone")[0] == 0
    target = f"+callbacks.mine._target_={__name__}.ChangesTheEnd"
    assert lab(*last, target, f"hydra.run.dir={tmp_path}/run")[0] == 0
    alone, run = (record_of(tmp_path / name) for name in ("alone", "run"))
    assert run["metrics"]["test/loss"] == alone["metrics"]["test/loss"]
    assert len(run["departures"]) == 1


def test_a_departure_outlives_a_stop(
    lab: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = (*SMALL, f"+callbacks.mine._target_={__name__}.RateOfEpoch")
    command = (*command, f"hydra.run.dir={tmp_path}/run")
    stop_at(monkeypatch, 11)
    assert lab(*command)[0] == 130
    monkeypatch.setattr(RateOfEpoch, "on_train_epoch_start", lambda *_: None)
    status, _, err = lab(*command)
    assert (status, err) == (0, "")
    assert record_of(tmp_path / "run")["departures"][0].startswith("the learning rate of step 1")


@pytest.mark.parametrize(
    "more",
    [
        (),
        ("trainer.accumulate_grad_batches=3",),
        ("steps_per_call=4",),
        ("trainer.max_steps=11",),
        ("trainer.limit_train_batches=3", "trainer.accumulate_grad_batches=2"),
        ("+trainer.val_check_interval=3",),
        ("scheduler=onecycle",),
        ("callbacks=ema",),
        ("data.val_size=0", "data.loader=torchvision", "data.workers=0", "augment=none"),
    ],
    ids=str,
)
def test_a_run_as_configured_departs_in_nothing(
    lab: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, more: tuple[str, ...]
) -> None:
    stop_at(monkeypatch, 0)
    command = (*SMALL, *more, f"hydra.run.dir={tmp_path}/run")
    assert lab(*command)[0] == 130
    status, _, err = lab(*command)
    assert (status, err) == (0, "")
    record = record_of(tmp_path / "run")
    assert record["departures"] == []
    assert record["steps"] == record["steps_planned"]


def test_stopped_early_the_record_has_both_lengths(lab: Lab, tmp_path: Path) -> None:
    early = ("callbacks=early_stopping",)
    status, out, err = lab(
        *SMALL,
        *(*early, "callbacks.early_stopping.patience=1", "callbacks.early_stopping.min_delta=1"),
        *("trainer.max_epochs=5", f"hydra.run.dir={tmp_path}/run"),
    )
    assert (status, err) == (0, "")
    record = record_of(tmp_path / "run")
    assert (record["steps"], record["steps_planned"], record["departures"]) == (16, 40, [])
    assert "2 epochs, 16 of 40 steps" in out


@pytest.mark.parametrize("average", ["ema", "swa"])
def test_stopped_early_what_had_no_part_is_on_record(
    lab: Lab, tmp_path: Path, average: str
) -> None:
    start = {"ema": "callbacks.ema.start_step=16", "swa": "callbacks.swa.start_fraction=0.5"}
    status, _, err = lab(
        *(*TINY, f"callbacks=[early_stopping,sam,{average}]", start[average]),
        *("callbacks.early_stopping.patience=1", "callbacks.early_stopping.min_delta=1"),
        *("callbacks.sam.start_fraction=0.4", "+augment.sizes=[[0,16],[2,32]]"),
        *("trainer.max_epochs=5", f"hydra.run.dir={tmp_path}/run"),
    )
    assert status == 0, err
    record = record_of(tmp_path / "run")
    end = "the fit ended after 16 of 40 optimizer steps"
    assert sorted(record["departures"]) == [
        "images of 32 pixels, which are tested, were never trained on: the fit ended in epoch 2, "
        "and they come with epoch 3",
        f"no step was sharpness-aware: {end}",
        f"no weights were averaged: {end}",
    ]
    assert err.count("not as asked: ") == err.count("\n") == 3


def test_weights_are_told_by_their_bits_wherever_and_however_they_lie() -> None:
    torch.manual_seed(0)
    first = nn.Conv2d(16, 64, 3)
    network = nn.Sequential(first, nn.BatchNorm2d(64), nn.Conv2d(64, 64, 3))
    before = layout.fingerprint(network)
    # another order of the same numbers: a norm, added up in another order, has other last bits
    assert layout.fingerprint(network.to(memory_format=torch.channels_last)) == before
    with torch.no_grad():
        first.weight[0, 0, 0, 0] = torch.nextafter(first.weight[0, 0, 0, 0], torch.tensor(9.0))
    assert layout.fingerprint(network) != before


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_weights_of_every_precision_are_told(dtype: torch.dtype) -> None:
    network = nn.Linear(3, 2).to(dtype)
    before = layout.fingerprint(network)
    with torch.no_grad():
        network.weight[0, 0] += 1
    assert layout.fingerprint(network) != before
