"""A temporary folder whose name is too long for the sockets between processes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import TINY, environment, merged, record_of


@pytest.fixture
def long_folder(tmp_path: Path) -> Path:
    folder = tmp_path / ("x" * 120)
    folder.mkdir()
    return folder


LISTEN = """
import tempfile
from multiprocessing import util
from multiprocessing.connection import Listener
from cifar_lab.records.files import shorten_paths_of_sockets

shorten_paths_of_sockets()
Listener(family="AF_UNIX").close()
print(util.get_temp_dir(), tempfile.gettempdir(), sep="\\n")
"""


def test_sockets_are_made_where_their_paths_fit(long_folder: Path) -> None:
    # in a process of its own: multiprocessing looks for its folder once
    printed = subprocess.run(
        [sys.executable, "-c", LISTEN],
        env=environment(TMPDIR=str(long_folder)),
        check=True,
        capture_output=True,
        text=True,
        timeout=60,
    ).stdout.splitlines()
    assert [str(Path(printed[0]).parent), printed[1]] == ["/tmp", str(long_folder)]


@pytest.mark.slow
@pytest.mark.timeout(120)
@pytest.mark.parametrize(
    "arguments",
    [
        ("data.loader=torchvision", "data.workers=2", "hydra.run.dir=out/run"),
        ("-m", "seed=0", "hydra.sweep.dir=out"),
    ],
)
def test_workers_and_jobs_run_with_a_long_temporary_folder(
    tmp_path: Path, long_folder: Path, arguments: tuple[str, ...]
) -> None:
    subprocess.run(
        [sys.executable, "-m", "cifar_lab", *merged(*TINY, "trainer.max_epochs=1"), *arguments],
        env=environment(TMPDIR=str(long_folder)),
        cwd=tmp_path,
        check=True,
        timeout=60,
    )
    (run_dir,) = (path.parent for path in tmp_path.glob("out/*/run.json"))
    assert record_of(run_dir)["status"] == "finished"
