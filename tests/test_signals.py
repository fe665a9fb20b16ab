"""Who ignores a signal, and who doesn't."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from cifar_lab import signals
from cifar_lab.errors import Interrupted
from tests.conftest import environment


def test_tests_that_send_signals_hold_in_a_suite_that_runs_in_the_background(
    tmp_path: Path,
) -> None:
    """A shell without job control starts ``cmd &`` with SIGINT ignored."""
    (tmp_path / "test_inner.py").write_text(
        "import signal, subprocess, sys\n"
        "def test_what_a_child_inherits():\n"
        "    code = 'import signal; print(signal.getsignal(signal.SIGINT))'\n"
        "    out = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True)\n"
        "    assert 'default_int_handler' in out.stdout\n"
    )
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-p",
        "tests.conftest",
        "-p",
        "no:cacheprovider",
    ]
    done = subprocess.run(
        ["sh", "-c", '"$@" & wait $!', "sh", *command, str(tmp_path / "test_inner.py")],
        env=environment(),
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout


def test_an_error_that_a_signal_led_to_is_the_signals() -> None:
    """An import that is broken off may end in any error, and be tried again."""

    def broken_off(signum: int) -> None:
        try:
            signal.raise_signal(signum)
        except Interrupted as stop:
            raise RecursionError from stop

    signals.install()
    for signum in (signal.SIGTERM, signal.SIGINT):
        with pytest.raises(Interrupted) as stopped, signals.prevailing():
            broken_off(signum)
        assert stopped.value.exit_status == 128 + signum
    with pytest.raises(RecursionError), signals.prevailing():  # that one was another's
        raise RecursionError


def test_a_run_that_was_started_with_a_signal_ignored_keeps_that() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signals.install()
    signal.raise_signal(signal.SIGINT)
    with pytest.raises(Interrupted):
        signal.raise_signal(signal.SIGTERM)
