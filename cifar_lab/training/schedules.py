"""Learning-rate schedules: pure functions of the step, and torch's own.

A function takes the optimizer steps already made and the steps of the whole fit, and
``lr = optimizer.lr * factor``. In the configuration it is partial: the fit knows the steps.
"""

from __future__ import annotations

import inspect
import math
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from numbers import Real
from typing import Any, Literal

from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler, OneCycleLR, ReduceLROnPlateau

from cifar_lab.config.targets import is_of_a_library, makes_scheduler
from cifar_lab.errors import InputError
from cifar_lab.training.trial import check_keepable


def depends_on_length(target: Any, node: Mapping[str, Any]) -> bool:
    """Whether a longer fit would have had other learning rates from the start.

    Args:
        target: what ``_target_`` of the ``scheduler`` group names.
        node: its arguments.
    """
    if makes_scheduler(target):
        return _wants_length(target, node)
    return target is not constant


def constant(step: int, total_steps: int) -> float:
    """1 throughout; the only one that doesn't depend on the length of the fit.

    Args:
        step: optimizer steps made.
        total_steps: of the whole fit.
    """
    return 1.0


def cosine(step: int, total_steps: int, *, warmup_fraction: float, final_factor: float) -> float:
    """Linear warm-up, then half a cosine from 1 to ``final_factor`` (arXiv:1608.03983).

    Args:
        step: optimizer steps made, 0..total_steps.
        total_steps: optimizer steps of the whole fit.
        warmup_fraction: share of the fit that warms up, in [0, 1).
        final_factor: the factor after the last step, in [0, 1].
    """
    _check_shape(warmup_fraction=warmup_fraction, final_factor=final_factor)
    warmup = warmup_fraction * total_steps
    if step < warmup:
        return (step + 1) / (warmup + 1)
    progress = (step - warmup) / (total_steps - warmup)
    return final_factor + (1 - final_factor) * _half_cosine(progress)


def triangular(
    step: int,
    total_steps: int,
    *,
    warmup_fraction: float,
    initial_factor: float,
    final_factor: float,
) -> float:
    """Up along a line and down along another (arXiv:1506.01186, one triangle).

    Without a warm-up it falls from 1 at the first step; ``final_factor`` is that after the last.

    Args:
        step: optimizer steps made, 0..total_steps.
        total_steps: optimizer steps of the whole fit.
        warmup_fraction: share of the fit that rises, in [0, 1).
        initial_factor: of the first step, where there is a warm-up, in [0, 1].
        final_factor: the factor after the last step, in [0, 1].
    """
    _check_shape(
        warmup_fraction=warmup_fraction, initial_factor=initial_factor, final_factor=final_factor
    )
    peak = warmup_fraction * total_steps
    if step < peak:
        return initial_factor + (1 - initial_factor) * step / peak
    progress = (step - peak) / (total_steps - peak)
    return 1 + (final_factor - 1) * progress


def warmup_stable_decay(
    step: int,
    total_steps: int,
    *,
    warmup_fraction: float,
    decay_fraction: float,
    final_factor: float,
) -> float:
    """Linear warm-up, 1 for most of the fit, then a line down (arXiv:2404.06395, 4).

    Args:
        step: optimizer steps made, 0..total_steps.
        total_steps: optimizer steps of the whole fit.
        warmup_fraction: share of the fit that warms up, in [0, 1).
        decay_fraction: share of it that decays, at its end; both together at most 1.
        final_factor: the factor after the last step, in [0, 1].
    """
    _check_shape(warmup_fraction=warmup_fraction, final_factor=final_factor)
    if not 0 < decay_fraction <= 1 - warmup_fraction:
        raise InputError(
            f"decay_fraction={decay_fraction}: must be above 0, and at most 1 with "
            f"warmup_fraction={warmup_fraction}"
        )
    warmup, decay = warmup_fraction * total_steps, decay_fraction * total_steps
    if step < warmup:
        return (step + 1) / (warmup + 1)
    progress = (step - (total_steps - decay)) / decay
    return 1 + (final_factor - 1) * min(1.0, max(0.0, progress))


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
    _check_shape(
        warmup_fraction=warmup_fraction, initial_factor=initial_factor, final_factor=final_factor
    )
    # torch's phases end on whole steps counted from 0
    peak = warmup_fraction * total_steps - 1
    last = total_steps - 1
    if step <= peak:
        return 1 + (initial_factor - 1) * _half_cosine(step / peak if peak > 0 else 1.0)
    progress = (step - peak) / (last - peak)
    return final_factor + (1 - final_factor) * _half_cosine(progress)


