"""One value against what is allowed; each raises InputError in one line that names the key."""

from __future__ import annotations

from typing import Any

from cifar_lab.errors import InputError


def check_whole(name: str, value: Any, low: int, high: int | None = None) -> None:
    """A whole number in low..high; True and 2.0 are none."""
    whole = isinstance(value, int) and not isinstance(value, bool)
    if not whole or value < low or (high is not None and value > high):
        allowed = f"of {low} or more" if high is None else f"in {low}..{high}"
        raise InputError(f"{name}={value!r}: must be a whole number {allowed}")


def check_number(name: str, value: Any, low: float, high: float | None = None) -> None:
    """A finite number in low..high."""
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not number or not low <= value < float("inf") or (high is not None and value > high):
        allowed = f"of {low:g} or more" if high is None else f"in {low:g}..{high:g}"
        raise InputError(f"{name}={value!r}: must be a number {allowed}")


def check_choice(name: str, value: Any, allowed: tuple[Any, ...]) -> None:
    """One of the values allowed, of the same type: 1 is not true."""
    if not any(type(value) is type(choice) and value == choice for choice in allowed):
        listed = ", ".join(str(choice).lower() for choice in allowed)
        raise InputError(f"{name}={value!r}: must be one of {listed}")


def check_path(name: str, value: Any) -> None:
    """A path as text, or None."""
    if not isinstance(value, str | None):
        raise InputError(f"{name}={value!r}: must be a path (in quotes where it is a number)")
