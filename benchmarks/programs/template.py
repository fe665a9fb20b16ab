"""A Lightning program in the manner of the common Hydra templates.

Per-sample transforms in DataLoader workers, torchmetrics objects updated and logged in every step,
a rich progress bar, a CSV logger, ModelCheckpoint on val/acc. Validation and checkpoints are left
out of its rate, as they are out of ours.
"""

from __future__ import annotations

from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint, RichProgressBar
from lightning.pytorch.loggers import CSVLogger
from torch import Tensor, nn
from torch.utils.data import DataLoader
from torchmetrics import MaxMetric, MeanMetric
from torchmetrics.classification import MulticlassAccuracy

from benchmarks.contenders import EVALUATION_BATCHES, WARMUP_STEPS
from benchmarks.programs.harness import (
    Clock,
    Settings,
    StandIn,
    make_network,
    make_optimizer,
    per_image,
    run,
)


class LitModule(LightningModule):
    """Loss and accuracy as metric objects, logged with ``on_epoch=True, prog_bar=True``."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        self.criterion = nn.CrossEntropyLoss()
        self.train_loss, self.val_loss = MeanMetric(), MeanMetric()
        self.train_acc = MulticlassAccuracy(num_classes=10, average="micro")
        self.val_acc = MulticlassAccuracy(num_classes=10, average="micro")
        self.val_acc_best = MaxMetric()

    def _step(self, batch: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        images, labels = batch
        logits = self.network(images)
        return self.criterion(logits, labels), logits.argmax(1), labels

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """The loss; two metrics updated and logged."""
        loss, predictions, labels = self._step(batch)
        self.train_loss(loss)
        self.train_acc(predictions, labels)
        self.log("train/loss", self.train_loss, on_step=False, on_epoch=True, prog_bar=True)
        self.log("train/acc", self.train_acc, on_step=False, on_epoch=True, prog_bar=True)
        return loss

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        """Two metrics updated and logged."""
        loss, predictions, labels = self._step(batch)
        self.val_loss(loss)
        self.val_acc(predictions, labels)
        self.log("val/loss", self.val_loss, on_step=False, on_epoch=True, prog_bar=True)
        self.log("val/acc", self.val_acc, on_step=False, on_epoch=True, prog_bar=True)

    def on_validation_epoch_end(self) -> None:
        """Keeps the best accuracy."""
        self.val_acc_best(self.val_acc.compute())
        self.log("val/acc_best", self.val_acc_best.compute(), prog_bar=True)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """As all programs here."""
        return make_optimizer(self.network)


class ReadClock(Callback):
    """The clock runs in training epochs and stands still in validation and for checkpoints."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Runs."""
        self._clock.resume()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Counts."""
        self._clock.step(len(batch[1]))

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stands still until the next epoch; ModelCheckpoint saves before that."""
        self._clock.pause()


def train(settings: Settings, clock: Clock) -> None:
    """A fit in the working directory: ``checkpoints/`` and ``csv/``."""
    trainer = Trainer(
        accelerator="gpu" if settings.device.type == "cuda" else settings.device.type,
        devices=1,
        precision=settings.precision,  # type: ignore[arg-type]  # checked by argparse
        max_steps=WARMUP_STEPS + settings.steps,
        max_epochs=-1,
        limit_val_batches=EVALUATION_BATCHES,
        callbacks=[
            ReadClock(clock),
            ModelCheckpoint("checkpoints", monitor="val/acc", mode="max", save_last=True),
            # on standard error, where a person's terminal is: standard output is for the result
            RichProgressBar(console_kwargs={"stderr": True}),
        ],
        logger=CSVLogger(".", name="csv"),
    )
    trainer.fit(
        LitModule(make_network(settings)),
        _loader(settings, train=True),
        _loader(settings, train=False),
    )


def _loader(settings: Settings, *, train: bool) -> DataLoader[Any]:
    return DataLoader(
        StandIn(settings.data, train=train, transform=per_image()),
        batch_size=settings.batch_size,
        shuffle=train,
        num_workers=settings.workers,
        persistent_workers=settings.workers > 0,
        pin_memory=settings.device.type == "cuda",
    )


if __name__ == "__main__":
    run(train)
