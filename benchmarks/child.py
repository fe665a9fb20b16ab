"""One program as a child process: its clock, its output, and its end whatever happens."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from cifar_lab import signals

_TERMINAL_SIZE = {"COLUMNS": "120", "LINES": "40", "TERM": "xterm-256color"}


@dataclass(frozen=True, kw_only=True)
class Ended:
    """A process that is over.

    Attributes:
        status: exit status; negative where a signal ended it.
        output: standard output.
        errors: standard error, as a terminal got it.
        wall_s: from its start to its end.
        first_line_s: from its start to its first line of output; None without one.
        timed_out: it was ended because it took too long.
    """

    status: int
    output: str
    errors: str
    wall_s: float
    first_line_s: float | None
    timed_out: bool


def run(
    command: Sequence[str] | str, *, cwd: Path, timeout_s: float, env: Mapping[str, str]
) -> Ended:
    """Runs a command (a string goes through the shell) in a session of its own.

    Its standard error is a terminal, so that progress bars cost what they cost a person. However
    this ends, Ctrl-C included, the process and all that it started are gone then.

    Raises:
        OSError: the command can't be started.
    """
    output: list[str] = []
    first_line_s = None
    process: subprocess.Popen[str] | None = None
    with _terminal() as (stderr, errors):
        started = time.perf_counter()
        try:
            # a signal between the start and the assignment would leave a process that nobody knows
            with signals.shielded():
                process = _start(command, cwd, env, stderr)
            signals.poll()
            with _deadline(process, timeout_s) as timed_out:
                assert process.stdout is not None
                for line in process.stdout:
                    first_line_s = first_line_s or time.perf_counter() - started
                    output.append(line)
                status = process.wait()
            wall_s = time.perf_counter() - started
        finally:
            if process is not None:
                _kill(process)
                process.wait()
                if process.stdout is not None:
                    process.stdout.close()
    return Ended(
        status=status,
        output="".join(output),
        errors=b"".join(errors).decode(errors="replace"),
        wall_s=wall_s,
        first_line_s=first_line_s,
        timed_out=timed_out.is_set(),
    )


def _start(
    command: Sequence[str] | str, cwd: Path, env: Mapping[str, str], stderr: int
) -> subprocess.Popen[str]:
    return subprocess.Popen(
        command,
        shell=isinstance(command, str),
        cwd=cwd,
        env={**os.environ, **_TERMINAL_SIZE, **env},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=stderr,
        text=True,
        errors="replace",
        start_new_session=True,
    )


@contextmanager
def _deadline(process: subprocess.Popen[str], timeout_s: float) -> Iterator[threading.Event]:
    """Kills the process when its time is over; the event says whether that was so."""
    over = threading.Event()

    def give_up() -> None:
        over.set()
        _kill(process)

    timer = threading.Timer(timeout_s, give_up)
    timer.daemon = True
    timer.start()
    try:
        yield over
    finally:
        timer.cancel()


def _kill(process: subprocess.Popen[str]) -> None:
    # the group outlives its leader where workers do
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)


@contextmanager
def _terminal() -> Iterator[tuple[int, list[bytes]]]:
    """(file descriptor of a terminal, what was written to it, complete afterwards)."""
    ours, theirs = os.openpty()
    written: list[bytes] = []

    def drain() -> None:
        with suppress(OSError):  # EIO: nobody has the other end open any more
            while data := os.read(ours, 65536):
                written.append(data)

    thread = threading.Thread(target=drain, daemon=True)
    thread.start()
    try:
        yield theirs, written
    finally:
        os.close(theirs)
        thread.join(timeout=5)
        os.close(ours)
