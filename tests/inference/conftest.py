"""Two finished runs that differ by their seed; nobody changes their folders."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.finished import CNN, QUICK, finish


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return finish(tmp_path_factory.mktemp("finished") / "resnet", *QUICK, "trainer.max_epochs=3")


@pytest.fixture(scope="session")
def another(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return finish(tmp_path_factory.mktemp("finished") / "cnn", *CNN, "seed=4")
