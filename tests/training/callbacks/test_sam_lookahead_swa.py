"""SAM, Lookahead and SWA: closed forms, torch's own, and exact where a run is stopped."""

from __future__ import annotations

import copy
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer, seed_everything
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.optim.swa_utils import update_bn

from cifar_lab.data.augment import Pipeline
from cifar_lab.data.datamodule import Synthetic
from cifar_lab.model.resnet import ResNet
from cifar_lab.training.callbacks.lookahead import Lookahead
from cifar_lab.training.callbacks.sam import Sam
from cifar_lab.training.callbacks.swa import Swa, estimate_statistics
from cifar_lab.training.classifier import Classifier
from cifar_lab.training.library_logging import route_library_logging
from cifar_lab.training.schedules import constant
from cifar_lab.training.steps.multistep import arrange, multistep_of
from tests.conftest import FEED, environment, merged
from tests.support.runs import SMALL, same, stop_at, stop_in, weights

Lab = Callable[..., tuple[int, str, str]]
Vector = NDArray[np.float64]

# --- on a quadratic: 0.5 w'Aw ---------------------------------------------------------------------

MATRIX = np.array([[2.0, 0.5], [0.5, 1.0]])
START = np.array([1.0, -2.0])
LR = 0.1
DESCENT: Any = partial(torch.optim.SGD, lr=LR)
STEPS = 10  # of an epoch; two of them