def _check_shape(*, warmup_fraction: float, **factors: float) -> None:
    """Raises InputError for a peak outside of the fit, and for a factor that is higher than it."""
    if not 0 <= warmup_fraction < 1:
        raise InputError(
            f"warmup_fraction={warmup_fraction}: must lie in [0, 1): the rate is at its peak then"
        )
    for name, factor in factors.items():
        if not 0 <= factor <= 1:
            raise InputError(f"{name}={factor}: must lie in [0, 1], a factor on optimizer.lr")


def _half_cosine(progress: float) -> float:
    # 1 at 0, 0 at 1
    return 0.5 * (1 + math.cos(math.pi * min(1.0, max(0.0, progress))))


# --- as torch steps them -------------------------------------------------------------------------


class FactorSchedule(LambdaLR):
    """A pure function of the step, stepped after every optimizer step.

    A group with ``until``, a share of the fit, has the whole schedule within it, and a rate of 0
    from there on.
    """

    def __init__(
        self, optimizer: Optimizer, schedule: Callable[[int, int], float], steps: int
    ) -> None:
        factors: list[Callable[[int], float]] = [
            partial(_factor, schedule, end_of(group, steps), "until" in group)
            for group in optimizer.param_groups
        ]
        super().__init__(optimizer, factors)


def end_of(group: Mapping[str, Any], steps: int) -> int:
    """Optimizer steps of a fit that a group of parameters takes part in; at least 1."""
    share: float = group.get("until", 1)
    return max(1, round(share * steps))


def _factor(schedule: Callable[[int, int], float], end: int, stops: bool, step: int) -> float:
    # one of NumPy's would make a rate of NumPy's, which a checkpoint doesn't give back
    return 0.0 if stops and step >= end else float(schedule(step, end))


@dataclass(frozen=True)
class TorchSchedule:
    """One of torch's schedulers, or what a person's own function of the optimizer gives.

    Attributes:
        make: (optimizer) -> the scheduler; with ``total_steps`` too where it takes it.
        interval: whether it is stepped after each optimizer step or after each epoch.
        monitor: the metric that a `ReduceLROnPlateau` looks at.
        wants_length: whether it is told its number of steps.
    """

    make: Callable[..., LRScheduler]
    interval: Literal["step", "epoch"] = "epoch"
    monitor: str | None = None
    wants_length: bool = False

    @classmethod
    def of(cls, make: Callable[..., LRScheduler], node: Mapping[str, Any]) -> TorchSchedule:
        """As ``scheduler`` in the configuration says, whose arguments ``make`` has already.

        Raises:
            InputError: an interval that there isn't, or that doesn't fit; no or a needless monitor.
        """
        target = getattr(make, "func", make)
        takes_length = "total_steps" in inspect.signature(target).parameters
        interval = node.get("interval") or ("step" if takes_length else "epoch")
        if interval not in ("step", "epoch"):
            raise InputError(f"interval={interval}: must be step or epoch")
        if node.get("last_epoch", -1) != -1:
            raise InputError(
                f"last_epoch={node['last_epoch']}: a run begins with its first epoch, and one that "
                "goes on finds its place in its checkpoint; leave it out"
            )
        monitor = node.get("monitor")
        on_plateau = inspect.isclass(target) and issubclass(target, ReduceLROnPlateau)
        if on_plateau and interval == "step":
            raise InputError(
                "interval=step: ReduceLROnPlateau looks at a value that is new once an epoch; "
                "must be epoch"
            )
        if on_plateau and monitor is None:
            raise InputError("monitor=null: ReduceLROnPlateau needs a metric, e.g. val/loss")
        if monitor is not None and inspect.isclass(target) and not on_plateau:
            raise InputError(f"monitor={monitor}: {target.__name__} looks at none; leave it out")
        by_step = interval == "step"
        wants_length = _wants_length(target, node)
        return cls(make, "step" if by_step else "epoch", monitor, wants_length)

    def __call__(self, optimizer: Optimizer, *, steps: int, epochs: int) -> LRScheduler:
        """The scheduler of a fit of so many optimizer steps and epochs."""
        if not self.wants_length:
            return self.make(optimizer)
        return self.make(optimizer, total_steps=steps if self.interval == "step" else epochs)


