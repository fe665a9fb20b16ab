"""A search space in Hydra's syntax, as Optuna's distributions.

``interval(a, b)`` is a float, ``int(interval(a, b))`` an integer, ``tag(log, ...)`` either on a log
scale; ``range(a, b, step)`` leaves out b, as in a grid; ``choice(...)``, ``a,b`` and ``glob(...)``
are categories, lists among them.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hydra.core.override_parser.types import IntervalSweep, Override, RangeSweep
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)

from cifar_lab.errors import InputError


@dataclass(frozen=True)
class Space:
    """What is searched, and what stays.

    Attributes:
        distributions: by key, as an override spells it.
        fixed: overrides that every job has.
    """

    distributions: Mapping[str, BaseDistribution]
    fixed: Sequence[str]

    def overrides(self, values: Mapping[str, Any]) -> list[str]:
        """A point of the space as overrides.

        Args:
            values: by key, one for each distribution.
        """
        return [*self.fixed, *(f"{key}={values[key]}" for key in self.distributions)]

    def probes(self) -> Iterator[dict[str, Any]]:
        """Points that have every category and both ends of every interval between them."""
        ends = {key: _ends(value) for key, value in self.distributions.items()}
        first = {key: values[0] for key, values in ends.items()}
        yield first
        for key, values in ends.items():
            for value in values[1:]:
                yield {**first, key: value}

    def grid(self) -> list[dict[str, Any]]:
        """Every point, where there are finitely many; raises InputError where there are not."""
        values = [list(_values(key, value)) for key, value in self.distributions.items()]
        return [
            dict(zip(self.distributions, point, strict=True))
            for point in itertools.product(*values)
        ]


def parse_space(overrides: Sequence[Override]) -> Space:
    """The last override of a key counts; raises InputError for what can't be searched."""
    last = {override.get_key_element(): override for override in overrides}
    distributions, fixed = {}, []
    for key, override in last.items():
        if override.is_sweep_override():
            try:
                distributions[key] = _distribution(override)
            except ValueError as error:
                raise InputError(f"{override.input_line}: {error}") from error
        else:
            fixed.append(f"{key}={override.get_value_element_as_str()}")
    if not distributions:
        raise InputError("sweep=optuna: nothing to search; e.g. 'optimizer.lr=interval(0.01,0.1)'")
    return Space(distributions, fixed)


def _distribution(override: Override) -> BaseDistribution:
    value = override.value()
    if isinstance(value, IntervalSweep):
        assert value.start is not None
        assert value.end is not None
        log = "log" in value.tags
        if isinstance(value.start, int) and isinstance(value.end, int):
            return IntDistribution(value.start, value.end, log=log)
        return FloatDistribution(value.start, value.end, log=log)
    if isinstance(value, RangeSweep):
        steps = sorted(value.range())
        if not steps:
            raise ValueError("an empty range")
        if all(isinstance(step, int) for step in steps):
            step = 1 if len(steps) == 1 else int(steps[1] - steps[0])
            return IntDistribution(int(steps[0]), int(steps[-1]), step=step)
        # as categories: the sums of float steps that a grid would have, to the digit
        return CategoricalDistribution([str(step) for step in value.range()])
    return CategoricalDistribution(list(override.sweep_string_iterator()))


def in_words(distribution: BaseDistribution) -> str:
    """A distribution as a person knows it."""
    if isinstance(distribution, CategoricalDistribution):
        return f"a choice of {', '.join(map(str, distribution.choices))}"
    assert isinstance(distribution, IntDistribution | FloatDistribution)
    kind = "integers" if isinstance(distribution, IntDistribution) else "numbers"
    scale = " on a log scale" if distribution.log else ""
    return f"an interval of {kind}{scale}, {distribution.low} to {distribution.high}"


def _ends(distribution: BaseDistribution) -> list[Any]:
    if isinstance(distribution, CategoricalDistribution):
        return list(distribution.choices)
    assert isinstance(distribution, IntDistribution | FloatDistribution)
    return [distribution.low, distribution.high]


def _values(key: str, distribution: BaseDistribution) -> Iterator[Any]:
    if isinstance(distribution, CategoricalDistribution):
        yield from distribution.choices
    elif isinstance(distribution, IntDistribution):
        yield from range(distribution.low, distribution.high + 1, distribution.step)
    else:
        raise InputError(
            f"{key}: sweep.sampler=grid needs values, as in {key}=0.01,0.1; "
            "sweep.sampler=tpe or random searches intervals"
        )
