"""What the Classifier logs, and when it gives up, held against a loop that does it by hand.

Single steps and several per call alike.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers.logger import DummyLogger
from torch import Tensor, nn

from cifar_lab.data.augment import CutMix, Pipeline, RandomFlip
from cifar_lab.data.datamodule import Synthetic
from cifar_lab.errors import Diverged
from cifar_lab.training.classifier import Classifier
from cifar_lab.training.schedules import cosine
from cifar_lab.training.steps.multistep import arrange
from tests.conftest import FEED
from tests.support.device_laws import Waits

LR = 0.05
SCHEDULE = partial(cosine, warmup_fraction=0.2, final_factor=0.1)
EPOCHS = 2


def linear() -> nn.Module:
    torch.manual_seed(5)
    return nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 10))


def data_of(*, val_size: int = 30, mix: bool = False) -> Synthetic:
    """100 training images less those held out, in batches of 16: a short one at the end."""
    flip: dict[str, Any] = {"flip": RandomFlip(p=0.5)}
    return Synthetic(
        **{**FEED, "train_size": 100, "test_size": 40, "data_seed": 0, "batch_size": 16},
        val_size=val_size,
        augment=Pipeline(transforms=flip | ({"cutmix": CutMix(alpha=1.0, p=1.0)} if mix else {})),
        seed=3,
    )


class Rows(DummyLogger):
    """Every row that a logger is given, and how many had been given when it was told to save."""

    def __init__(self) -> None:
        super().__init__()
        self.rows: list[tuple[dict[str, float], int | None]] = []
        self.saved: list[int] = []

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        self.rows.append((dict(metrics), step))

    def save(self) -> None:
        self.saved.append(len(self.rows))

    def of(self, split: str) -> list[tuple[dict[str, float], int | None]]:
        return [(row, step) for row, step in self.rows if f"{split}/loss" in row]


class Fit:
    """A fit that is ready, and what it leaves."""

    def __init__(
        self,
        folder: Path,
        *,
        size: int | None = None,
        network: nn.Module | None = None,
        loss: Callable[[Tensor, Tensor], Tensor] | None = None,
        schedule: Callable[[int, int], float] = SCHEDULE,
        data: Synthetic | None = None,
        callbacks: tuple[Callback, ...] = (),
        **settings: Any,
    ) -> None:
        self.logger = Rows()
        self.data = data_of() if data is None else data
        self.data.open()
        self.classifier = Classifier(
            network=linear() if network is None else network,
            loss=nn.CrossEntropyLoss() if loss is None else loss,
            optimizer=partial(torch.optim.SGD, lr=LR, momentum=0.9),
            schedule=schedule,
            config={"a": [1, {"b": None}]},
        )
        self.trainer = Trainer(
            default_root_dir=folder,
            accelerator="cpu",
            logger=self.logger,
            callbacks=list(callbacks),
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            num_sanity_val_steps=0,
            **{"max_epochs": EPOCHS, **settings},
        )
        self.classifier.train_on(arrange(self.trainer, self.data, size or 1))

    def run(self, checkpoint: Path | None = None) -> Fit:
        self.trainer.fit(
            self.classifier, datamodule=self.data, ckpt_path=checkpoint, weights_only=True
        )
        return self

    @property
    def metrics(self) -> dict[str, float]:
        return {name: float(value) for name, value in self.trainer.callback_metrics.items()}


def by_hand(data: Synthetic) -> list[dict[str, float]]:
    """The rows of a plain loop's epochs: sums in float64, and the last step's learning rate."""
    data.open()
    data.setup()
    loader = data.train_dataloader()
    held_out: list[Any] = list(data.val_dataloader())
    network, rows, step = linear(), [], 0
    optimizer = torch.optim.SGD(network.parameters(), lr=LR, momentum=0.9)
    total = EPOCHS * len(loader)

    def loss_and_sums(images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        logits = network(images)
        loss = nn.functional.cross_entropy(logits, labels)
        classes = labels if labels.ndim == 1 else labels.argmax(1)
        right = sum(int(a == b) for a, b in zip(logits.argmax(1), classes, strict=True))
        return loss, torch.tensor([float(loss.detach()) * len(images), right, len(images)]).double()

    for epoch in range(EPOCHS):
        loader.set_epoch(epoch)
        sums = torch.zeros(3, dtype=torch.float64)
        for images, labels in loader:
            lr = optimizer.param_groups[0]["lr"] = LR * SCHEDULE(step, total)
            loss, these = loss_and_sums(images, labels)
            sums += these
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            step += 1
        row = {"epoch": epoch, "lr": lr, "step": step - 1}
        row |= {"train/loss": float(sums[0] / sums[2]), "train/acc": float(sums[1] / sums[2])}
        with torch.no_grad():
            totals = [loss_and_sums(images, labels)[1] for images, labels in held_out]
        if totals:
            val = torch.stack(totals).sum(0)
            row |= {"val/loss": float(val[0] / val[2]), "val/acc": float(val[1] / val[2])}
        rows.append(row)
    return rows


@pytest.mark.parametrize(
    ("size", "feed"),
    [
        (None, {}),
        (2, {}),
        (16, {}),
        (None, {"val_size": 0}),
        (None, {"mix": True}),
        (2, {"mix": True}),
    ],
    ids=str,
)
def test_every_epoch_logs_what_a_loop_by_hand_counts(
    tmp_path: Path, size: int | None, feed: dict[str, Any]
) -> None:
    fit = Fit(tmp_path, size=size, data=data_of(**feed)).run()
    expected = by_hand(data_of(**feed))
    trained, validated = fit.logger.of("train"), fit.logger.of("val")
    assert len(trained) == EPOCHS
    for number, row in enumerate(expected):
        val = {name: row.pop(name) for name in list(row) if name.startswith("val/")}
        step = row.pop("step")
        logged, at = trained[number]
        assert logged.keys() == row.keys()
        assert logged == pytest.approx(row, rel=1e-6)
        assert at == step
        if val:
            logged, at = validated[number]
            logged.pop("epoch", None)
            assert logged == pytest.approx(val, rel=1e-6)
            assert at == step
    assert len(validated) == (EPOCHS if val else 0)
    # the callbacks get the last ones, without what is a curve's alone
    del row["epoch"]
    assert fit.metrics == pytest.approx({**row, **val}, rel=1e-6)
    # a row is saved before anything can come between it and the checkpoint
    assert set(fit.logger.saved) >= {fit.logger.rows.index(entry) + 1 for entry in trained}


class AtStep(Callback):
    """Does something in each epoch after a number of batches (or calls)."""

    def __init__(self, batch: int, what: Callable[[Trainer, LightningModule], None]) -> None:
        self._batch, self._what = batch, what

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, index: int
    ) -> None:
        if index + 1 == self._batch:
            self._what(trainer, pl_module)


def test_what_ran_so_far_can_be_read_at_any_step(tmp_path: Path) -> None:
    seen: list[list[float]] = []

    def look(trainer: Trainer, classifier: Any) -> None:
        seen.append(classifier.running_train().tolist())

    Fit(tmp_path, callbacks=(AtStep(2, look),)).run()
    assert [images for _, _, images in seen] == [32, 32]
    assert all(0 < loss < 1000 and 0 <= right <= 32 for loss, right, _ in seen)


def test_numbers_of_callbacks_come_in_the_epochs_row_and_only_in_that(tmp_path: Path) -> None:
    def give(trainer: Trainer, classifier: Any) -> None:
        if trainer.current_epoch == 0:
            classifier.log_with_epoch({"norm": 2.5})
            classifier.log_with_epoch({"other": 3.5})
            classifier.plot_with_epoch({"curve": 4.5})

    fit = Fit(tmp_path, callbacks=(AtStep(1, give),)).run()
    first, second = (row for row, _ in fit.logger.of("train"))
    assert (first["norm"], first["other"], first["curve"]) == (2.5, 3.5, 4.5)
    assert not {"norm", "other", "curve"} & set(second)
    assert "curve" not in fit.metrics
    assert (fit.metrics["norm"], fit.metrics["other"]) == (2.5, 3.5)


# --- resuming -------------------------------------------------------------------------------------


@pytest.mark.parametrize("batch", [1, 3, 4])
def test_an_epoch_that_a_checkpoint_cuts_in_two_logs_what_one_in_one_piece_does(
    tmp_path: Path, batch: int
) -> None:
    path = tmp_path / "cut.ckpt"

    def save(trainer: Trainer, classifier: Any) -> None:
        if trainer.current_epoch == 1:
            trainer.save_checkpoint(path)

    whole = Fit(tmp_path, callbacks=(AtStep(batch, save),)).run()
    saved = torch.load(path, weights_only=True)
    assert saved["hyper_parameters"]["config"] == {"a": [1, {"b": None}]}
    assert saved["steps_per_call"] == 1
    assert saved["lr"] == pytest.approx(LR * SCHEDULE(5 + batch - 1, 10))
    assert saved["train_sums"].tolist()[2] == 16 * batch
    again = Fit(tmp_path).run(path)
    assert [step for _, step in again.logger.of("train")] == [9]
    assert again.logger.of("train") == whole.logger.of("train")[1:]
    assert again.logger.of("val") == whole.logger.of("val")[1:]


# --- the schedule ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "total", "size"),
    [
        ({"max_epochs": 3}, 15, None),
        ({"max_epochs": 3, "max_steps": 7}, 7, None),
        ({"max_epochs": 3, "max_steps": 7}, 7, 2),
        ({"max_epochs": 1, "max_steps": 7}, 5, None),
        ({"max_epochs": -1, "max_steps": 7}, 7, None),
        ({"limit_train_batches": 3}, 6, 2),
        ({"limit_train_batches": 0.5}, 4, None),
        ({"limit_train_batches": 100}, 10, None),
        ({"accumulate_grad_batches": 2}, 6, None),
        ({"accumulate_grad_batches": 2, "limit_train_batches": 4}, 4, None),
    ],
    ids=str,
)
def test_the_schedule_is_laid_out_over_the_steps_that_are_made(
    tmp_path: Path, settings: dict[str, Any], total: int, size: int | None
) -> None:
    asked: list[tuple[int, int]] = []

    def schedule(step: int, steps: int) -> float:
        asked.append((step, steps))
        return SCHEDULE(step, steps)

    fit = Fit(tmp_path, size=size, schedule=schedule, **settings).run()
    assert fit.trainer.global_step == total
    assert {steps for _, steps in asked} == {total}
    assert {step for step, _ in asked} >= set(range(total))
    assert fit.metrics["lr"] == pytest.approx(LR * SCHEDULE(total - 1, total))


# --- divergence -----------------------------------------------------------------------------------


class BadAt:
    """A loss that is no number in certain calls, and never again."""

    def __init__(self, *calls: int, value: float = math.nan) -> None:
        self.calls, self.count, self.value = calls, -1, value

    def __call__(self, logits: Tensor, labels: Tensor) -> Tensor:
        self.count += 1
        loss = nn.functional.cross_entropy(logits, labels)
        # without a gradient: the weights stay finite
        return loss + self.value if self.count in self.calls else loss


@pytest.mark.parametrize("size", [None, 3])
@pytest.mark.parametrize(
    ("calls", "value", "step", "epoch"),
    [((0,), math.nan, 0, 1), ((3, 4), math.inf, 3, 1), ((8, 9), math.nan, 8, 2)],
)
def test_the_first_bad_training_loss_is_named(
    tmp_path: Path, size: int | None, calls: tuple[int, ...], value: float, step: int, epoch: int
) -> None:
    # 7 batches an epoch, and no call of the loss but theirs
    fit = Fit(tmp_path, size=size, loss=BadAt(*calls, value=value), data=data_of(val_size=0))
    with pytest.raises(Diverged) as stop:
        fit.run()
    said = f"the training loss became NaN or infinite at step {step} (epoch {epoch}); try a lower"
    assert said in str(stop.value)
    assert f"optimizer.lr (it is {LR})" in str(stop.value)
    assert len(fit.logger.of("train")) == epoch - 1


def test_a_bad_validation_loss_is_named(tmp_path: Path) -> None:
    with pytest.raises(Diverged, match=r"the validation loss became .* at step 5 \(epoch 1\)"):
        Fit(tmp_path, loss=BadAt(5)).run()  # five training batches come before


@pytest.mark.parametrize("value", [math.nan, -math.inf])
def test_a_bad_weight_is_named_before_anything_is_validated(tmp_path: Path, value: float) -> None:
    def spoil(trainer: Trainer, classifier: Any) -> None:
        with torch.no_grad():
            classifier.network[1].bias[3] = value

    fit = Fit(tmp_path, callbacks=(AtStep(5, spoil),))
    with pytest.raises(Diverged, match=r"a weight became .* at step 5 \(epoch 1\)"):
        fit.run()
    assert fit.logger.of("val") == []


# --- the test -------------------------------------------------------------------------------------


class Half(nn.Module):
    """Logits of a narrower type, always in the same memory, as a recorded step's are."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = linear()
        self.out = torch.zeros(16, 10, dtype=torch.bfloat16)

    def forward(self, images: Tensor) -> Tensor:
        if self.training:
            logits: Tensor = self.linear(images)
            return logits
        self.out[: len(images)] = self.linear(images)
        return self.out[: len(images)]