class Point(nn.Module):
    """Its logits are its weights, whatever the image."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.tensor(START))

    def forward(self, images: Tensor) -> Tensor:
        return self.w.expand(len(images), 2)


def quadratic(logits: Tensor, labels: Tensor) -> Tensor:
    w = logits[0]
    return 0.5 * w @ torch.tensor(MATRIX) @ w


class Steps(Callback):
    """The weights after each call."""

    def __init__(self) -> None:
        self.weights: list[Vector] = []

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        assert isinstance(pl_module, Classifier)
        self.weights.append(point(pl_module))

    def on_train_batch_start(self, *_: Any) -> None:
        """Every step is a call: this makes it so."""


def point(module: Classifier) -> Vector:
    found: Vector = module.network.get_parameter("w").detach().numpy().copy()
    return found


def data(**more: Any) -> Synthetic:
    settings: dict[str, Any] = {**FEED, "train_size": 200, "test_size": 20, "data_seed": 0}
    settings |= {"batch_size": 20, "val_size": 0, "augment": Pipeline(transforms={}), "seed": 3}
    made = Synthetic(**{**settings, **more})
    made.open()
    return made


def fitted(
    folder: Path,
    callbacks: list[Callback],
    *,
    network: nn.Module | None = None,
    size: int = 1,
    loss: Any = quadratic,
    feed: Synthetic | None = None,
    optimizer: Any = DESCENT,
    **settings: Any,
) -> Classifier:
    """A fit of two epochs, ten steps each, by plain gradient descent."""
    route_library_logging()
    seed_everything(11, verbose=False)
    classifier = Classifier(
        network=network or Point(),
        loss=loss,
        optimizer=optimizer,
        schedule=constant,
        config={},
    )
    feed = feed or data()
    trainer = Trainer(
        default_root_dir=folder,
        accelerator="cpu",
        max_epochs=2,
        logger=False,
        callbacks=callbacks,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        **{"precision": "64-true", **settings},
    )
    classifier.train_on(arrange(trainer, feed, size))
    trainer.fit(classifier, datamodule=feed)
    assert trainer.global_step == 2 * STEPS
    assert (multistep_of(trainer) is not None) == (size > 1)
    return classifier


@pytest.mark.parametrize("start_fraction", [0.0, 0.5])
def test_sam_steps_by_the_gradient_uphill(tmp_path: Path, start_fraction: float) -> None:
    path = Steps()
    fitted(tmp_path, [path, Sam(rho=0.3, start_fraction=start_fraction)])
    w = START
    for step, found in enumerate(path.weights):
        gradient = MATRIX @ w
        if step >= start_fraction * 2 * STEPS:
            gradient = MATRIX @ (w + 0.3 * gradient / np.linalg.norm(gradient))
        w = w - LR * gradient
        np.testing.assert_allclose(found, w, rtol=1e-9)


def test_sam_clips_what_it_steps_by(tmp_path: Path) -> None:
    path = Steps()
    fitted(tmp_path, [path, Sam(rho=0.3, start_fraction=0.0)], gradient_clip_val=0.5)
    gradient = MATRIX @ START
    gradient = MATRIX @ (START + 0.3 * gradient / np.linalg.norm(gradient))
    expected = START - LR * 0.5 * gradient / np.linalg.norm(gradient)
    np.testing.assert_allclose(path.weights[0], expected, rtol=1e-5)


@pytest.mark.parametrize("size", [1, 4])
def test_lookahead_is_its_closed_form(tmp_path: Path, size: int) -> None:
    classifier = fitted(tmp_path, [Lookahead(alpha=0.3, every_steps=4)], size=size)
    step = np.eye(2) - LR * MATRIX

    def window(k: int) -> Any:
        return 0.7 * np.eye(2) + 0.3 * np.linalg.matrix_power(step, k)

    epoch = window(2) @ window(4) @ window(4)  # its last window is shorter
    np.testing.assert_allclose(point(classifier), epoch @ epoch @ START, rtol=1e-12)


def test_lookahead_s_share_may_fall_over_the_fit(tmp_path: Path) -> None:
    classifier = fitted(tmp_path, [Lookahead(alpha=0.3, every_steps=5, power=3.0)])
    step = np.linalg.matrix_power(np.eye(2) - LR * MATRIX, 5)
    slow = START
    for made in (5, 10, 15, 20):
        share = 1 - 0.7 * (made / 20) ** 3
        slow = slow + share * (step @ slow - slow)
    np.testing.assert_allclose(point(classifier), slow, rtol=1e-12)


@pytest.mark.parametrize("size", [1, 3])
@pytest.mark.parametrize(
    ("start_fraction", "every_steps", "steps"),
    [(0.0, None, [10, 20]), (0.4, 3, [9, 12, 15, 18, 20]), (0.45, 10, [10, 20])],
)
def test_swa_is_the_mean_of_the_weights(
    tmp_path: Path, size: int, start_fraction: float, every_steps: int | None, steps: list[int]
) -> None:
    swa = Swa(start_fraction=start_fraction, every_steps=every_steps, bn_images=None)
    classifier = fitted(tmp_path, [swa], size=size)
    step = np.eye(2) - LR * MATRIX
    mean = np.mean([np.linalg.matrix_power(step, n) @ START for n in steps], axis=0)
    np.testing.assert_allclose(point(classifier), mean, rtol=1e-12)


# --- BatchNorm ------------------------------------------------------------------------------------


def test_statistics_are_those_of_torch(tmp_path: Path) -> None:
    swa = Swa(start_fraction=0.3, every_steps=4, bn_images=None)
    feed = data()
    classifier = fitted(
        tmp_path,
        [swa],
        network=ResNet(num_blocks=[1, 1], width=4),
        loss=nn.CrossEntropyLoss(),
        feed=feed,
        precision="32-true",
    )
    theirs = copy.deepcopy(classifier.network)
    update_bn(feed.sample_dataloader(None), theirs)
    ours = classifier.network.state_dict()
    for name, value in theirs.state_dict().items():
        assert torch.equal(ours[name], value), name


def test_frozen_layers_modes_and_momenta_stay() -> None:
    norms = [nn.BatchNorm2d(3), nn.BatchNorm2d(3, momentum=None), nn.BatchNorm2d(3)]
    network = nn.Sequential(norms[0], nn.Dropout(0.5), *norms[1:])
    norms[0].eval()
    images = torch.randn(8, 3, 4, 4)
    state = torch.get_rng_state()
    estimate_statistics(network, [(images, images)], frozen=norms[:1])
    assert torch.equal(torch.get_rng_state(), state)  # no dropout
    frozen, first, _ = (norm.running_mean for norm in norms)
    assert frozen is not None
    assert torch.equal(frozen, torch.zeros(3))
    torch.testing.assert_close(first, images.mean((0, 2, 3)))
    assert [module.training for module in network] == [False, True, True, True]
    assert [norm.momentum for norm in norms] == [0.1, None, 0.1]


def test_the_sample_is_of_what_trains_and_the_same_in_each_epoch() -> None:
    feed = data(val_size=60)  # 140 train
    loader = feed.sample_dataloader(50)
    first, again = ([images for images, _ in loader] for _ in range(2))
    assert [len(images) for images in first] == [20, 20]
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert sum(len(images) for images, _ in feed.sample_dataloader(None)) == 140
    assert sum(len(images) for images, _ in feed.sample_dataloader(7)) == 7


# --- whole runs -----------------------------------------------------------------------------------

BASE = tuple(a for a in SMALL if not a.startswith("callbacks"))
ALL = (
    *("callbacks=[sam,lookahead,swa]", "callbacks.sam.start_fraction=0.3"),
    *("callbacks.lookahead.every_steps=3", "callbacks.swa.start_fraction=0.3"),
    *("callbacks.swa.every_steps=2", "callbacks.swa.bn_images=100"),
)
RESNET = ("model=resnet10", "model.num_blocks=[1,1]")


@pytest.mark.parametrize("network", [(), RESNET], ids=["dropout", "BatchNorm"])
def test_with_no_step_uphill_sam_is_the_plain_run(
    lab: Lab, tmp_path: Path, network: tuple[str, ...]
) -> None:
    """The second pass has the first one's dropout; no statistic and no metric counts it."""
    plain, sam = tmp_path / "plain", tmp_path / "sam"
    assert lab(*BASE, *network, "callbacks=default", f"hydra.run.dir={plain}")[0] == 0
    none = ("callbacks=sam", "callbacks.sam.rho=1e-20")
    assert lab(*BASE, *network, *none, f"hydra.run.dir={sam}")[0] == 0
    same(plain, sam)


