"""Fused SGD never steps with a momentum that nobody wrote, and is the unfused one all the same."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Trainer, seed_everything
from lightning.pytorch.plugins import MixedPrecision
from torch import Tensor, nn
from torch.optim import SGD, Adagrad, Adam, AdamW, Optimizer

from cifar_lab.data.augment import Pipeline
from cifar_lab.data.datamodule import Synthetic
from cifar_lab.training.classifier import Classifier
from cifar_lab.training.momentum import keep_momentum_defined
from cifar_lab.training.schedules import constant
from cifar_lab.training.steps.multistep import arrange
from tests.conftest import FEED

Make = Callable[..., Optimizer]
OPTIMIZERS: dict[str, tuple[type[Any], dict[str, Any]]] = {
    "momentum": (SGD, {"lr": 0.1, "momentum": 0.9}),
    "nesterov": (SGD, {"lr": 0.1, "momentum": 0.9, "nesterov": True, "weight_decay": 0.01}),
    "maximize": (SGD, {"lr": 0.1, "momentum": 0.5, "maximize": True}),
    "no momentum": (SGD, {"lr": 0.1}),
    "adamw": (AdamW, {"lr": 0.1}),
    "adam, amsgrad": (Adam, {"lr": 0.1, "amsgrad": True}),
    "adagrad": (Adagrad, {"lr": 0.1}),
}


@pytest.fixture(autouse=True)
def _poisoned() -> Iterator[None]:
    """What is never written reads as NaN, and not as what happened to lie there."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


def parameters(count: int = 3) -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(0)
    return [nn.Parameter(torch.randn(4, 5, generator=generator)) for _ in range(count)]


def loss_of(values: list[nn.Parameter], step: int) -> Tensor:
    target = torch.randn(4, 5, generator=torch.Generator().manual_seed(step + 1))
    return torch.stack([(value - target).square().sum() for value in values]).sum()


def trained(make: Make, *, overflows: set[int], scaled: bool = True, steps: int = 6) -> Any:
    """Parameters and optimizer after some steps, of which the scaler finds some overflowing."""
    values = parameters()
    optimizer = make(values)
    keep_momentum_defined(optimizer)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**4, enabled=scaled)
    for step in range(steps):
        optimizer.zero_grad()
        factor = torch.inf if step in overflows else 1.0
        scaler.scale(factor * loss_of(values, step)).backward()
        scaler.step(optimizer)
        scaler.update()
    return values, optimizer


@pytest.mark.parametrize("overflows", [{0}, {0, 1}, {2}, {0, 3}, set()], ids=str)
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_fused_optimizer_under_a_scaler_is_the_unfused_one(
    name: str, overflows: set[int]
) -> None:
    kind, settings = OPTIMIZERS[name]
    fused, ours = trained(lambda p: kind(p, fused=True, **settings), overflows=overflows)
    plain, theirs = trained(lambda p: kind(p, foreach=False, **settings), overflows=overflows)
    for a, b in zip(fused, plain, strict=True):
        torch.testing.assert_close(a, b)
        assert ours.state[a].keys() == theirs.state[b].keys()
        for key, value in theirs.state[b].items():
            torch.testing.assert_close(ours.state[a][key], value)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_without_a_scaler_nothing_is_added_to_the_bit(name: str) -> None:
    kind, settings = OPTIMIZERS[name]
    runs = []
    for kept in (True, False):
        values = parameters()
        optimizer = kind(values, fused=True, **settings)
        if kept:
            keep_momentum_defined(optimizer)
        for step in range(4):
            optimizer.zero_grad()
            loss_of(values, step).backward()
            optimizer.step()
        runs.append([values, *(list(optimizer.state[v].values()) for v in values)])
    for ours, stock in zip(*runs, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(ours, stock, strict=True))


def test_momentum_that_a_checkpoint_brought_is_kept() -> None:
    kind, settings = OPTIMIZERS["nesterov"]
    values, optimizer = trained(lambda p: kind(p, fused=True, **settings), overflows={0})
    state = copy.deepcopy(optimizer.state_dict())
    resumed = kind(values, fused=True, **settings)
    keep_momentum_defined(resumed)
    resumed.load_state_dict(state)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**4)
    scaler.scale(torch.inf * loss_of(values, 9)).backward()
    scaler.step(resumed)  # overflows: nothing moves
    for key, entry in resumed.state_dict()["state"].items():
        assert torch.equal(entry["momentum_buffer"], state["state"][key]["momentum_buffer"])
        assert bool(entry["momentum_buffer"].any())


@pytest.mark.parametrize("by_closure", [True, False])
@pytest.mark.parametrize("how", ["frozen in the group", "a group of its own", "joins the group"])
def test_parameters_that_join_later_start_from_rest(how: str, by_closure: bool) -> None:
    def run(*, fused: bool) -> list[nn.Parameter]:
        values = parameters()
        late = values[2].requires_grad_(False)
        start = values if how == "frozen in the group" else values[:2]
        optimizer = SGD(start, lr=0.1, momentum=0.9, nesterov=True, fused=fused)
        keep_momentum_defined(optimizer)
        for step in range(4):
            if step == 2:
                late.requires_grad_(True)
                if how == "a group of its own":
                    optimizer.add_param_group({"params": [late]})
                if how == "joins the group":
                    optimizer.param_groups[0]["params"].append(late)

            def backward(step: int = step) -> Tensor:  # as Lightning hands it over
                optimizer.zero_grad()
                loss = loss_of(values, step)
                loss.backward()
                return loss

            if by_closure:
                optimizer.step(backward)
            else:
                backward()
                optimizer.step()
        return values

    for a, b in zip(run(fused=True), run(fused=False), strict=True):
        torch.testing.assert_close(a, b)


# --- a whole run under Lightning's scaler ---------------------------------------------------------


@pytest.mark.parametrize("size", [1, 4])
def test_a_run_whose_first_steps_overflow_is_that_of_the_unfused_optimizer(
    tmp_path: Path, size: int
) -> None:
    runs = {}
    for fused in (True, False):
        seed_everything(5, verbose=False)
        data = Synthetic(
            **{**FEED, "train_size": 240, "test_size": 40, "data_seed": 0, "batch_size": 20},  # type: ignore[arg-type]
            val_size=40,
            augment=Pipeline(transforms={}),
            seed=3,
        )
        classifier = Classifier(
            network=nn.Sequential(nn.Flatten(), nn.Linear(3072, 16), nn.ReLU(), nn.Linear(16, 10)),
            loss=nn.CrossEntropyLoss(),
            optimizer=partial(SGD, lr=0.05, momentum=0.9, nesterov=True, fused=fused),
            schedule=constant,
            config={},
        )
        # so large that float16 overflows at first: halved at each such step, as on a GPU
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0**24)
        trainer = Trainer(
            default_root_dir=tmp_path,
            accelerator="cpu",
            plugins=[MixedPrecision("16-mixed", "cpu", scaler)],
            max_epochs=2,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            num_sanity_val_steps=0,
        )
        data.open()
        classifier.train_on(arrange(trainer, data, size))
        trainer.fit(classifier, datamodule=data)
        assert scaler.get_scale() < 2.0**24, "no step overflowed"
        runs[fused] = classifier.network.state_dict()
    for name, weight in runs[False].items():
        assert bool(torch.isfinite(runs[True][name]).all()), name
        torch.testing.assert_close(runs[True][name], weight, rtol=0.02, atol=0.002, msg=name)
