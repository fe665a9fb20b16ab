"""Every test runs in an empty folder of its own, with a cache of its own, and leaves no trace."""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

REPOSITORY = Path(__file__).resolve().parent.parent


def pytest_configure() -> None:
    """Signals arrive in the tests and in what they start, however the suite was started.

    In `make test &` of a script SIGINT is ignored; what is started from there inherits that, and a
    run is right to keep it. Processes of tests that share the cores have one thread each: OpenMP's
    others spin where they wait.
    """
    if "PYTEST_XDIST_WORKER" in os.environ:
        os.environ.setdefault("OMP_NUM_THREADS", "1")  # read where torch is imported
    for signum, handler in (
        (signal.SIGINT, signal.default_int_handler),
        (signal.SIGTERM, signal.SIG_DFL),
    ):
        if signal.getsignal(signum) is signal.SIG_IGN:
            signal.signal(signum, handler)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests of a GPU skip where there is none."""
    of_gpu = [item for item in items if item.get_closest_marker("gpu")]
    if of_gpu:
        import torch

        if not torch.cuda.is_available():
            for item in of_gpu:
                item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))


@pytest.fixture(autouse=True)
def isolated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The working directory is ``tmp_path``; nothing of the person's own settings is read."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("CIFAR_LAB_DATA", raising=False)
    # a run in a fixture of a whole module has taken the signals over, and they stayed so
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    root = logging.getLogger()
    before, level = root.handlers[:], root.level
    yield
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    for handler in root.handlers[:]:
        if handler not in before:
            root.removeHandler(handler)
            handler.close()
    root.setLevel(level)


@pytest.fixture
def lab(capfd: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """Runs a command line in this process: (exit status, standard output, standard error).

    Of two arguments for one key the later counts (`merged`).
    """

    def run(*arguments: str) -> tuple[int, str, str]:
        from cifar_lab.__main__ import main

        capfd.readouterr()
        status = main(merged(*arguments))
        captured = capfd.readouterr()
        return status, captured.out, captured.err

    return run


# A run of a second: a ResNet of 2,000 parameters, a few batches of synthetic images.
TINY = (
    "data=synthetic",
    "data.train_size=600",
    "data.test_size=200",
    "data.val_size=200",
    "data.batch_size=50",
    "model=resnet10",
    "model.num_blocks=[1,1]",
    "model.width=4",
    "trainer=cpu",
    "callbacks=checkpoints",
    "monitors=none",
    "trainer.max_epochs=2",
)


def merged(*arguments: str) -> list[str]:
    """The arguments without those that a later one replaces: a command line has one for a key."""
    last = {argument.lstrip("+~").partition("=")[0]: argument for argument in arguments}
    return [argument for argument in arguments if argument in last.values()]


def record_of(run_dir: Path) -> dict[str, Any]:
    """run.json as it lies on disk."""
    fields: dict[str, Any] = json.loads((run_dir / "run.json").read_text())
    return fields


def is_timing(metric: str) -> bool:
    """Whether a metric is none of training but of the clock, and differs from run to run."""
    return metric.removeprefix("final/") == "images_per_s" or metric.startswith("timings/")


# What every data module is told, beside its own source, augmentation and seed.
FEED: dict[str, Any] = {
    "val_seed": 0,
    "normalization": "channel",
    "drop_last": False,
    "shuffle": True,
    "loader": "device",
    "workers": 0,
    "transform": None,
    "channels_last": False,
}


def started(run_dir: Path, *arguments: str) -> subprocess.Popen[str]:
    """A run in a process of its own that has written its first checkpoint; its stderr is piped."""
    process = subprocess.Popen(
        [sys.executable, "-m", "cifar_lab", *merged(*arguments), f"hydra.run.dir={run_dir}"],
        env=environment(),
        cwd=run_dir.parent,
        stderr=subprocess.PIPE,
        text=True,
    )
    while not (run_dir / "checkpoints" / "last.ckpt").exists():
        assert process.poll() is None
        time.sleep(0.05)
    return process


def environment(**more: str) -> dict[str, str]:
    """For child processes: one thread each, this repository importable."""
    path = os.pathsep.join([str(REPOSITORY), *os.environ.get("PYTHONPATH", "").split(os.pathsep)])
    return {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", **more}