def test_a_late_sam_leaves_the_steps_before_alone(lab: Lab, tmp_path: Path) -> None:
    plain, late = tmp_path / "plain", tmp_path / "late"
    assert lab(*BASE, "callbacks=default", f"hydra.run.dir={plain}")[0] == 0
    arguments = ("callbacks=sam", "callbacks.sam.start_fraction=0.5")
    assert lab(*BASE, *arguments, f"hydra.run.dir={late}")[0] == 0
    for name, equal in (("previous", True), ("last", False)):  # after the first epoch; the second
        a, b = (torch.load(run / f"checkpoints/{name}.ckpt")["state_dict"] for run in (plain, late))
        assert all(torch.equal(a[key], b[key]) for key in a) == equal


@pytest.mark.parametrize("val_size", [200, 0])
def test_stopped_and_continued_equals_undisturbed_to_the_bit(
    lab: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, val_size: int
) -> None:
    arguments = (*BASE, *RESNET, *ALL, f"data.val_size={val_size}")
    assert lab(*arguments, f"hydra.run.dir={tmp_path}/whole")[0] == 0
    # one run, stopped again and again: in an epoch, in the next, in its validation, at its end
    stops: list[Callable[[pytest.MonkeyPatch], None]] = [
        lambda patch: stop_at(patch, 3),
        lambda patch: stop_at(patch, 13),
        lambda patch: stop_in(patch, "on_train_epoch_end", 0),
    ]
    if val_size:
        stops.insert(2, lambda patch: stop_in(patch, "validation_step", 2))
    for stop in stops:
        with monkeypatch.context() as patch:
            stop(patch)
            assert lab(*arguments, f"hydra.run.dir={tmp_path}/cut")[0] == 130
    status, _, err = lab(*arguments, f"hydra.run.dir={tmp_path}/cut")
    assert status == 0, err
    same(tmp_path / "whole", tmp_path / "cut")
    whole, cut = (
        torch.load(tmp_path / n / "checkpoints/last.ckpt")["current_model_state"]
        for n in ("whole", "cut")
    )
    assert all(torch.equal(whole[key], cut[key]) for key in whole)


