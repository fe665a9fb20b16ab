"""torch's schedulers by ``_target_``: stepped as torch means it, and exact where a run goes on."""

from __future__ import annotations

import csv
import inspect
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim import SGD, lr_scheduler

from cifar_lab.__main__ import main
from cifar_lab.config.targets import makes_scheduler
from cifar_lab.errors import InputError
from cifar_lab.training import schedules
from cifar_lab.training.schedules import TorchSchedule, depends_on_length, try_schedule
from tests.conftest import TINY, merged, record_of
from tests.support.runs import same, stop_at

Lab = Callable[..., tuple[int, str, str]]

# 8 steps an epoch
FITS = (*TINY, "trainer.max_epochs=3", "threads=1", "optimizer.lr=0.05", "logger=csv")
BY_TARGET = ("scheduler=none", "scheduler._target_=torch.optim.lr_scheduler.{}")


def torchs(name: str, *arguments: str) -> tuple[str, ...]:
    return (BY_TARGET[0], BY_TARGET[1].format(name), *(f"+scheduler.{a}" for a in arguments))


GROUPS = ("optimizer/groups=no_decay", "+optimizer.groups.head={parameters: fc*, lr_scale: 0.1}")
# nothing is an improvement: down after each epoch
PLATEAU = ("scheduler=plateau", "scheduler.patience=0", "+scheduler.threshold=10")
ONE_CYCLE = torchs("OneCycleLR", "max_lr=0.1")
EXACT = {
    "step": ("scheduler=step", "scheduler.step_size=1"),
    "plateau on train/loss": (*PLATEAU, "scheduler.monitor=train/loss"),
    "one cycle, with its momentum": ONE_CYCLE,
    "groups and plateau": (*GROUPS, *PLATEAU),
    "exponential by the step": torchs("ExponentialLR", "gamma=0.9", "interval=step"),
    "plateau, validated within epochs": (*PLATEAU, "+trainer.val_check_interval=3"),
    "plateau, every second epoch": (*PLATEAU, "trainer.check_val_every_n_epoch=2"),
}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """The run folder of a fit with these arguments that nobody stopped, made where it is wanted."""

    @cache
    def made(*arguments: str) -> Path:
        run_dir = tmp_path_factory.mktemp("undisturbed") / "run"
        assert main(merged(*FITS, *arguments, f"hydra.run.dir={run_dir}")) == 0
        return run_dir

    return made


@pytest.mark.parametrize("name", EXACT)
def test_stopped_and_continued_equals_undisturbed_to_the_bit(
    lab: Lab,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    undisturbed: Callable[..., Path],
    name: str,
) -> None:
    arguments = (*FITS, *EXACT[name])
    whole = undisturbed(*EXACT[name])
    # within an epoch, and at the first step of the next: after the epoch's checkpoint
    stop_at(monkeypatch, 4, 8, 20)
    for _ in range(3):
        assert lab(*arguments, f"hydra.run.dir={tmp_path}/cut")[0] == 130
    status, _, err = lab(*arguments, f"hydra.run.dir={tmp_path}/cut")
    assert status == 0, err
    same(whole, tmp_path / "cut")
    assert _optimizer(whole) == _optimizer(tmp_path / "cut")


def _optimizer(run_dir: Path) -> list[dict[str, Any]]:
    checkpoint = torch.load(run_dir / "checkpoints" / "last.ckpt", weights_only=True)
    groups: list[dict[str, Any]] = checkpoint["optimizer_states"][0]["param_groups"]
    return [*groups, checkpoint["lr_schedulers"][0]]


def rates(run_dir: Path) -> list[float]:
    with open(run_dir / "metrics.csv", newline="") as file:
        return [float(row["lr"]) for row in csv.DictReader(file) if row["lr"]]


def by_hand(make: Callable[..., Any], steps: int, lr: float = 0.05) -> list[float]:
    """The rate of each step, as torch steps it."""
    optimizer = SGD([nn.Parameter(torch.zeros(1))], lr=lr, momentum=0.9)
    scheduler, found = make(optimizer), []
    for _ in range(steps):
        found.append(float(optimizer.param_groups[0]["lr"]))
        optimizer.step()
        scheduler.step()
    return found


