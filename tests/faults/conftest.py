"""The table of faults tried and survived, printed at the end of `make test-all`."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import REPOSITORY

TABLE: Counter[str] = Counter()


@pytest.fixture
def survived() -> Callable[[str], None]:
    """Counts one fault that was survived."""

    def count(fault: str) -> None:
        TABLE[fault] += 1

    return count


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Prints what was counted."""
    if TABLE:
        terminalreporter.section("faults tried and survived")
        for fault, count in TABLE.items():
            terminalreporter.write_line(f"| {fault} | {count} |")


@pytest.fixture(scope="session", autouse=True)
def server_environment() -> Iterator[None]:
    """The server that children are forked from reads these when it starts."""
    changed: dict[str, Any] = {"PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}
    before = {name: os.environ.get(name) for name in changed}
    os.environ.update(changed)
    yield
    for name, value in before.items():
        if value is None:
            del os.environ[name]
        else:
            os.environ[name] = value


@pytest.fixture(scope="session")
def shared_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the undisturbed runs lie."""
    return tmp_path_factory.mktemp("whole")