def test_logits_are_kept_as_they_were_in_float32_on_every_test_anew(tmp_path: Path) -> None:
    network = Half()
    fit = Fit(tmp_path, network=network)
    for _ in range(2):
        fit.trainer.test(fit.classifier, datamodule=fit.data, verbose=False)
        images, labels = zip(*fit.data.test_dataloader(), strict=True)
        with torch.no_grad():
            expected = torch.cat([network.linear(batch) for batch in images]).bfloat16().float()
        assert fit.classifier.test_logits.dtype == torch.float32
        assert torch.equal(fit.classifier.test_logits, expected)
        assert torch.equal(fit.classifier.test_labels, torch.cat(labels))
        right = (expected.argmax(1) == torch.cat(labels)).double().mean()
        assert fit.metrics["test/acc"] == float(right)
        assert fit.metrics["test/loss"] > 0


# --- what is read, and what other processes are told ----------------------------------------------


def test_all_weights_are_looked_at_in_one_read(tmp_path: Path) -> None:
    layers = [nn.Linear(4, 4) for _ in range(20)]
    network = nn.Sequential(*layers)
    fit = Fit(tmp_path, network=network)
    classifier = fit.classifier
    classifier.trainer = fit.trainer
    fit.trainer.optimizers = [torch.optim.SGD(network.parameters(), lr=LR)]
    with Waits("cpu") as waits:
        classifier.assert_finite()
    assert waits.operators["aten._local_scalar_dense.default"] == 2  # the other: a bad loss's step
    waits.found.clear()
    for value, dtype in ((math.nan, torch.float32), (math.inf, torch.float32), (1e38, None)):
        with torch.no_grad():
            layers[7].bias[2] = value
        if dtype is None:
            classifier.assert_finite()  # large, and its square infinite
        else:
            with pytest.raises(Diverged, match="a weight became"):
                classifier.assert_finite()


def test_other_processes_are_told_numbers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # a tensor would be pickled, and unpickled on the first process's GPU
    fit, told = Fit(tmp_path), []
    strategy = fit.trainer.strategy

    def broadcast(value: Any, src: int = 0) -> Any:
        told.append(value)
        return value

    monkeypatch.setattr(strategy, "broadcast", broadcast)
    fit.run()
    fit.trainer.test(fit.classifier, datamodule=fit.data, verbose=False)
    leaves = [leaf for value in told for leaf in (value if isinstance(value, list) else [value])]
    assert len(leaves) > 3 * EPOCHS
    assert {type(leaf) for leaf in leaves} <= {float, int, bool, str, type(None)}
