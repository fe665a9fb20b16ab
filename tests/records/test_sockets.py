"""A temporary folder whose name is too long for the sockets between processes."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from multiprocessing import process, util
from multiprocessing.connection import Listener
from pathlib import Path

import pytest

from cifar_lab.records.files import shorten_paths_of_sockets
from tests.conftest import TINY, environment, merged, record_of


@pytest.fixture
def long_folder(tmp_path: Path) -> Path:
    folder = tmp_path / ("x" * 120)
    folder.mkdir()
    return folder


def test_sockets_are_made_where_their_paths_fit(
    long_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(long_folder))
    config = process.current_process()._config  # type: ignore[attr-defined]  # where it is kept
    monkeypatch.setitem(config, "tempdir", None)
    shorten_paths_of_sockets()
    Listener(family="AF_UNIX").close()  # multiprocessing removes the folder at its end
    assert Path(util.get_temp_dir()).parent == Path("/tmp")
    assert tempfile.gettempdir() == str(long_folder)


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
