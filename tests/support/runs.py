"""Short runs: to stop them in the middle, and to hold two against each other."""

from __future__ import annotations

import csv
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Trainer

from cifar_lab.training.classifier import Classifier
from tests.conftest import TINY, is_timing, record_of

# dropout draws from the global RNG, augmentation from its own, momentum carries history
SMALL = (
    *[a for a in TINY if not a.startswith("model")],
    "model=cnn",
    "model.width=4",
    "threads=1",
)


def begin(classifier: Classifier) -> Classifier:
    """The classifier as where a fit on the CPU begins: `training_step` may follow."""
    trainer = Trainer(accelerator="cpu", logger=False, enable_checkpointing=False)
    classifier.trainer = trainer
    trainer.optimizers = [torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.1)]
    classifier.on_train_start()
    return classifier


def stop_at(monkeypatch: pytest.MonkeyPatch, *steps: int) -> None:
    """Ctrl-C arrives in the middle of these steps, each once."""
    pending = list(steps)
    step = Classifier.training_step

    def stopped(self: Classifier, batch: Any, batch_idx: int) -> Any:
        if pending and self.global_step == pending[0]:
            pending.pop(0)
            signal.raise_signal(signal.SIGINT)
        return step(self, batch, batch_idx)

    monkeypatch.setattr(Classifier, "training_step", stopped)


def weights(run_dir: Path) -> dict[str, torch.Tensor]:
    path = run_dir / "checkpoints" / "last.ckpt"
    state: dict[str, torch.Tensor] = torch.load(path, weights_only=True)["state_dict"]
    return state


def rows(run_dir: Path) -> list[dict[str, str]]:
    with open(run_dir / "metrics.csv", newline="") as file:
        return [{k: v for k, v in row.items() if not is_timing(k)} for row in csv.DictReader(file)]


def stop_in(monkeypatch: pytest.MonkeyPatch, method: str, call: int, times: int = 1) -> None:
    """Ctrl-C arrives, `times` times over, in this call of a method of Classifier; once."""
    original, calls = getattr(Classifier, method), iter(range(10**9))

    def stopped(self: Classifier, *arguments: Any) -> Any:
        if next(calls) == call:
            for _ in range(times):
                signal.raise_signal(signal.SIGINT)
        return original(self, *arguments)

    monkeypatch.setattr(Classifier, method, stopped)


def same(whole: Path, cut: Path) -> None:
    """Weights, curves and record agree to the bit; timings aside."""
    a, b = weights(whole), weights(cut)
    assert all(torch.equal(a[key], b[key]) for key in a)
    assert rows(whole) == rows(cut)
    for field in ("metrics", "epochs", "steps", "tested", "best_epoch", "status"):
        one, other = record_of(whole)[field], record_of(cut)[field]
        if field == "metrics":
            one.pop("images_per_s", None), other.pop("images_per_s", None)
        assert one == other, field
    assert (whole / "predictions.npz").read_bytes() == (cut / "predictions.npz").read_bytes()