@pytest.mark.parametrize(
    ("arguments", "make", "every"),
    [
        (EXACT["step"], partial(lr_scheduler.StepLR, step_size=1), 8),
        (ONE_CYCLE, partial(lr_scheduler.OneCycleLR, max_lr=0.1, total_steps=24), 1),
        (EXACT["exponential by the step"], partial(lr_scheduler.ExponentialLR, gamma=0.9), 1),
        (
            torchs("CosineAnnealingLR", "T_max=3"),
            partial(lr_scheduler.CosineAnnealingLR, T_max=3),
            8,
        ),
    ],
    ids=["step", "one cycle", "exponential", "cosine"],
)
def test_rates_are_those_of_a_loop_by_hand(
    undisturbed: Callable[..., Path],
    arguments: tuple[str, ...],
    make: Callable[..., Any],
    every: int,
) -> None:
    run_dir = undisturbed(*arguments)
    expected = by_hand(make, 24 // every)
    last = expected if every == 8 else expected[7::8]  # the rate of each epoch's last step
    assert rates(run_dir) == pytest.approx(last, rel=1e-9)
    assert record_of(run_dir)["departures"] == []


def test_a_plateau_follows_the_value_that_was_logged(lab: Lab, tmp_path: Path) -> None:
    arguments = (*FITS, "scheduler=plateau", "scheduler.patience=0", "trainer.max_epochs=5")
    assert lab(*arguments, f"hydra.run.dir={tmp_path}/run")[0] == 0
    with open(tmp_path / "run" / "metrics.csv", newline="") as file:
        losses = [float(row["val/loss"]) for row in csv.DictReader(file) if row["val/loss"]]
    optimizer = SGD([nn.Parameter(torch.zeros(1))], lr=0.05)
    scheduler, expected = lr_scheduler.ReduceLROnPlateau(optimizer, patience=0), []
    for loss in losses:
        expected.append(float(optimizer.param_groups[0]["lr"]))
        scheduler.step(loss)
    assert rates(tmp_path / "run") == pytest.approx(expected, rel=1e-9)


def test_several_steps_per_call_go_back_to_single_ones_and_say_why(
    lab: Lab, tmp_path: Path, undisturbed: Callable[..., Path]
) -> None:
    several = (*FITS, *EXACT["step"], "steps_per_call=4", f"hydra.run.dir={tmp_path}/several")
    status, _, err = lab(*several)
    assert status == 0
    assert "steps_per_call=4: scheduler is one of torch's" in err
    same(undisturbed(*EXACT["step"]), tmp_path / "several")


# --- before the run ------------------------------------------------------------------------------

WRONG = [
    (torchs("StepLR"), ["scheduler", "step_size"]),
    (torchs("StepLR", "step_size=2", "gama=1"), ["scheduler.gama: unknown key", "gamma"]),
    (torchs("StepLR", "step_size=2", "interval=batch"), ["scheduler.interval=batch", "epoch"]),
    (torchs("StepLR", "step_size=2", "monitor=val/loss"), ["scheduler.monitor=val/loss", "none"]),
    (torchs("StepLR", "step_size=2", "last_epoch=5"), ["scheduler.last_epoch=5", "leave it out"]),
    (torchs("ReduceLROnPlateau"), ["scheduler.monitor=null", "val/loss"]),
    (
        torchs("OneCycleLR", "max_lr=0.1", "total_steps=5"),
        ["scheduler.total_steps=5: ends before the fit", "24"],
    ),
    (("scheduler=plateau", "+scheduler.interval=step"), ["scheduler.interval=step", "epoch"]),
    (
        ("scheduler=plateau", "scheduler.mode=max"),
        ["scheduler.mode=max: val/loss is better", "min"],
    ),
    (("scheduler=plateau", "scheduler.monitor=test/loss"), ["scheduler.monitor=test/loss", "once"]),
    (
        ("scheduler=plateau", "scheduler.monitor=val/los"),
        ["nothing logs it", "did you mean val/loss"],
    ),
    (("scheduler=plateau", "data.val_size=0"), ["scheduler.monitor=val/loss", "data.val_size=0"]),
    (("scheduler=cosine", "+scheduler.interval=epoch"), ["scheduler.interval: unknown key"]),
    (("scheduler=plateau", "scheduler.factor=2"), ["scheduler", "Factor should be"]),
    (torchs("SequentialLR", "milestones=[2]", "schedulers=[]"), ["scheduler:"]),
]


@pytest.mark.parametrize(("arguments", "parts"), WRONG, ids=str)
def test_what_would_fail_in_the_fit_is_one_line_before_it(
    lab: Lab, tmp_path: Path, arguments: tuple[str, ...], parts: list[str]
) -> None:
    status, _, err = lab(*FITS, *arguments)
    assert status == 2, err
    assert len(err.strip().splitlines()) == 1, err
    for part in parts:
        assert part in err
    assert not (tmp_path / "outputs").exists()


def test_a_sweep_checks_them_likewise(lab: Lab, tmp_path: Path) -> None:
    status, _, err = lab(
        *("-m", *FITS, *torchs("OneCycleLR", "max_lr=0.1", "total_steps=24")),
        *("trainer.max_epochs=3,4", "hydra.sweep.dir=sweep"),
    )
    assert status == 2
    assert "trainer.max_epochs=4: scheduler.total_steps=24: ends before the fit" in err
    assert not (tmp_path / "sweep").exists()


OWN = """
from torch.optim.lr_scheduler import ConstantLR, LinearLR, SequentialLR

def warm_up(optimizer, total_steps, share):
    first = max(1, int(share * total_steps))
    parts = [LinearLR(optimizer, 0.1, total_iters=first), ConstantLR(optimizer, 1.0)]
    return SequentialLR(optimizer, parts, milestones=[first])

def half(step, total):
    return 0.5 if step >= total / 2 else 1.0

def broken(step, total):
    return "fast"
"""


def test_functions_of_ones_own_of_the_optimizer_or_of_the_step(
    lab: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "own_schedules.py").write_text(OWN)
    monkeypatch.syspath_prepend(tmp_path)
    own = (*FITS, "scheduler=none", "logger=csv")
    status, _, err = lab(
        *(*own, "scheduler._target_=own_schedules.warm_up", "+scheduler.share=0.5"),
        f"hydra.run.dir={tmp_path}/optimizer",
    )
    assert status == 0, err
    # 12 steps of warm-up
    assert rates(tmp_path / "optimizer") == pytest.approx([0.05 * (0.1 + 0.9 * 7 / 12), 0.05, 0.05])
    of_step = "scheduler._target_=own_schedules.half"
    assert lab(*own, of_step, f"hydra.run.dir={tmp_path}/step")[0] == 0
    assert rates(tmp_path / "step") == [0.05, 0.025, 0.025]
    status, _, err = lab(*own, "scheduler._target_=own_schedules.broken")
    assert status == 2
    assert "scheduler._target_: gives fast at step 0 of 24" in err


def test_a_run_is_made_longer_where_its_rates_would_have_been_the_same(
    lab: Lab, tmp_path: Path
) -> None:
    short, long = (*FITS, *EXACT["step"]), (*FITS, *EXACT["step"], "trainer.max_epochs=4")
    assert lab(*long, f"hydra.run.dir={tmp_path}/whole")[0] == 0
    for arguments in (short, long):
        status, _, err = lab(*arguments, f"hydra.run.dir={tmp_path}/longer")
        assert status == 0, err
    same(tmp_path / "whole", tmp_path / "longer")


def test_which_schedules_depend_on_the_length() -> None:
    found = {
        name: depends_on_length(kind, {})
        for name, kind in inspect.getmembers(lr_scheduler, inspect.isclass)
        if makes_scheduler(kind) and not name.startswith("_") and name != "LRScheduler"
    }
    assert {name for name, depends in found.items() if depends} == {"OneCycleLR"}
    assert not depends_on_length(lr_scheduler.OneCycleLR, {"total_steps": 100})
    assert not depends_on_length(
        lr_scheduler.OneCycleLR, {"epochs": 2, "steps_per_epoch": 10, "total_steps": None}
    )
    assert depends_on_length(schedules.cosine, {})
    assert not depends_on_length(schedules.constant, {})


@pytest.mark.parametrize("steps", [1, 2, 50])
def test_the_check_leaves_the_network_as_it_was(steps: int) -> None:
    network = nn.Linear(2, 2)
    before = {key: value.clone() for key, value in network.state_dict().items()}
    schedule = TorchSchedule.of(partial(lr_scheduler.OneCycleLR, max_lr=1.0), {"max_lr": 1.0})
    assert schedule.interval == "step"
    optimizer = SGD(network.parameters(), lr=0.1, momentum=0.9)
    try_schedule(schedule, optimizer, steps=steps, epochs=1)
    assert all(torch.equal(before[key], value) for key, value in network.state_dict().items())
    make = partial(lr_scheduler.OneCycleLR, max_lr=1.0, total_steps=1)
    too_short = TorchSchedule(make, "step")
    with pytest.raises(InputError, match="ends before the fit"):
        try_schedule(too_short, optimizer, steps=steps + 1, epochs=1)


@pytest.mark.parametrize("name", ["OneCycleLR", "StepLR", "LambdaLR", "CyclicLR"])
def test_rates_of_groups_are_not_made_one_without_a_word(name: str) -> None:
    """Those that begin at a rate of their own take it for every group."""
    of_each: dict[str, dict[str, Any]] = {
        "OneCycleLR": {"max_lr": 0.1, "total_steps": 9},
        "StepLR": {"step_size": 1},
        "LambdaLR": {"lr_lambda": lambda step: step / 9},  # from 0 on
        "CyclicLR": {"base_lr": 0.01, "max_lr": 0.1},
    }
    arguments = of_each[name]
    make = partial(getattr(lr_scheduler, name), **arguments)
    network = nn.Linear(2, 2)

    def tried(*rates: float) -> None:
        groups = [
            {"params": [p], "lr": lr} for p, lr in zip(network.parameters(), rates, strict=True)
        ]
        schedule = TorchSchedule.of(make, arguments)
        try_schedule(schedule, SGD(groups, momentum=0.9), steps=9, epochs=9)

    tried(0.3, 0.3)
    if name in ("StepLR", "LambdaLR"):
        tried(0.3, 0.03)
        return
    with pytest.raises(InputError, match=f"^_target_: {name} gives all groups one rate, and opt"):
        tried(0.3, 0.03)
