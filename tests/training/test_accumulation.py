"""Accumulated batches: an optimizer step's gradient is the mean over its images."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from lightning.pytorch import Trainer
from torch import nn

from cifar_lab.config.compose import compose, run_config
from cifar_lab.data.feed.epoch import EpochLoader, Share
from cifar_lab.run.build import build
from cifar_lab.training import layout
from tests.conftest import record_of
from tests.support.runs import SMALL, same, stop_at, weights

Lab = Callable[..., tuple[int, str, str]]

# 400 images in 7 batches: six of 60, and one of 40
PLAIN = (
    *(a for a in SMALL if not a.startswith("data.batch_size")),
    *("data.batch_size=60", "model.dropout=0", "augment=none"),
    *("scheduler=constant", "optimizer.lr=0.1", "data.val_size=200"),
)


def plain_loop(arguments: tuple[str, ...], folder: Path, accumulated: int, limit: int) -> Any:
    """Two epochs in which each step takes the mean over all of its images at once."""
    cfg = compose(arguments)
    parts = build(cfg, run_config(cfg), folder)
    network, loader = parts.classifier.network.double(), parts.data.train_dataloader()
    optimizer = torch.optim.SGD(
        network.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4, nesterov=True
    )
    losses: list[list[float]] = []
    for epoch in range(2):
        loader.set_epoch(epoch)
        batches = list(loader)[:limit]
        losses.append([])
        for first in range(0, len(batches), accumulated):
            images, labels = zip(*batches[first : first + accumulated], strict=True)
            each = nn.functional.cross_entropy(
                network(torch.cat(images).double()), torch.cat(labels), reduction="none"
            )
            losses[-1] += each.tolist()
            optimizer.zero_grad()
            each.mean().backward()
            optimizer.step()
    return network.state_dict(), losses


@pytest.mark.parametrize(
    ("accumulated", "limit", "steps", "images"),
    [(2, 7, 8, 120), (3, 7, 6, 180), (4, 7, 4, 240), (9, 7, 2, 400), (3, 5, 4, 180)],
)
def test_it_equals_a_plain_loop_over_all_images_of_each_step(
    lab: Lab, tmp_path: Path, accumulated: int, limit: int, steps: int, images: int
) -> None:
    sgd = ("optimizer=sgd", "optimizer.momentum=0.9", "optimizer.nesterov=true")
    arguments = (
        *PLAIN,
        *(*sgd, "optimizer.weight_decay=5e-4", "trainer.precision=64-true"),
        f"trainer.accumulate_grad_batches={accumulated}",
        f"trainer.limit_train_batches={limit}",
    )
    run = tmp_path / "run"
    status, _, err = lab(*arguments, f"hydra.run.dir={run}")
    assert (status, err) == (0, "")
    expected, losses = plain_loop(arguments, run, accumulated, limit)
    ours = weights(run)
    for name, value in expected.items():
        torch.testing.assert_close(ours[f"network.{name}"], value, rtol=1e-12, atol=1e-13)
    record = record_of(run)
    assert (record["steps"], record["steps_planned"]) == (steps, steps)
    assert record["images_per_step"] == images
    # each image's loss as it was when it was seen, however its batch is weighted
    assert record["metrics"]["train/loss"] == pytest.approx(
        sum(losses[-1]) / len(losses[-1]), rel=1e-12
    )


@pytest.mark.parametrize("world_size", [1, 2])
@pytest.mark.parametrize(("count", "drop_last"), [(400, False), (401, False), (400, True)])
@pytest.mark.parametrize("accumulated", [1, 2, 3, 7, 8])
@pytest.mark.parametrize("limit", [3, 7])
def test_the_weights_of_a_step_are_its_shares_of_the_images(
    monkeypatch: pytest.MonkeyPatch,
    world_size: int,
    count: int,
    drop_last: bool,
    accumulated: int,
    limit: int,
) -> None:
    share = Share(count=count, batch_size=60, drop_last=drop_last, rank=0, world_size=world_size)
    sizes = [len(part) for part in share.of(torch.arange(count)).split(share.local_batch_size)]
    assert [share.images_of(index) for index in range(share.num_batches)] == sizes
    batches = min(limit, len(sizes))
    loader = cast(EpochLoader, SimpleNamespace(share=share))
    monkeypatch.setattr(layout, "train_loader", lambda trainer: loader)

    def weight(index: int) -> float:
        fit_loop = SimpleNamespace(batch_idx=index)
        trainer = SimpleNamespace(
            accumulate_grad_batches=accumulated, num_training_batches=batches, fit_loop=fit_loop
        )
        return layout.window_weight(cast(Trainer, trainer))

    for first in range(0, batches, accumulated):
        window = range(first, min(first + accumulated, batches))
        images = sum(sizes[index] for index in window)
        for index in window:
            # Lightning divides by the number accumulated
            assert weight(index) / accumulated == pytest.approx(sizes[index] / images, rel=1e-15)
        if len(window) == accumulated and len({sizes[index] for index in window}) == 1:
            assert {weight(index) for index in window} == {1.0}


def test_of_whole_steps_of_equal_batches_nothing_changes_to_the_bit(
    lab: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = (*PLAIN, "trainer.accumulate_grad_batches=3", "trainer.limit_train_batches=6")
    assert lab(*arguments, f"hydra.run.dir={tmp_path}/ours")[0] == 0
    monkeypatch.setattr("cifar_lab.training.classifier.window_weight", lambda trainer: 1)
    assert lab(*arguments, f"hydra.run.dir={tmp_path}/lightning")[0] == 0
    same(tmp_path / "ours", tmp_path / "lightning")


# steps of 3, 3 and 1 batches
@pytest.mark.parametrize("steps", [(0,), (1,), (2,), (3,), (0, 1, 2, 4)], ids=str)
def test_a_run_stopped_within_a_step_goes_on_to_the_bit(
    lab: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, steps: tuple[int, ...]
) -> None:
    arguments = (*PLAIN, "model.dropout=0.3", "trainer.accumulate_grad_batches=3")
    assert lab(*arguments, f"hydra.run.dir={tmp_path}/whole")[0] == 0
    stop_at(monkeypatch, *steps)
    for _ in steps:
        assert lab(*arguments, f"hydra.run.dir={tmp_path}/cut")[0] == 130
    status, _, err = lab(*arguments, f"hydra.run.dir={tmp_path}/cut")
    assert status == 0, err
    same(tmp_path / "whole", tmp_path / "cut")


def test_a_checkpoint_within_the_epoch_is_written_between_steps(
    lab: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from cifar_lab.training.callbacks.checkpoints import Checkpoints

    arguments = (*PLAIN, "trainer.accumulate_grad_batches=3", "model.dropout=0.3")
    assert lab(*arguments, f"hydra.run.dir={tmp_path}/whole")[0] == 0
    save_last, calls = Checkpoints.save_last, iter(range(100))

    def crashing(self: Checkpoints, *arguments: Any) -> None:
        save_last(self, *arguments)
        if next(calls) == 1:
            raise ZeroDivisionError("on purpose")

    monkeypatch.setattr(Checkpoints, "save_last", crashing)
    often = "callbacks.checkpoints.every_minutes=1e-9"
    assert lab(*arguments, often, f"hydra.run.dir={tmp_path}/cut")[0] == 1
    last = torch.load(tmp_path / "cut" / "checkpoints" / "last.ckpt", weights_only=True)
    assert last["global_step"] == 2
    monkeypatch.undo()
    assert lab(*arguments, often, f"hydra.run.dir={tmp_path}/cut")[0] == 0
    same(tmp_path / "whole", tmp_path / "cut")
