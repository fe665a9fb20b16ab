"""A command that serves, in a process of its own."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.conftest import environment


@contextmanager
def served(
    command: str, folder: Path, **variables: str
) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """``python -m cifar_lab.<command> folder`` in a process of its own, and its address."""
    process = subprocess.Popen(
        [sys.executable, "-m", f"cifar_lab.{command}", str(folder)],
        env=environment(**variables),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert process.stdout is not None
    assert process.stderr is not None
    try:
        said = process.stdout.readline()
        address = process.stdout.readline().strip()
        assert address, process.stderr.read()
        assert "Ctrl-C" in said
        yield process, address.partition("#")[0]
    finally:
        if process.poll() is None:
            process.kill()
        process.wait()
        process.stdout.close()
        process.stderr.close()
