"""A run that was stopped and continued is the run that was not."""

from __future__ import annotations

import csv
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from cifar_lab.training.classifier import Classifier
from tests.conftest import TINY, record_of

Lab = Callable[..., tuple[int, str, str]]


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
        return [
            {k: v for k, v in row.items() if k != "images_per_s"} for row in csv.DictReader(file)
        ]


# 8 steps an epoch; 3 epochs. Stopped in mid-epoch, at its last step, at the first of the next.
@pytest.mark.parametrize("steps", [(3,), (7,), (8,), (2, 11, 12, 20)], ids=str)
def test_stopped_and_continued_equals_undisturbed_to_the_bit(
    lab: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, steps: tuple[int, ...]
) -> None:
    # dropout draws from the global RNG, augmentation from its own, momentum carries history
    small = [a for a in TINY if not a.startswith("model")]
    arguments = (*small, "model=cnn", "model.width=4", "trainer.max_epochs=3")
    assert lab(*arguments, f"hydra.run.dir={tmp_path}/whole")[0] == 0
    stop_at(monkeypatch, *steps)
    for _ in steps:
        status, _, err = lab(*arguments, f"hydra.run.dir={tmp_path}/cut")
        assert status == 130, err
        assert record_of(tmp_path / "cut")["status"] == "interrupted"
    status, _, err = lab(*arguments, f"hydra.run.dir={tmp_path}/cut")
    assert status == 0, err
    whole, cut = weights(tmp_path / "whole"), weights(tmp_path / "cut")
    assert all(torch.equal(whole[key], cut[key]) for key in whole)
    assert rows(tmp_path / "whole") == rows(tmp_path / "cut")
    a, b = record_of(tmp_path / "whole"), record_of(tmp_path / "cut")
    for metrics in (a["metrics"], b["metrics"]):
        metrics.pop("images_per_s", None)
    assert a["metrics"] == b["metrics"]
    assert (a["epochs"], a["steps"], a["tested"]) == (b["epochs"], b["steps"], b["tested"])


def test_tensorboard_continues_without_gap_or_overlap(
    lab: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = (*TINY, "trainer.max_epochs=3", f"hydra.run.dir={tmp_path}/run")
    stop_at(monkeypatch, 11)
    assert lab(*arguments)[0] == 130
    assert lab(*arguments)[0] == 0
    events = EventAccumulator(str(tmp_path / "run" / "tensorboard")).Reload()
    assert [event.step for event in events.Scalars("val/acc")] == [7, 15, 23]
