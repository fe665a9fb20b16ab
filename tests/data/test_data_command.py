"""``python -m cifar_lab.data``, as a person types it."""

from __future__ import annotations

import os
import pty
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from cifar_lab.data.fetch import progress
from cifar_lab.data.fetch.cache import cache_folder
from cifar_lab.data.fetch.progress import transfer_progress
from tests.data.conftest import Folders, Serve

pytestmark = pytest.mark.usefixtures("empty_home")
REPOSITORY = Path(__file__).resolve().parents[2]


def command(*words: object, **options: Any) -> subprocess.Popen[str]:
    # PYTHONPATH: from any working directory, whether or not the package is installed
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True} | options
    line = [sys.executable, "-m", "cifar_lab.data", *map(str, words)]
    return subprocess.Popen(line, env=environment, **options)


def run(*words: object) -> tuple[int, str, str]:
    process = command(*words)
    output, errors = process.communicate(timeout=100)
    return process.returncode, output, errors


def test_it_says_what_it_found_and_verifies_it(class_folders: Folders, tmp_path: Path) -> None:
    cache = tmp_path / "a cache"
    status, output, errors = run(f"root={class_folders.root}", f"cache={cache}")
    assert status == 0, errors
    assert "not the official bytes" in output
    assert "20 training and 10 test images" in output
    assert f"{class_folders.root} (folders)" in output
    assert class_folders.digest in output
    (entry,) = cache.glob("*/")
    assert run("verify", f"cache={cache}") == (0, f"{entry.name}: ok\n", "")
    with (entry / "test.bin").open("r+b") as file:
        file.write(b"?")
    status, output, errors = run("verify", f"cache={cache}", f"root={class_folders.root}")
    assert (status, output) == (0, f"{entry.name}: rebuilt\n")
    (entry / "test.bin").write_bytes(b"")
    class_folders.root.rename(tmp_path / "gone")
    status, output, errors = run("verify", f"cache={cache}")
    assert (status, output) == (2, "")
    assert errors.startswith(f"{entry.name}: damaged: test.bin has 0 bytes for 10 images; ")
    assert "Traceback" not in errors


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["root=/nowhere/at/all"], "data.root=/nowhere/at/all: does not exist"),
        (["offline=true"], "data.offline=true: CIFAR-10 is not on this machine"),
        (["offline=perhaps"], "offline=perhaps: must be true or false"),
        (["rot=/data"], "rot=/data: unknown (did you mean root?)"),
        (["verfiy"], "verfiy: unknown (did you mean verify?)"),
        (["min_rate=fast"], "min_rate=fast: must be a number"),
    ],
)
def test_wrong_input_is_one_line_and_status_2(words: list[str], line: str) -> None:
    status, output, errors = run(*words)
    assert (status, output) == (2, "")
    assert errors.startswith(line)
    assert errors.count("\n") == 1


def test_root_comes_from_the_environment_and_empty_is_unset(
    class_folders: Folders, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CIFAR_LAB_DATA", str(class_folders.root))
    status, output, _ = run("offline=true")
    assert status == 0
    assert class_folders.digest in output
    monkeypatch.setenv("CIFAR_LAB_DATA", "")
    assert run("offline=true")[0] == 2


def test_failed_fetch_lists_each_source(serve: Serve) -> None:
    server = serve(b"too short")
    urls = [server.url("whole"), server.url("missing")]
    status, _, errors = run(f"sources=[{','.join(urls)}]")
    assert status == 2
    assert f" could not be fetched: {urls[0]}: sends something else (9 bytes" in errors
    assert f"; {urls[1]}: 404 Not Found; put the file into " in errors
    assert "Traceback" not in errors


@pytest.mark.parametrize(("signum", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_stopped_fetch_keeps_what_came(serve: Serve, signum: int, status: int) -> None:
    server = serve(b"")
    process = command(f"sources={server.url('official')}", "stall_s=60")
    part = cache_folder(None) / "cifar-10-python.tar.gz.part"
    deadline = time.monotonic() + 60
    while not (part.exists() and part.stat().st_size == 5):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signum)
    _, errors = process.communicate(timeout=30)
    assert process.returncode == status
    assert errors.splitlines()[-1].startswith("stopped; the same command goes on")
    assert "Traceback" not in errors
    assert part.read_bytes() == b"begin"


def test_terminal_gets_a_bar(serve: Serve) -> None:
    server = serve(b"")
    ours, theirs = pty.openpty()
    process = command(f"sources={server.url('official')}", "stall_s=60", stderr=theirs)
    os.close(theirs)
    shown = ""
    deadline = time.monotonic() + 60
    while "170.5 MB" not in shown:
        assert time.monotonic() < deadline
        shown += os.read(ours, 4096).decode()
    process.terminate()
    process.communicate(timeout=30)
    os.close(ours)
    assert "cifar-10-python.tar.gz" in shown


def test_log_gets_a_line_with_rate_and_time_left(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress, "LOG_EVERY_S", 0)
    caplog.set_level("INFO", logger="cifar_lab.data")
    with transfer_progress("archive", 2_000_000, start=500_000) as advance:
        advance(500_000)
    (line,) = [record.getMessage() for record in caplog.records]
    assert line.startswith("archive: 1.0 of 2.0 MB, ")
    assert line.endswith(" s left")


def test_torch_is_not_imported(class_folders: Folders) -> None:
    code = (
        "import sys; from cifar_lab.data.__main__ import main; "
        f"assert main(['root={class_folders.root}']) == 0; assert 'torch' not in sys.modules"
    )
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    subprocess.run([sys.executable, "-c", code], env=environment, check=True)
