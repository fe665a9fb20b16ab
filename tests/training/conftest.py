"""A small classifier, its data and a trainer, for the tests of what surrounds training."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from lightning.pytorch import Trainer

from cifar_lab.training.library_logging import route_library_logging
from tests.conftest import REPOSITORY
from tests.support.toy import MakeData, MakeTrainer, Toy, ToyData


@pytest.fixture(autouse=True)
def _quiet() -> None:
    route_library_logging()


@pytest.fixture
def run_python() -> Callable[..., subprocess.CompletedProcess[str]]:
    """Runs code in a fresh interpreter with Python's own warning filters."""

    def run(code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        environment = os.environ | {
            "PYTHONPATH": str(REPOSITORY),
            "OMP_NUM_THREADS": "1",
        }
        environment.pop("PYTHONWARNINGS", None)
        done = subprocess.run(
            [sys.executable, "-c", code, *arguments],
            env=environment,
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert done.returncode == 0, done.stderr
        return done

    return run


@pytest.fixture
def toy() -> Toy:
    return Toy()


@pytest.fixture
def toy_data() -> MakeData:
    def make(*, train: int = 4, val: int = 2, test: int = 3) -> ToyData:
        return ToyData(train=train, val=val, test=test)

    return make


@pytest.fixture
def make_trainer(tmp_path: Path) -> MakeTrainer:
    def make(**settings: Any) -> Trainer:
        defaults: dict[str, Any] = {
            "accelerator": "cpu",
            "default_root_dir": tmp_path,
            "max_epochs": 2,
            "logger": False,
            "enable_progress_bar": False,
            "enable_checkpointing": False,
            "enable_model_summary": False,
            "num_sanity_val_steps": 0,
        }
        return Trainer(**(defaults | settings))

    return make
