"""A small classifier and batches for the tests of what surrounds training."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from torch import Tensor, nn

from cifar_lab.data.dataset import CLASSES, Dataset, Split

BATCH = 10

MakeTrainer = Callable[..., Trainer]


class MakeData(Protocol):
    """The batches of each split."""

    def __call__(self, *, train: int = 4, val: int = 2, test: int = 3) -> ToyData: ...


@dataclass
class Batches:
    """``count`` batches of images (10, 3, 32, 32) in [0, 1) and labels, the same in every epoch."""

    count: int

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        generator = torch.Generator().manual_seed(0)
        for _ in range(self.count):
            images = torch.rand(BATCH, 3, 32, 32, generator=generator)
            yield images, torch.randint(0, 10, (BATCH,), generator=generator)


class Toy(LightningModule):
    """A linear classifier with the face that progress and pictures rely on."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 10))
        self.sums = torch.zeros(3)
        self.val_accs = iter([0.5, 0.7, 0.6, 0.65])
        self.outputs: list[tuple[Tensor, Tensor]] = []
        self.before_step: Callable[[int], None] = lambda batch: None

    def running_train(self) -> Tensor:
        return self.sums

    def on_train_epoch_start(self) -> None:
        self.sums = torch.zeros(3)

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        self.before_step(batch_idx)
        images, labels = batch
        logits = self.net(images)
        loss = nn.functional.cross_entropy(logits, labels)
        with torch.no_grad():
            correct = (logits.argmax(1) == labels).sum()
            self.sums += torch.stack((loss * BATCH, correct, torch.tensor(BATCH)))
        return loss

    def on_train_epoch_end(self) -> None:
        loss, correct, count = self.sums.tolist()
        self.log_dict({"train/loss": loss / count, "train/acc": correct / count, "lr": 0.1})

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        pass

    def on_validation_epoch_end(self) -> None:
        self.log_dict({"val/loss": 1.25, "val/acc": next(self.val_accs)})

    def test_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        self.outputs.append((self.net(batch[0]), batch[1]))

    def on_test_epoch_end(self) -> None:
        logits, labels = zip(*self.outputs, strict=True)
        self.test_logits, self.test_labels = torch.cat(logits), torch.cat(labels)
        self.log_dict({"test/loss": 1.5, "test/acc": 0.75})

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.01)


class ToyData(LightningDataModule):
    """Batches, and the test split as pictures need it."""

    def __init__(self, *, train: int, val: int, test: int) -> None:
        super().__init__()
        self.counts = (train, val, test)
        images = np.random.default_rng(0).integers(0, 256, (BATCH * test, 3, 32, 32), np.uint8)
        split = Split(images=images, labels=(np.arange(len(images)) % 10).astype(np.uint8))
        self.dataset = Dataset(
            name="synthetic",
            layout="toy",
            official=False,
            digest="",
            classes=CLASSES,
            train=split,
            test=split,
        )

    def train_dataloader(self) -> Batches:
        return Batches(self.counts[0])

    def val_dataloader(self) -> Any:
        return Batches(self.counts[1]) if self.counts[1] else []

    def test_dataloader(self) -> Batches:
        return Batches(self.counts[2])
