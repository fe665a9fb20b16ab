"""The real command line in a child process, with a fault waiting in it.

The children are forked from a server that has everything imported, so that a start costs a
fraction of a second rather than ten. `SERVER_ENVIRONMENT` has to be set before the first start.
"""

from __future__ import annotations

import errno
import itertools
import os
import signal
import sys
from collections.abc import Callable, Iterator
from multiprocessing import get_context
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import cifar_lab.data.datamodule
import cifar_lab.model.cnn
import cifar_lab.model.resnet
import cifar_lab.run.run
import cifar_lab.training.callbacks.checkpoints as checkpoints
import cifar_lab.training.fit
from cifar_lab.__main__ import main
from cifar_lab.training.classifier import Classifier
from cifar_lab.training.loggers.metrics_csv import MetricsCsv
from tests.conftest import merged

_SERVER = get_context("forkserver")
# Every call by which a run changes what lies on the disk under a name, or makes it last.
FILE_OPERATIONS = ("replace", "link", "rename", "fsync", "unlink", "mkdir")


def start(
    arguments: tuple[str, ...], *, folder: Path, output: Path, fault: dict[str, Any] | None = None
) -> BaseProcess:
    """Starts a command line in ``folder``; what it prints goes to the file ``output``."""
    _SERVER.set_forkserver_preload([__name__])
    process = _SERVER.Process(
        target=_run_command_line, args=(arguments, str(folder), str(output), fault)
    )
    process.start()
    return process


def _run_command_line(
    arguments: tuple[str, ...], folder: str, output: str, fault: dict[str, Any] | None
) -> None:
    os.chdir(folder)
    os.environ["XDG_CACHE_HOME"] = f"{folder}/cache"
    with open(output, "ab", buffering=0) as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    if fault is not None:
        _FAULTS[fault["kind"]](**{k: v for k, v in fault.items() if k != "kind"})
    sys.exit(main(merged(*arguments)))


# --- faults ---------------------------------------------------------------------------------------


def _before_call(owner: Any, name: str, act: Callable[[int], None]) -> None:
    original, calls = getattr(owner, name), itertools.count()

    def wrapped(*arguments: Any, **named: Any) -> Any:
        act(next(calls))
        return original(*arguments, **named)

    setattr(owner, name, wrapped)


def _kill_at_file_operation(*, number: int) -> None:
    """SIGKILL before the n-th change on the disk: nothing else changes it between two of them."""
    counter = itertools.count()

    def moment(_: int) -> None:
        if next(counter) == number:
            os.kill(os.getpid(), signal.SIGKILL)

    for name in FILE_OPERATIONS:
        _before_call(os, name, moment)


PLACES: dict[str, tuple[Any, str]] = {
    "build": (cifar_lab.run.run, "_make_folder"),
    "fit": (Classifier, "training_step"),
    "validation": (Classifier, "validation_step"),
    "checkpoint": (checkpoints, "add_digest"),
    "logger": (MetricsCsv, "log_metrics"),
    "epoch end": (Classifier, "on_train_epoch_end"),
    "test": (Classifier, "test_step"),
    "predictions": (cifar_lab.run.run, "_keep"),
}


def _send_signal(*, place: str, call: int, signums: list[int]) -> None:
    def act(number: int) -> None:
        if number == call:
            for signum in signums:
                os.kill(os.getpid(), signum)

    _before_call(*PLACES[place], act)


def _raise(*, place: str, call: int, error: str) -> None:
    import torch

    errors: dict[str, Callable[[], BaseException]] = {
        "MemoryError": MemoryError,
        "OutOfMemoryError": lambda: torch.OutOfMemoryError("CUDA out of memory"),
        "ZeroDivisionError": lambda: ZeroDivisionError("on purpose"),
        "ENOSPC": lambda: OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)),
        "EROFS": lambda: OSError(errno.EROFS, os.strerror(errno.EROFS)),
    }

    def act(number: int) -> None:
        if number == call:
            raise errors[error]()

    _before_call(*PLACES[place], act)


_FAULTS: dict[str, Callable[..., None]] = {
    "kill at file operation": _kill_at_file_operation,
    "signal": _send_signal,
    "raise": _raise,
}


def numbers() -> Iterator[int]:
    """0, 1, 2, ..."""
    return itertools.count()
