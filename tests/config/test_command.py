"""What the commands beside a run share."""

from __future__ import annotations

import sys

import pytest

from cifar_lab.config.command import run_command


def test_a_reader_that_has_what_it_wanted_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def command(words: list[str]) -> int:
        raise BrokenPipeError  # `| head`

    before = sys.stdout
    monkeypatch.setattr(sys, "stdout", before)  # is replaced
    assert run_command([], command, text=None) == 0
    assert sys.stdout is not before
    sys.stdout.close()  # it stays open to the end of a process
