"""Learning-rate schedules as pure functions of the step: ``lr = optimizer.lr * factor``.

Every function takes the optimizer steps already made and the steps of the whole fit. In the
configuration they are partial: the fit knows the steps.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, TypeVar

_Schedule = TypeVar("_Schedule", bound=Callable[..., float])


def independent_of_length(schedule: _Schedule) -> _Schedule:
    """Marks a schedule that ignores ``total_steps``: a finished fit may be made longer."""
    schedule.independent_of_length = True  # type: ignore[attr-defined]
    return schedule


def depends_on_length(schedule: Any) -> bool:
    """Whether a longer fit would have had other learning rates from the start."""
    return not getattr(schedule, "independent_of_length", False)


@independent_of_length
def constant(step: int, total_steps: int) -> float:
    """1 throughout; the only one that doesn't depend on the length of the fit."""
    return 1.0


def cosine(step: int, total_steps: int, *, warmup_fraction: float, final_factor: float) -> float:
    """Linear warm-up, then half a cosine from 1 to ``final_factor`` (arXiv:1608.03983).

    Args:
        step: optimizer steps made, 0..total_steps.
        total_steps: optimizer steps of the whole fit.
        warmup_fraction: share of the fit that warms up, in [0, 1).
        final_factor: the factor after the last step, in [0, 1].
    """
    warmup = warmup_fraction * total_steps
    if step < warmup:
        return (step + 1) / (warmup + 1)
    progress = (step - warmup) / max(1, total_steps - warmup)
    return final_factor + (1 - final_factor) * _half_cosine(progress)


def one_cycle(
    step: int,
    total_steps: int,
    *,
    warmup_fraction: float,
    initial_factor: float,
    final_factor: float,
) -> float:
    """Up and down again along cosines (arXiv:1708.07120), the factors of torch's OneCycleLR.

    With ``initial_factor=1/25`` and ``final_factor=1/25e4`` it equals torch's default. Momentum is
    left alone, as ``cycle_momentum=False`` does there.
    """
    # torch's phases end on whole steps counted from 0
    peak = warmup_fraction * total_steps - 1
    last = total_steps - 1
    if step <= peak:
        return 1 + (initial_factor - 1) * _half_cosine(step / peak if peak > 0 else 1.0)
    progress = (step - peak) / max(1.0, last - peak)
    return final_factor + (1 - final_factor) * _half_cosine(progress)


def _half_cosine(progress: float) -> float:
    # 1 at 0, 0 at 1
    return 0.5 * (1 + math.cos(math.pi * min(1.0, max(0.0, progress))))
