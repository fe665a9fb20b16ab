"""The schedules equal torch's own, and keep their laws at the edges."""

from __future__ import annotations

import pytest
import torch
from torch.optim.lr_scheduler import CosineAnnealingLR, LRScheduler, OneCycleLR

from cifar_lab.training.schedules import constant, cosine, one_cycle


def torch_factors(make: type[LRScheduler], steps: int, **arguments: float) -> list[float]:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    scheduler = make(optimizer, **arguments)  # type: ignore[arg-type]
    factors = []
    for _ in range(steps):
        factors.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return factors


@pytest.mark.parametrize("steps", [1, 7, 100])
def test_cosine_equals_torch(steps: int) -> None:
    ours = [cosine(s, steps, warmup_fraction=0.0, final_factor=0.1) for s in range(steps)]
    theirs = torch_factors(CosineAnnealingLR, steps, T_max=steps, eta_min=0.1)
    assert ours == pytest.approx(theirs, rel=1e-9)


@pytest.mark.parametrize("steps", [10, 57, 1000])
def test_one_cycle_equals_torch(steps: int) -> None:
    shape = {"warmup_fraction": 0.3, "initial_factor": 1 / 25, "final_factor": 1 / 25e4}
    ours = [one_cycle(s, steps, **shape) for s in range(steps)]
    theirs = torch_factors(
        OneCycleLR, steps, max_lr=1.0, total_steps=steps, pct_start=0.3, cycle_momentum=False
    )
    assert ours == pytest.approx(theirs, rel=1e-9)


def test_constant_does_not_depend_on_the_length() -> None:
    assert {constant(step, total) for step in range(5) for total in (5, 50)} == {1.0}


@pytest.mark.parametrize("steps", [1, 2, 3, 10])
def test_short_fits_stay_within_zero_and_one(steps: int) -> None:
    for step in range(steps + 1):
        assert 0 <= cosine(step, steps, warmup_fraction=0.5, final_factor=0.0) <= 1
        factor = one_cycle(step, steps, warmup_fraction=0.3, initial_factor=0.04, final_factor=0.0)
        assert 0 <= factor <= 1


def test_warm_up_rises_to_one_without_a_jump() -> None:
    factors = [cosine(s, 100, warmup_fraction=0.1, final_factor=0.0) for s in range(12)]
    assert factors[:11] == sorted(factors[:11])
    assert factors[10] == 1.0
