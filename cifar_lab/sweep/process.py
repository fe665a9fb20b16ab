"""One process per job, forked from a server that has imported everything once.

``multiprocessing``'s fork server is the engine. Its children are fresh: what one of them does to
globals, RNGs, the environment or CUDA ends with it.
"""

from __future__ import annotations

import ctypes
import fcntl
import json
import multiprocessing
import os
import pkgutil
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from multiprocessing import forkserver, reduction, util
from multiprocessing.context import ForkServerContext, ForkServerProcess
from pathlib import Path
from typing import Any, TextIO

from cifar_lab import signals, streams
from cifar_lab.errors import Interrupted
from cifar_lab.records.files import shorten_paths_of_sockets

_PRELOAD = "cifar_lab.sweep.preload"
_PR_SET_PDEATHSIG = 1  # linux/prctl.h
# The file that tells the fork server which dataset to open. It is locked until `tell_data` has
# written: the server starts before the sweep is composed, and imports meanwhile.
DATA_VARIABLE = "CIFAR_LAB_SWEEP_DATA"
_data_file: TextIO | None = None
# In the fork server and what it forks: the server's; the preload sets it.
server_pid: int | None = None


def warm_up() -> None:
    """Starts the fork server, which imports while the caller goes on; again: costs nothing."""
    global _data_file
    shorten_paths_of_sockets()
    if _data_file is None:
        path = Path(util.get_temp_dir()) / "data.json"
        _data_file = path.open("w", encoding="utf-8")  # until `tell_data`
        fcntl.flock(_data_file, fcntl.LOCK_EX)
    # the server inherits that it ignores Ctrl-C, which is the supervisor's to pass on
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with _importable():
            _context()
            forkserver.ensure_running()
    finally:
        signal.signal(signal.SIGINT, before)


def tell_data(data: Mapping[str, Any] | None) -> None:
    """Has the server open the dataset of this resolved ``data`` group for all jobs; None: of none.

    Only what is said first counts. A job whose data are others opens those itself.
    """
    warm_up()
    assert _data_file is not None
    if not _data_file.closed:
        _data_file.write(json.dumps(data))
        _data_file.close()  # and with it the lock


def start(
    target: str,
    argument: Any,
    *,
    environment: Mapping[str, str],
    output: Path | None = None,
    name: str | None = None,
) -> ForkServerProcess:
    """Runs ``target(argument)`` in a process of its own; what it returns is the exit status.

    Args:
        target: import path, ``package.module:function``.
        argument: pickled.
        environment: all of it; CUDA and thread pools read it at their first use, in the process.
        output: file that standard output and error are appended to; None: this process's own.
        name: of the process, for its messages.
    """
    tell_data(None)  # else the server would wait for it
    streams.open_missing()
    theirs = str(output) if output is not None else [_Stream(n) for n in (1, 2)]
    arguments = (target, argument, dict(environment), theirs)
    with _importable():
        for last_try in (False, True):
            process = _context().Process(target=enter, args=arguments, name=name)
            try:
                process.start()
                break
            except (OSError, EOFError):  # the server was killed just now: it is started anew
                if last_try:
                    raise
    return process


def kill(process: ForkServerProcess) -> None:
    """SIGKILL to the process and to what it started."""
    process.kill()
    if process.pid is not None:
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)


class _Stream:
    """One of this process's streams, to be given to a worker: the server's own may be another."""

    def __init__(self, number: int) -> None:
        self.number = number

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return _duplicated, (self.number, reduction.DupFd(self.number))


def _duplicated(number: int, duplicate: Any) -> _Stream:
    file = duplicate.detach()
    os.dup2(file, number)
    os.close(file)
    return _Stream(number)


def enter(target: str, argument: Any, environment: Mapping[str, str], output: object) -> None:
    """Where every worker begins; ends with the status that ``target`` returns.

    Its streams are the caller's if ``output`` holds those: they are set where it is unpickled.
    """
    os.setpgid(0, 0)  # so that `kill` reaches the ranks and loaders that a job starts
    _end_with_parent()
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the supervisor's to pass on
    signals.install()
    os.environ.clear()
    os.environ.update(environment)
    if isinstance(output, str):
        file = os.open(output, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        os.dup2(file, 1)
        os.dup2(file, 2)
        os.close(file)
    try:
        sys.exit(pkgutil.resolve_name(target)(argument))
    except Interrupted as stop:
        sys.exit(stop.exit_status)


def die_with_parent() -> None:
    """Has Linux kill this process when the one that made it has ended; elsewhere nothing."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _context() -> ForkServerContext:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([_PRELOAD])
    return context


def _end_with_parent() -> None:
    # the supervisor's death closes a pipe; the fork server's sends a signal, where Linux is
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        parent.join()
        os.killpg(0, signal.SIGKILL)

    threading.Thread(target=watch, name="parent", daemon=True).start()
    die_with_parent()
    if server_pid is not None and os.getppid() != server_pid:  # it died before we asked
        os.kill(os.getpid(), signal.SIGKILL)


@contextmanager
def _importable() -> Iterator[None]:
    # the server starts as `python -c` and would pass over a preload that it can't find in silence
    root, path = str(Path(__file__).resolve().parents[2]), os.environ.get("PYTHONPATH")
    theirs = {"PYTHONPATH": os.pathsep.join([root, *([path] if path else [])])}
    if _data_file is not None:
        theirs[DATA_VARIABLE] = _data_file.name
    before = {key: os.environ.get(key) for key in theirs}
    os.environ.update(theirs)
    try:
        yield
    finally:
        for key, value in before.items():
            if value is None:
                del os.environ[key]
            else:
                os.environ[key] = value
