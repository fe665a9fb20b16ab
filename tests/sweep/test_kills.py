"""The kill test itself: it ends, and it can fail."""

from __future__ import annotations

import random
import sys
from pathlib import Path

import pytest

from benchmarks.sweep_kills import Kills, Sweep, disturb


class Command(Sweep):
    """Any program in place of a sweep's command."""

    def __init__(self, folder: Path, code: str) -> None:
        super().__init__(folder, jobs=1)
        self._command = [sys.executable, "-c", code]


def test_kills_that_find_no_job_left_are_not_waited_for(tmp_path: Path) -> None:
    sweep = Command(tmp_path / "sweep", "")
    kills = Kills(wanted=5, work_s=1.0, rng=random.Random(0))
    assert disturb(sweep, kills, jobs=1) == {}
    assert kills.done.total() == 0
    assert sweep.starts == 2  # once more, to see that nothing is done twice


def test_a_sweep_that_fails_undisturbed_is_not_repeated_for_ever(tmp_path: Path) -> None:
    sweep = Command(tmp_path / "sweep", "raise SystemExit('lost')")
    with pytest.raises(RuntimeError, match="status 1 undisturbed:\nlost"):
        disturb(sweep, Kills(wanted=5, work_s=1.0, rng=random.Random(0)), jobs=1)
    assert sweep.starts == 1