def try_schedule(
    schedule: Callable[[int, int], float] | TorchSchedule,
    optimizer: Optimizer,
    *,
    steps: int,
    epochs: int,
) -> None:
    """Builds it on an optimizer that is thrown away, and goes through the fit with it.

    A person's own is asked for each of its steps, or for `MOST_TRIED` of them: evenly spread ones
    of a function, the first ones of a scheduler. Ours and torch's are asked for a few.

    Raises:
        InputError: it can't be built, ends before the fit does, or gives what is no rate.
    """
    own = not is_of_a_library(schedule.make if isinstance(schedule, TorchSchedule) else schedule)
    if not isinstance(schedule, TorchSchedule):
        stride = max(1, -(-steps // MOST_TRIED)) if own else max(1, steps // 2)
        for step in sorted({*range(0, steps, stride), steps - 1}):
            factor = schedule(step, steps)
            if not isinstance(factor, Real | Tensor) or not 0 <= factor < math.inf:
                raise InputError(
                    f"_target_: gives {factor} at step {step} of {steps}; it must give a finite "
                    "factor on optimizer.lr, at least 0"
                )
        return
    if any("until" in group for group in optimizer.param_groups):
        raise InputError(
            "_target_: is one of torch's, and optimizer.groups has an until, which has the whole "
            "schedule run within a share of the fit; use cosine, onecycle or triangular"
        )
    asked = {float(group["lr"]) for group in optimizer.param_groups}
    scheduler = schedule(optimizer, steps=steps, epochs=epochs)
    if not isinstance(scheduler, LRScheduler):
        raise InputError(f"_target_: gives a {type(scheduler).__name__} and no LRScheduler")
    given = {float(group["lr"]) for group in optimizer.param_groups}
    if len(asked) > 1 and len(given) == 1 and given != {0.0}:  # where a warm-up may begin
        raise InputError(
            f"_target_: {type(scheduler).__name__} gives all groups one rate, and optimizer.groups "
            f"has {len(asked)}; use cosine, onecycle or triangular, which are factors on each"
        )
    if schedule.monitor is None and isinstance(scheduler, ReduceLROnPlateau):
        raise InputError("monitor=null: ReduceLROnPlateau needs a metric, e.g. val/loss")
    wanted = steps if schedule.interval == "step" else epochs
    if isinstance(scheduler, OneCycleLR) and scheduler.total_steps < wanted:
        raise InputError(
            f"total_steps={scheduler.total_steps}: ends before the fit, which steps it {wanted} "
            "times; leave it out, and it is the fit's"
        )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a step without the optimizer's
        for step in range(1, 1 + min(wanted, MOST_TRIED if own else 3)):
            if isinstance(scheduler, ReduceLROnPlateau):
                scheduler.step(1.0)
            else:
                scheduler.step()
            rates = [float(group["lr"]) for group in optimizer.param_groups]
            if not all(0 <= rate < math.inf for rate in rates):
                raise InputError(
                    f"_target_: gives a rate of {rates[0]} after {step} of {wanted} steps; it must "
                    "give finite ones, at least 0"
                )
    if own:
        check_keepable(scheduler.state_dict(), "_target_")


# Steps that a schedule of a person's own is tried on: a quarter of a second of torch's.
MOST_TRIED = 10_000


def _wants_length(target: Any, node: Mapping[str, Any]) -> bool:
    if "total_steps" not in inspect.signature(target).parameters:
        return False
    otherwise = node.get("epochs") is not None and node.get("steps_per_epoch") is not None
    return node.get("total_steps") is None and not otherwise
