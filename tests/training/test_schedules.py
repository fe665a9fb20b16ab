"""The schedules equal torch's own, and keep their laws at the edges."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch.optim.lr_scheduler import (
    CosineAnnealingLR,
    LinearLR,
    LRScheduler,
    OneCycleLR,
)

from cifar_lab.training.schedules import (
    FactorSchedule,
    constant,
    cosine,
    one_cycle,
    triangular,
    warmup_stable_decay,
)


def torch_factors(make: type[LRScheduler], steps: int, **arguments: float) -> list[float]:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    scheduler = make(optimizer, **arguments)  # type: ignore[arg-type]
    factors = []
    for _ in range(steps):
        factors.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        if len(factors) < steps:  # there is no step of OneCycleLR's after its last
            scheduler.step()
    return factors


@pytest.mark.parametrize("steps", [1, 7, 100])
def test_cosine_equals_torch(steps: int) -> None:
    ours = [cosine(s, steps, warmup_fraction=0.0, final_factor=0.1) for s in range(steps)]
    theirs = torch_factors(CosineAnnealingLR, steps, T_max=steps, eta_min=0.1)
    assert ours == pytest.approx(theirs, rel=1e-9)


@pytest.mark.parametrize("warmup", [0.0, 0.3, 0.9])
@pytest.mark.parametrize("steps", [1, 2, 5, 10, 57, 1000])
def test_one_cycle_equals_torch(steps: int, warmup: float) -> None:
    shape = {"warmup_fraction": warmup, "initial_factor": 1 / 25, "final_factor": 1 / 25e4}
    ours = [one_cycle(s, steps, **shape) for s in range(steps)]
    theirs = torch_factors(
        OneCycleLR, steps, max_lr=1.0, total_steps=steps, pct_start=warmup, cycle_momentum=False
    )
    assert ours == pytest.approx(theirs, rel=1e-9)


@pytest.mark.parametrize("warmup", [0.0, 0.3, 0.75])
@pytest.mark.parametrize("steps", [1, 2, 3, 7, 100])
def test_after_the_last_step_it_is_the_final_factor(steps: int, warmup: float) -> None:
    both = {"warmup_fraction": warmup, "final_factor": 0.1}
    found = (
        cosine(steps, steps, **both),
        triangular(steps, steps, initial_factor=0.2, **both),
        warmup_stable_decay(steps, steps, decay_fraction=0.2, **both),
        one_cycle(steps, steps, initial_factor=0.2, **both),
    )
    assert found == pytest.approx([0.1] * 4, rel=1e-12)


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


@pytest.mark.parametrize("steps", [1, 8, 200])
def test_linear_is_torch_s_and_the_speedrun_s(steps: int) -> None:
    line = {"warmup_fraction": 0.0, "initial_factor": 0.2, "final_factor": 0.0}
    ours = [triangular(s, steps, **line) for s in range(steps + 1)]
    assert ours == pytest.approx([1 - s / steps for s in range(steps + 1)], abs=1e-12)
    theirs = torch_factors(LinearLR, steps, start_factor=1.0, end_factor=0.0, total_iters=steps)
    assert ours[:steps] == pytest.approx(theirs, abs=1e-9)


def test_the_triangle_is_the_interpolation_of_its_corners() -> None:
    shape = {"warmup_fraction": 0.2, "initial_factor": 0.3, "final_factor": 0.07}
    ours = [triangular(s, 50, **shape) for s in range(51)]
    expected = np.interp(range(51), [0, 10, 50], [0.3, 1.0, 0.07])
    assert ours == pytest.approx(expected, rel=1e-12)


def test_warm_up_stable_decay_has_its_three_parts() -> None:
    shape = {"warmup_fraction": 0.1, "decay_fraction": 0.2, "final_factor": 0.1}
    ours = [warmup_stable_decay(s, 100, **shape) for s in range(101)]
    assert ours[:10] == pytest.approx([(s + 1) / 11 for s in range(10)])
    assert ours[10:81] == [1.0] * 71
    assert ours[80:] == pytest.approx(np.linspace(1.0, 0.1, 21))


@pytest.mark.parametrize("steps", [1, 2, 3, 10])
def test_lines_stay_within_zero_and_one(steps: int) -> None:
    for step in range(steps + 1):
        found = (
            triangular(step, steps, warmup_fraction=0.9, initial_factor=0.0, final_factor=0.0),
            warmup_stable_decay(
                step, steps, warmup_fraction=0.5, decay_fraction=0.5, final_factor=0.0
            ),
        )
        assert all(0 <= factor <= 1 for factor in found)


def test_a_group_that_ends_early_has_the_whole_schedule_before() -> None:
    weights = [torch.nn.Parameter(torch.zeros(1)) for _ in range(2)]
    groups: list[dict[str, Any]] = [
        {"params": [weights[0]]},
        {"params": [weights[1]], "until": 0.375},
    ]
    optimizer = torch.optim.SGD(groups, lr=2.0)
    line = partial(triangular, warmup_fraction=0.0, initial_factor=1.0, final_factor=0.0)
    scheduler = FactorSchedule(optimizer, line, 200)
    found = []
    for _ in range(200):
        found.append([group["lr"] for group in optimizer.param_groups])
        optimizer.step()
        scheduler.step()
    whole, early = zip(*found, strict=True)
    assert whole == pytest.approx([2 * (1 - s / 200) for s in range(200)])
    assert early == pytest.approx([2 * max(0, 1 - s / 75) for s in range(200)])
