"""Finished runs to be read back."""

from __future__ import annotations

import shutil
from pathlib import Path

from tests.conftest import TINY, merged

# a second: a ResNet of 1,454 parameters
QUICK = (*TINY, "trainer.max_epochs=1", "threads=1", "logger=csv", "seed=3")
CNN = (*[a for a in QUICK if not a.startswith("model")], "model=cnn", "model.width=2")


def finish(run_dir: Path, *arguments: str) -> Path:
    """Trains and tests in this process."""
    from cifar_lab.__main__ import main

    assert main(merged(*arguments, f"hydra.run.dir={run_dir}")) == 0
    return run_dir


def copied(run_dir: Path, to: Path) -> Path:
    """The same folder elsewhere, to be changed."""
    return Path(shutil.copytree(run_dir, to))
