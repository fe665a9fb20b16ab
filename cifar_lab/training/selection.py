"""Which metric chooses the weights that are tested, and which way it is better."""

from __future__ import annotations

import re
from typing import Literal

from cifar_lab.errors import InputError

Mode = Literal["min", "max"]


def meaning(metric: str) -> Mode | None:
    """The better direction of a metric whose name says it: losses and errors, accuracies."""
    if re.search(r"(loss|error)$", metric):
        return "min"
    return "max" if re.search(r"(acc|accuracy)$", metric) else None


def mode_of(metric: str, mode: Mode | None) -> Mode:
    """The direction asked for, else the one that the metric's name says.

    Raises:
        InputError: neither says it, or they contradict each other.
    """
    said = meaning(metric)
    if mode is None and said is None:
        raise InputError(
            f"mode=null: the name {metric} doesn't say which values are better (as loss, error and "
            "acc do); must be min or max"
        )
    if mode is not None and mode not in ("min", "max"):
        raise InputError(f"mode={mode}: must be min, max, or null to follow from the metric's name")
    if mode is not None and said is not None and mode != said:
        lower = "lower" if said == "min" else "higher"
        raise InputError(f"mode={mode}: {metric} is better the {lower} it is; must be {said}")
    chosen = mode or said
    assert chosen is not None
    return chosen


def is_better(value: float, than: float | None, mode: Mode) -> bool:
    """Whether a value is strictly better; NaN never is, and of equal values the earlier one stays.

    Args:
        value: the new one.
        than: the best so far; None: there is none.
        mode: which way is better.
    """
    if value != value:
        return False
    return than is None or (value < than if mode == "min" else value > than)
