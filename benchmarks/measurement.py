"""Single measurements, and what follows from them: medians, quartiles, ratios within a round."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """One process, once.

    Attributes:
        table: what was compared: a network, or "start-up".
        contender: its name in the table.
        round: from 1 on.
        position: its place in the order of the round, from 1 on.
        images_per_s: training images over training time, without warm-up.
        accuracy: a fraction, where the program told one.
        start_s: seconds from the start of the process to what the start-up table is about.
        wall_s: seconds from the start of the process to its end.
        error: why it counts as failed; None where it doesn't.
    """

    table: str
    contender: str
    round: int
    position: int
    images_per_s: float | None = None
    accuracy: float | None = None
    start_s: float | None = None
    wall_s: float | None = None
    error: str | None = None


@dataclass(frozen=True)
class Spread:
    """A median with its quartiles, of n values."""

    median: float
    lower: float
    upper: float
    n: int


def spread(values: Iterable[float]) -> Spread | None:
    """Of the values; None of none. Quartiles are interpolated between the values (inclusive)."""
    known = sorted(values)
    if not known:
        return None
    if len(known) == 1:
        return Spread(known[0], known[0], known[0], 1)
    lower, median, upper = statistics.quantiles(known, n=4, method="inclusive")
    return Spread(median, lower, upper, len(known))


def values(measurements: Sequence[Measurement], contender: str, quantity: str) -> dict[int, float]:
    """By round, what is known of the quantity (an attribute's name) for one contender."""
    found = {
        m.round: getattr(m, quantity)
        for m in measurements
        if m.contender == contender and m.error is None
    }
    return {round_: value for round_, value in found.items() if value is not None}


def ratios(
    measurements: Sequence[Measurement], above: str, below: str, quantity: str
) -> list[float]:
    """``above / below`` for every round that has both: what the machine did then cancels out."""
    top, bottom = (values(measurements, name, quantity) for name in (above, below))
    return [top[round_] / bottom[round_] for round_ in sorted(top.keys() & bottom.keys())]
