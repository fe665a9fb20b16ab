"""Contenders take turns, one process at a time."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from benchmarks import child
from benchmarks.contenders import Contender
from benchmarks.measurement import Measurement


def measure(
    table: str, contenders: Sequence[Contender], *, rounds: int, timeout_s: float, folder: Path
) -> Iterator[Measurement]:
    """Every contender once a round; who begins changes from round to round.

    One that fails says so in its measurement, and the others go on.

    Args:
        folder: for the folders of the single processes, which are removed again.
    """
    for number in range(rounds):
        first = number % max(1, len(contenders))
        for position, contender in enumerate([*contenders[first:], *contenders[:first]]):
            turn = Measurement(
                table=table, contender=contender.name, round=number + 1, position=position + 1
            )
            with tempfile.TemporaryDirectory(dir=folder, ignore_cleanup_errors=True) as own:
                yield _measured(turn, contender, Path(own), timeout_s)


def _measured(
    turn: Measurement, contender: Contender, folder: Path, timeout_s: float
) -> Measurement:
    try:
        ended = child.run(
            contender.command(folder),
            cwd=contender.cwd or folder,
            timeout_s=timeout_s,
            env=contender.env,
        )
    except OSError as error:
        return replace(turn, error=f"can't be started ({error.strerror})")
    turn = replace(turn, wall_s=ended.wall_s)
    if ended.timed_out:
        return replace(turn, error=f"took longer than {timeout_s:.0f} s")
    if ended.status:
        return replace(turn, error=f"exit status {ended.status}: {_last_words(ended)}")
    try:
        told = contender.read(ended, folder)
    except (OSError, ValueError, KeyError) as error:
        return replace(turn, error=f"its result can't be read ({error})")
    return replace(
        turn, images_per_s=told.images_per_s, accuracy=told.accuracy, start_s=told.start_s
    )


def _last_words(ended: child.Ended) -> str:
    said = [line.strip() for line in (ended.output + ended.errors).splitlines() if line.strip()]
    return " | ".join(said[-2:]) or "it said nothing"
