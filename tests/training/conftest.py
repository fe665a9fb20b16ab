"""A small classifier and batches for the tests of what surrounds training."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from torch import Tensor, nn

from cifar_lab.data.dataset import Dataset, Split
from cifar_lab.training.library_logging import quiet_libraries
from tests.conftest import REPOSITORY

BATCH = 10


@pytest.fixture(autouse=True)
def _quiet() -> None:
    quiet_libraries()


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
            name="synthetic", layout="toy", official=False, digest="", train=split, test=split
        )

    def train_dataloader(self) -> Batches:
        return Batches(self.counts[0])

    def val_dataloader(self) -> Any:
        return Batches(self.counts[1]) if self.counts[1] else []

    def test_dataloader(self) -> Batches:
        return Batches(self.counts[2])


@pytest.fixture
def run_python() -> Callable[..., subprocess.CompletedProcess[str]]:
    """Runs code in a fresh interpreter with Python's own warning filters; ``conftest`` is this."""

    def run(code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        environment = os.environ | {
            "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), str(REPOSITORY)]),
            "OMP_NUM_THREADS": "1",
        }
        environment.pop("PYTHONWARNINGS", None)
        done = subprocess.run(
            [sys.executable, "-c", code, *arguments],
            env=environment,
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert done.returncode == 0, done.stderr
        return done

    return run


@pytest.fixture
def toy() -> Toy:
    return Toy()


@pytest.fixture
def toy_data() -> Callable[..., ToyData]:
    return lambda *, train=4, val=2, test=3: ToyData(train=train, val=val, test=test)


@pytest.fixture
def make_trainer(tmp_path: Path) -> Callable[..., Trainer]:
    def make(**settings: Any) -> Trainer:
        defaults: dict[str, Any] = {
            "accelerator": "cpu",
            "default_root_dir": tmp_path,
            "max_epochs": 2,
            "logger": False,
            "enable_progress_bar": False,
            "enable_checkpointing": False,
            "enable_model_summary": False,
            "num_sanity_val_steps": 0,
        }
        return Trainer(**(defaults | settings))

    return make
