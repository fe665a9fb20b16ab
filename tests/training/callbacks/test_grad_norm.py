"""The gradient norm is that of the epoch's last step, and the same in a run that was stopped."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer

from cifar_lab.training.callbacks.grad_norm import GradNorm
from cifar_lab.training.classifier import Classifier
from tests.conftest import TINY
from tests.support.runs import stop_at, stop_in

Lab = Callable[..., tuple[int, str, str]]
SMALL = (
    *[argument for argument in TINY if not argument.startswith("monitors")],
    "monitors=grad_norm",
    "threads=1",
)


def norms(run_dir: Path) -> list[str]:
    """As they were written, to the last digit."""
    with open(run_dir / "metrics.csv", newline="") as file:
        return [row["grad_norm"] for row in csv.DictReader(file) if row["train/loss"]]


def test_it_is_the_norm_of_all_gradients_after_the_last_step(
    lab: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected: list[float] = []
    seen = GradNorm.on_train_epoch_end

    def squares(self: GradNorm, trainer: Trainer, pl_module: LightningModule) -> None:
        gradients = [p.grad for p in pl_module.parameters() if p.grad is not None]
        expected.append(sum(float(g.double().square().sum()) for g in gradients) ** 0.5)
        seen(self, trainer, pl_module)

    monkeypatch.setattr(GradNorm, "on_train_epoch_end", squares)
    status, _, err = lab(*SMALL, f"hydra.run.dir={tmp_path}/run")
    assert status == 0, err
    assert [float(norm) for norm in norms(tmp_path / "run")] == pytest.approx(expected, rel=1e-5)
    assert len(expected) == 2


def test_clipping_bounds_it(lab: Lab, tmp_path: Path) -> None:
    clipped = "trainer.gradient_clip_val=0.1"
    assert lab(*SMALL, clipped, f"hydra.run.dir={tmp_path}/run")[0] == 0
    assert [float(norm) for norm in norms(tmp_path / "run")] == pytest.approx([0.1, 0.1], rel=1e-3)


@pytest.mark.parametrize(
    "stop",
    [
        lambda patch: stop_at(patch, 3),
        lambda patch: stop_at(patch, 7),
        lambda patch: stop_in(patch, "validation_step", 2),
        lambda patch: stop_in(patch, "on_train_epoch_end", 0),
    ],
    ids=["mid-epoch", "last step", "validation", "epoch end"],
)
def test_a_stopped_and_continued_run_logs_the_same(
    lab: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stop: Any
) -> None:
    assert lab(*SMALL, f"hydra.run.dir={tmp_path}/whole")[0] == 0
    stop(monkeypatch)
    assert lab(*SMALL, f"hydra.run.dir={tmp_path}/cut")[0] == 130
    status, _, err = lab(*SMALL, f"hydra.run.dir={tmp_path}/cut")
    assert status == 0, err
    assert norms(tmp_path / "whole") == norms(tmp_path / "cut")
    assert all(norms(tmp_path / "cut"))


def test_a_norm_that_is_not_finite_is_not_logged(monkeypatch: pytest.MonkeyPatch) -> None:
    module = Classifier(
        network=torch.nn.Linear(1, 1),
        loss=torch.nn.CrossEntropyLoss(),
        optimizer=torch.optim.SGD,
        schedule=lambda step, total: 1.0,
        config={},
    )
    for parameter in module.parameters():
        parameter.grad = torch.full_like(parameter, torch.inf)
    logged: dict[str, float] = {}
    monkeypatch.setattr(module, "log_with_epoch", logged.update)
    GradNorm().on_train_epoch_end(None, module)  # type: ignore[arg-type]
    assert logged == {}
