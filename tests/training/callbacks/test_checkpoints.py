"""Which weights are kept, tested and recorded; and what a resumed run draws."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor
from torch.optim import SGD, Optimizer
from torch.optim.lr_scheduler import LambdaLR

from cifar_lab.training.callbacks.checkpoints import Checkpoints
from cifar_lab.training.callbacks.rng import rng_state, set_rng_state
from cifar_lab.training.classifier import Classifier
from tests.conftest import TINY, record_of
from tests.support.runs import SMALL, same, stop_at, stop_in

Lab = Callable[..., tuple[int, str, str]]


class Best(Callback):
    """Keeps a number of NumPy's."""

    seen: Any = 0.0

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.seen = np.mean([self.seen, trainer.global_step])

    def state_dict(self) -> dict[str, Any]:
        return {"seen": self.seen, "all": [np.int64(3), {np.int64(4): np.bool_(True)}]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.seen = state_dict["seen"]


class Adding(Callback):
    """Adds an array of NumPy's to a checkpoint."""

    def on_save_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        checkpoint["mine"] = {"fine": 1, "array": np.ones(3)}


def falling(step: int, total_steps: int) -> Any:
    return np.cos(np.pi / 2 * step / total_steps)


def exponential(optimizer: Optimizer) -> LambdaLR:
    return LambdaLR(optimizer, lambda epoch: np.exp(-0.1 * epoch))


def doubled(params: Any, lr: float) -> Optimizer:
    return SGD(params, lr=2 * np.float64(lr))


class Scripted:
    """Validations that end with the values given; keeps the weights of each, and of the test."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, accuracies: list[float]) -> None:
        self.validated: list[dict[str, Tensor]] = []
        self.tested: list[dict[str, Tensor]] = []
        self._left: Iterator[float] = iter(accuracies)
        monkeypatch.setattr(Classifier, "on_validation_epoch_end", self._validation(self))
        begin = Classifier.on_test_epoch_start

        def test(classifier: Classifier) -> None:
            self.tested.append(weights_of(classifier))
            begin(classifier)

        monkeypatch.setattr(Classifier, "on_test_epoch_start", test)

    @staticmethod
    def _validation(script: Scripted) -> Callable[[Classifier], None]:
        def end(classifier: Classifier) -> None:
            accuracy = next(script._left)
            script.validated.append(weights_of(classifier))
            # losses that would choose otherwise
            values = {"val/acc": accuracy, "val/loss": 1 + accuracy}
            for name, value in values.items():  # Lightning's, which takes the run's own names
                LightningModule.log(classifier, name, torch.tensor(value, dtype=torch.float64))

        return end


def weights_of(classifier: Classifier) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in classifier.state_dict().items()}


def equal(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


# the epoch with the highest value, and of equal ones the first; 8 steps an epoch
@pytest.mark.parametrize(
    ("accuracies", "best", "stops"),
    [
        ([0.3, 0.6, 0.4], 2, ()),
        ([0.3, 0.4, 0.6], 3, ()),
        ([0.3, 0.6, 0.6], 2, ()),
        ([0.0, 0.0, 0.0], 1, ()),
        ([0.3, 0.6, 0.6], 2, (20,)),
        ([0.6, 0.3, 0.4], 1, (10, 18)),
    ],
    ids=str,
)
def test_the_best_epochs_weights_are_what_is_tested_and_recorded(
    lab: Lab,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    accuracies: list[float],
    best: int,
    stops: tuple[int, ...],
) -> None:
    script = Scripted(monkeypatch, accuracies)
    stop_at(monkeypatch, *stops)
    arguments = (*TINY, "threads=1", "trainer.max_epochs=3", f"hydra.run.dir={tmp_path}/run")
    for _ in stops:
        assert lab(*arguments)[0] == 130
    status, _, err = lab(*arguments)
    assert status == 0, err
    assert len(script.validated) == 3
    [tested] = script.tested
    assert [equal(tested, epoch) for epoch in script.validated] == [n == best for n in (1, 2, 3)]
    record = record_of(tmp_path / "run")
    assert (record["tested"], record["best_epoch"]) == ("best", best)
    assert record["metrics"]["val/acc"] == accuracies[best - 1]
    kept = torch.load(tmp_path / "run" / "checkpoints" / "best.ckpt", weights_only=True)
    assert kept["global_step"] == 8 * best
    assert equal(kept["state_dict"], tested)


@pytest.fixture
def saved_steps(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The optimizer steps behind each checkpoint; by the checkpoints' clock a step takes 10 s."""
    now = 1000.0
    saved: list[int] = []
    step, save = Classifier.training_step, Checkpoints.save_last

    def stepping(self: Classifier, batch: Any, batch_idx: int) -> Any:
        nonlocal now
        now += 10
        return step(self, batch, batch_idx)

    def saving(self: Checkpoints, trainer: Trainer, pl_module: LightningModule) -> None:
        saved.append(trainer.global_step)
        save(self, trainer, pl_module)

    monkeypatch.setattr(Classifier, "training_step", stepping)
    monkeypatch.setattr(Checkpoints, "save_last", saving)
    monkeypatch.setattr(
        "cifar_lab.training.callbacks.checkpoints.time", SimpleNamespace(monotonic=lambda: now)
    )
    return saved


# ten seconds a step by the clock, 8 steps an epoch; the last one is saved with the epoch
@pytest.mark.parametrize(
    ("every_minutes", "within"),
    [("0.5", [3, 6, 11, 14]), ("0.1", [*range(1, 8), *range(9, 16)]), ("null", []), ("2", [])],
)
def test_within_an_epoch_a_checkpoint_is_saved_whenever_that_many_minutes_have_passed(
    lab: Lab,
    tmp_path: Path,
    saved_steps: list[int],
    every_minutes: str,
    within: list[int],
) -> None:
    status, _, err = lab(
        *(*TINY, "threads=1", "trainer.max_epochs=2", f"hydra.run.dir={tmp_path}/run"),
        f"callbacks.checkpoints.every_minutes={every_minutes}",
    )
    assert status == 0, err
    assert saved_steps == sorted([*within, 8, 16])


# 8 steps an epoch, ten seconds each; the second epoch's value is the best
@pytest.mark.parametrize(
    ("min_seconds", "epochs"),
    [("null", [1, 2, 3, 4, 5]), ("80", [1, 2, 3, 4, 5]), ("81", [2, 4, 5]), ("1e6", [1, 2, 5])],
)
def test_an_epoch_is_saved_when_it_is_due_the_best_or_the_last(
    lab: Lab,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    saved_steps: list[int],
    min_seconds: str,
    epochs: list[int],
) -> None:
    values = [0.1, 0.6, 0.3, 0.3, 0.3] if min_seconds == "1e6" else [0.6, 0.7, 0.3, 0.3, 0.3]
    if min_seconds == "81":
        values = [float("nan"), 0.7, 0.3, 0.3, 0.3]
    Scripted(monkeypatch, values)
    status, _, err = lab(
        *(*TINY, "threads=1", "trainer.max_epochs=5", f"hydra.run.dir={tmp_path}/run"),
        f"callbacks.checkpoints.min_seconds={min_seconds}",
        "callbacks.checkpoints.every_minutes=null",
    )
    assert status == 0, err
    assert [step // 8 for step in saved_steps] == epochs
    assert record_of(tmp_path / "run")["best_epoch"] == 2


@pytest.mark.parametrize(
    "stop", [11, 16, 17], ids=["in an epoch", "in its first step", "in its second"]
)
def test_a_run_whose_epochs_are_not_saved_goes_on_where_it_was_stopped(
    lab: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stop: int
) -> None:
    arguments = (
        *(*SMALL, "trainer.max_epochs=3", "callbacks.checkpoints.monitor=null"),
        "callbacks.checkpoints.min_seconds=1000",
    )
    assert lab(*arguments, f"hydra.run.dir={tmp_path}/whole")[0] == 0
    stop_at(monkeypatch, stop)
    assert lab(*arguments, f"hydra.run.dir={tmp_path}/cut")[0] == 130
    monkeypatch.undo()
    assert record_of(tmp_path / "cut")["steps"] == 8 * (stop // 8)
    assert torch.load(tmp_path / "cut" / "checkpoints" / "last.ckpt")["global_step"] == stop + 1
    assert lab(*arguments, f"hydra.run.dir={tmp_path}/cut")[0] == 0
    same(tmp_path / "whole", tmp_path / "cut")


@pytest.mark.parametrize("where", ["on_train_epoch_end", "on_train_epoch_start"])
def test_a_stop_between_epochs_that_are_not_saved_loses_nothing(
    lab: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    arguments = (
        *(*SMALL, "trainer.max_epochs=3", "callbacks.checkpoints.monitor=null"),
        "callbacks.checkpoints.min_seconds=1000",
    )
    assert lab(*arguments, f"hydra.run.dir={tmp_path}/whole")[0] == 0
    stop_in(monkeypatch, where, 1)
    assert lab(*arguments, f"hydra.run.dir={tmp_path}/cut")[0] == 130
    monkeypatch.undo()
    saved = torch.load(tmp_path / "cut" / "checkpoints" / "last.ckpt")["global_step"]
    assert saved == (16 if where == "on_train_epoch_end" else 9)
    assert lab(*arguments, f"hydra.run.dir={tmp_path}/cut")[0] == 0
    same(tmp_path / "whole", tmp_path / "cut")


def drawn() -> list[float]:
    """The next number of every global generator."""
    return [
        random.random(),
        random.gauss(0, 1),
        np.random.random(),
        np.random.normal(),
        float(torch.rand(1)),
    ]


def test_generators_put_back_draw_what_they_would_have_drawn() -> None:
    drawn()  # half of a pair of normal numbers is kept for the next call
    state = rng_state()
    expected = [drawn(), drawn()]
    assert [drawn(), drawn()] != expected
    set_rng_state(state)
    assert [drawn(), drawn()] == expected


@pytest.mark.parametrize("had", [True, False])
@pytest.mark.parametrize("has", [True, False])
def test_a_gpus_generator_is_put_back_where_there_was_one_and_is_one(
    monkeypatch: pytest.MonkeyPatch, had: bool, has: bool
) -> None:
    then = torch.arange(16, dtype=torch.uint8)
    now: list[torch.Tensor] = []
    # there is one all the same: what counts is whether this process trains on it
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: had)
    monkeypatch.setattr(torch.cuda, "get_rng_state", lambda: then)
    monkeypatch.setattr(torch.cuda, "set_rng_state", now.append)
    state = rng_state()
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: has)
    set_rng_state(state)
    assert len(now) == int(had and has)
    assert all(torch.equal(value, then) for value in now)


@pytest.mark.parametrize("steps", [(3,), (8, 13)], ids=str)
def test_a_resumed_run_draws_what_an_undisturbed_one_does_from_every_generator(
    lab: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, steps: tuple[int, ...]
) -> None:
    sequences: dict[str, list[list[float]]] = {"whole": [], "cut": []}
    step = Classifier.training_step

    def drawing(self: Classifier, batch: Any, batch_idx: int) -> Any:
        sequences[Path(self.trainer.default_root_dir).name].append(drawn())
        return step(self, batch, batch_idx)

    monkeypatch.setattr(Classifier, "training_step", drawing)
    assert lab(*SMALL, f"hydra.run.dir={tmp_path}/whole")[0] == 0
    stop_at(monkeypatch, *steps)
    for _ in steps:
        assert lab(*SMALL, f"hydra.run.dir={tmp_path}/cut")[0] == 130
    assert lab(*SMALL, f"hydra.run.dir={tmp_path}/cut")[0] == 0
    assert len(sequences["whole"]) == 16
    assert sequences["cut"] == sequences["whole"]


@pytest.mark.parametrize("schedule", ["falling", "exponential"])
def test_a_run_goes_on_with_numbers_of_numpy(
    lab: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, schedule: str
) -> None:
    left = ("fused", "momentum", "nesterov", "weight_decay")
    arguments = (
        *(*SMALL, "scheduler=none", f"scheduler._target_={__name__}.{schedule}"),
        *(f"optimizer._target_={__name__}.doubled", *(f"~optimizer.{key}" for key in left)),
        *(f"+callbacks.best._target_={__name__}.Best", "logger=csv"),
    )
    assert lab(*arguments, f"hydra.run.dir={tmp_path}/whole")[0] == 0
    stop_at(monkeypatch, 9)
    assert lab(*arguments, f"hydra.run.dir={tmp_path}/cut")[0] == 130
    assert lab(*arguments, f"hydra.run.dir={tmp_path}/cut")[0] == 0
    same(tmp_path / "whole", tmp_path / "cut")


def test_what_a_checkpoint_would_not_give_back_ends_at_the_first(lab: Lab, tmp_path: Path) -> None:
    own = f"+callbacks.adding._target_={__name__}.Adding"
    status, _, err = lab(*SMALL, own, f"hydra.run.dir={tmp_path}/run")
    assert status == 1
    assert "callbacks.checkpoints: mine: array: a checkpoint can't keep its state (" in err
    assert record_of(tmp_path / "run")["epochs"] == 0
    assert not list((tmp_path / "run" / "checkpoints").glob("*.ckpt"))
