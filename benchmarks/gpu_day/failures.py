"""A plugin of pytest: what a failure said is printed at once, for a session may be cut off."""

from __future__ import annotations

import json
import os

import pytest

_CHARACTERS = 3000


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """A line of JSON: the test, and the end of its traceback."""
    # a parallel worker's output is nobody's; its reports come here as well
    if report.failed and "PYTEST_XDIST_WORKER" not in os.environ:
        print(f"\nFAILURE {json.dumps([report.nodeid, str(report.longrepr)[-_CHARACTERS:]])}")
