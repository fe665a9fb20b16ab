"""Optimizers that need no schedule, of the package schedulefree."""

from __future__ import annotations

from collections.abc import Iterable
from types import ModuleType
from typing import Any

from torch.optim import Optimizer

from cifar_lab.errors import InputError


def schedule_free_sgd(
    params: Iterable[Any], *, lr: float, momentum: float, weight_decay: float, warmup_steps: int
) -> Optimizer:
    """SGD without a schedule (Defazio et al., arXiv:2405.15682); needs ``callbacks=schedule_free``.

    The network's weights are ``y`` there, where gradients are taken; validation and test see ``x``.

    Args:
        params: parameters, (name, parameter) pairs, or groups of them.
        lr: learning rate; larger than SGD's with a schedule.
        momentum: beta there, in (0, 1): how far ``y`` lies towards ``x``.
        weight_decay: added to the gradient, at ``y``.
        warmup_steps: optimizer steps of a linear warm-up.

    Raises:
        InputError: the package isn't there; a number out of range.
    """
    optimizer: Optimizer = _package().SGDScheduleFree(
        params, lr=lr, momentum=momentum, weight_decay=weight_decay, warmup_steps=warmup_steps
    )
    return _checked(optimizer)


def schedule_free_adamw(
    params: Iterable[Any],
    *,
    lr: float,
    betas: tuple[float, float],
    weight_decay: float,
    warmup_steps: int,
) -> Optimizer:
    """AdamW without a schedule, likewise; ``betas[0]`` is the momentum of `schedule_free_sgd`."""
    optimizer: Optimizer = _package().AdamWScheduleFree(
        params, lr=lr, betas=betas, weight_decay=weight_decay, warmup_steps=warmup_steps
    )
    return _checked(optimizer)


def _checked(optimizer: Optimizer) -> Optimizer:
    # the package looks at some of the defaults, and at no group's own
    for group in optimizer.param_groups:
        name = "momentum" if "momentum" in group else "betas[0]"
        beta = group["momentum"] if "momentum" in group else group["betas"][0]
        if not 0 < beta < 1:
            raise InputError(f"{name}={beta}: must lie in (0, 1): the average is taken with it")
        if group["warmup_steps"] < 0:
            raise InputError(f"warmup_steps={group['warmup_steps']}: must be at least 0")
    return optimizer


def _package() -> ModuleType:
    try:
        import schedulefree
    except ModuleNotFoundError as error:
        raise InputError(
            "_target_: needs schedulefree; pip install 'cifar-lab[schedule-free]'"
        ) from error
    package: ModuleType = schedulefree
    return package
