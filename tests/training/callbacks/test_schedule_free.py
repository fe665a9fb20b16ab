"""The schedule-free optimizer: its recursion, what is tested, exact where a run is stopped."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from cifar_lab.training.callbacks.schedule_free import ScheduleFree
from cifar_lab.training.schedule_free import schedule_free_sgd
from tests.support.runs import same, stop_at, stop_in
from tests.training.callbacks.test_sam_lookahead_swa import (
    BASE,
    MATRIX,
    RESNET,
    START,
    STEPS,
    fitted,
    point,
)

Lab = Callable[..., tuple[int, str, str]]
THERE = importlib.util.find_spec("schedulefree") is not None
needs_the_package = pytest.mark.skipif(not THERE, reason="needs schedulefree")
FREE = ("optimizer=schedule_free", "callbacks=schedule_free", "scheduler=none")


@needs_the_package
@pytest.mark.parametrize("size", [1, 4])
def test_it_is_the_recursion_of_its_paper(tmp_path: Path, size: int) -> None:
    rate, beta = 0.3, 0.8
    optimizer = partial(schedule_free_sgd, lr=rate, momentum=beta, weight_decay=0, warmup_steps=0)
    classifier = fitted(tmp_path, [ScheduleFree(bn_images=None)], size=size, optimizer=optimizer)
    x = z = START
    for step in range(2 * STEPS):
        y = (1 - beta) * z + beta * x
        z = z - rate * MATRIX @ y
        x = x + (z - x) / (step + 1)
    np.testing.assert_allclose(point(classifier), x, rtol=1e-9)


@needs_the_package
@pytest.mark.parametrize("val_size", [200, 0])
@pytest.mark.parametrize("adam", [False, True], ids=["sgd", "adamw"])
def test_stopped_and_continued_equals_undisturbed_to_the_bit(
    lab: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, val_size: int, adam: bool
) -> None:
    arguments = (*BASE, *RESNET, *FREE, f"data.val_size={val_size}")
    if adam:
        target = "optimizer._target_=cifar_lab.training.schedule_free.schedule_free_adamw"
        arguments += (target, "~optimizer.momentum", "+optimizer.betas=[0.9,0.999]")
    assert lab(*arguments, f"hydra.run.dir={tmp_path}/whole")[0] == 0
    stops: list[Callable[[pytest.MonkeyPatch], None]] = [
        lambda patch: stop_at(patch, 3),
        lambda patch: stop_at(patch, 13),
    ]
    if val_size:
        stops.append(lambda patch: stop_in(patch, "validation_step", 2))
    for stop in stops:
        with monkeypatch.context() as patch:
            stop(patch)
            assert lab(*arguments, f"hydra.run.dir={tmp_path}/cut")[0] == 130
    status, _, err = lab(*arguments, f"hydra.run.dir={tmp_path}/cut")
    assert status == 0, err
    same(tmp_path / "whole", tmp_path / "cut")
    last = torch.load(tmp_path / "cut/checkpoints/last.ckpt")
    name = "network.stem.0.weight"
    assert not torch.equal(last["state_dict"][name], last["current_model_state"][name])


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (FREE[:1], "optimizer._target_=cifar_lab.training.schedule_free.schedule_free_sgd: keeps "),
        (FREE[1:], "callbacks.schedule_free: is of optimizer=schedule_free, and this is "),
        (FREE[:2], "scheduler._target_=cifar_lab.training.schedules.cosine: a schedule-free "),
        (
            (FREE[0], "callbacks=[schedule_free,lookahead]", FREE[2]),
            "callbacks.lookahead: moves the weights, and a schedule-free optimizer makes its ",
        ),
        (
            (FREE[0], "callbacks=[schedule_free,ema]", FREE[2]),
            "callbacks.ema: callbacks.schedule_free keeps the averages that are tested",
        ),
    ],
)
def test_what_belongs_to_it_is_asked_for(lab: Lab, arguments: tuple[str, ...], line: str) -> None:
    status, _, err = lab(*BASE, *arguments)
    assert (status, err.count("\n")) == (2, 1), err
    assert err.startswith(f"cifar_lab: {line}"), err


@pytest.mark.skipif(THERE, reason="schedulefree is there")
def test_a_package_that_is_not_there_is_named(lab: Lab) -> None:
    status, _, err = lab(*BASE, *FREE)
    expected = "optimizer._target_: needs schedulefree; pip install 'cifar-lab[schedule-free]'\n"
    assert (status, err) == (2, f"cifar_lab: {expected}")