def test_what_is_tested_is_what_the_last_checkpoint_holds(
    lab: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tested: dict[str, Tensor] = {}
    test_step = Classifier.test_step

    def noted(self: Classifier, batch: Any, batch_idx: int) -> Any:
        tested.update({name: value.clone() for name, value in self.state_dict().items()})
        return test_step(self, batch, batch_idx)

    monkeypatch.setattr(Classifier, "test_step", noted)
    run = tmp_path / "run"
    assert lab(*BASE, *RESNET, *ALL, "data.val_size=0", f"hydra.run.dir={run}")[0] == 0
    held = weights(run)
    assert held.keys() == tested.keys()
    assert all(torch.equal(held[key], tested[key]) for key in held)
    statistics = [key for key in held if key.endswith("running_var")]
    assert statistics
    assert any(not torch.equal(held[key], torch.ones_like(held[key])) for key in statistics)


def test_the_order_in_which_they_are_named_changes_nothing(lab: Lab, tmp_path: Path) -> None:
    ema = ("callbacks.ema.decay=0.9", "callbacks.lookahead.every_steps=3")
    for name in ("ema,lookahead", "lookahead,ema"):
        run = f"hydra.run.dir={tmp_path}/{name.partition(',')[0]}"
        assert lab(*BASE, f"callbacks=[{name}]", *ema, run)[0] == 0
    same(tmp_path / "ema", tmp_path / "lookahead")


class Dump(Callback):
    """Each process writes the weights that it tests."""

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        torch.save(pl_module.state_dict(), f"of{trainer.world_size}rank{trainer.global_rank}.pt")


@pytest.mark.slow  # two processes that load torch
def test_two_processes_have_the_averages_of_one(lab: Lab, tmp_path: Path) -> None:
    dump = "+callbacks.dump._target_=tests.training.callbacks.test_sam_lookahead_swa.Dump"
    arguments = (*BASE, *ALL, dump, "model.dropout=0.0", "data.val_size=0")
    assert lab(*arguments, "hydra.run.dir=one")[0] == 0
    two = ("trainer=ddp", "trainer.accelerator=cpu", "hydra.run.dir=two")
    command = (sys.executable, "-m", "cifar_lab", *merged(*arguments, *two))
    done = subprocess.run(command, env=environment(), capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    one, first, second = (torch.load(f"of{n}.pt") for n in ("1rank0", "2rank0", "2rank1"))
    for name, value in one.items():
        assert torch.equal(first[name], second[name]), name
        torch.testing.assert_close(first[name], value, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (("callbacks=sam", "callbacks.sam.rho=0.0"), "callbacks.sam.rho=0.0: must be above 0"),
        (
            ("callbacks=sam", "callbacks.sam.start_fraction=1.0"),
            "callbacks.sam.start_fraction=1.0: must lie in [0, 1)",
        ),
        (
            ("callbacks=sam", "trainer.accumulate_grad_batches=2"),
            "callbacks.sam: goes twice over the batch of a step, and trainer.accumulate_grad_",
        ),
        (
            ("callbacks=lookahead", "callbacks.lookahead.alpha=1.0"),
            "callbacks.lookahead.alpha=1.0: must lie in (0, 1)",
        ),
        (
            ("callbacks=lookahead", "callbacks.lookahead.every_steps=0"),
            "callbacks.lookahead.every_steps=0: must be at least 1",
        ),
        (
            ("callbacks=swa",),
            "callbacks.swa.start_fraction=0.75: the mean would be of the last weights alone",
        ),
        (
            ("callbacks=[swa,ema]", "callbacks.swa.start_fraction=0.0"),
            "callbacks.ema: callbacks.swa keeps the averages that are tested; leave one of them",
        ),
        (
            (
                *("+monitors.sam._target_=cifar_lab.training.callbacks.sam.Sam",),
                *("+monitors.sam.rho=0.1", "+monitors.sam.start_fraction=0.0"),
            ),
            "monitors.sam: Sam has a part in the result",
        ),
    ],
    ids=lambda value: value[-1] if isinstance(value, tuple) else "",
)
def test_what_cannot_act_is_refused(lab: Lab, arguments: tuple[str, ...], line: str) -> None:
    status, _, err = lab(*BASE, *arguments)
    assert (status, err.count("\n")) == (2, 1), err
    assert err.startswith(f"cifar_lab: {line}"), err
