"""Streams that the shell has closed, and what a console script may import."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from cifar_lab import streams
from cifar_lab.config.command import run_command
from tests.conftest import TINY, environment, merged, record_of

PYTHON = f"{sys.executable} -m"


@pytest.fixture
def kept() -> Iterator[None]:
    """The three streams as they were."""
    names = ("stdin", "stdout", "stderr")
    before = [getattr(sys, name) for name in names]
    copies = [os.dup(number) for number in range(3)]
    yield
    for number, copy in enumerate(copies):
        os.dup2(copy, number)
        os.close(copy)
        setattr(sys, names[number], before[number])


@pytest.mark.usefixtures("kept")
@pytest.mark.parametrize("closed", [(0,), (1,), (2,), (0, 1, 2)])
def test_a_closed_stream_is_the_null_device(closed: tuple[int, ...]) -> None:
    for number in closed:
        os.close(number)
        setattr(sys, ("stdin", "stdout", "stderr")[number], None)
    streams.open_missing()
    null = os.stat(os.devnull).st_rdev
    assert all(os.fstat(number).st_rdev == null for number in closed)
    assert all(os.get_inheritable(number) for number in closed)
    with open(os.devnull) as file:
        assert file.fileno() > 2
    print("nobody reads it")
    assert 0 not in closed or sys.stdin.read() == ""


@pytest.mark.parametrize("closed", [">&-", "<&- >&- 2>&-"])
@pytest.mark.parametrize(
    ("command", "status"),
    [
        ("cifar_lab typo=1", 2),
        ("cifar_lab --cfg job", 0),
        ("cifar_lab.report --help", 0),
        ("cifar_lab.data root=nothing", 2),
    ],
)
def test_commands_end_with_their_status_where_a_stream_is_closed(
    tmp_path: Path, command: str, status: int, closed: str
) -> None:
    assert _shell(tmp_path, f"{PYTHON} {command} {closed}") == (status, "")


@pytest.mark.slow
@pytest.mark.parametrize("closed", [">&-", "<&- >&- 2>&-"])
def test_a_run_and_a_sweep_finish_where_a_stream_is_closed(tmp_path: Path, closed: str) -> None:
    tiny = " ".join(merged(*TINY, "trainer.max_epochs=1", "threads=1"))
    status, _ = _shell(tmp_path, f"{PYTHON} cifar_lab {tiny} hydra.run.dir=run {closed}")
    assert status == 0
    assert record_of(tmp_path / "run")["status"] == "finished"
    swept = f"{PYTHON} cifar_lab -m {tiny} seed=0,1 hydra.sweep.dir=sweep {closed}"
    assert _shell(tmp_path, swept)[0] == 0
    assert len(list(tmp_path.glob("sweep/*/run.json"))) == 2


def _shell(folder: Path, line: str) -> tuple[int, str]:
    done = subprocess.run(
        ["bash", "-c", line],
        env=environment(),
        cwd=folder,
        capture_output=True,
        text=True,
    )
    trace = done.stderr if "Traceback" in done.stderr else ""
    return done.returncode, trace


# --- the console script ---------------------------------------------------------------------------


def _script(folder: Path, *arguments: str) -> str:
    done = subprocess.run(
        [Path(sys.executable).with_name("cifar-lab"), *arguments],
        env=environment(),
        cwd=folder,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    return done.stderr


def test_the_console_script_imports_what_lies_beside_the_person(tmp_path: Path) -> None:
    (tmp_path / "beside.py").write_text("number = 1\n")
    said = _script(tmp_path, "data._target_=beside.number")
    assert said == "cifar_lab: data._target_=beside.number: is no class or function\n"
    assert "No module named" in _script(tmp_path, "data._target_=elsewhere.number")


def test_an_output_that_is_full_is_one_line(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def prints(words: list[str]) -> int:
        print("a line" * (10**5 if words else 1))  # beyond the buffer, and within it
        return 0

    for words in ([], ["more"]):
        full = open("/dev/full", "w")  # noqa: SIM115  (what is left of it can't be closed)
        monkeypatch.setattr(sys, "stdout", full)
        assert run_command(words, prints, text="help", prefix="x: ") == 1
        sys.stdout.close()  # the null device by now
        with suppress(OSError):
            full.close()
        assert capsys.readouterr().err == (
            "x: standard output can't be written (No space left on device)\n"
        )


def test_an_empty_argument_is_not_the_working_directory(
    capsys: pytest.CaptureFixture[str],
) -> None:
    def never(words: list[str]) -> int:
        raise AssertionError(words)

    assert run_command([""], never, text="help") == 2
    assert capsys.readouterr().err == (
        "cifar_lab: '': an argument is empty; is its variable set?\n"
    )


@pytest.mark.slow
@pytest.mark.parametrize("module", ["cifar_lab --cfg job", "cifar_lab.data --help"])
def test_a_full_disk_and_a_reader_that_leaves_end_a_command(tmp_path: Path, module: str) -> None:
    assert _shell(tmp_path, f"{PYTHON} {module} > /dev/full") == (1, "")
    left = f"{PYTHON} {module} | head -1 > /dev/null; exit ${{PIPESTATUS[0]}}"
    assert _shell(tmp_path, left) == (0, "")
