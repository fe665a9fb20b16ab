"""What stands in run.json, who counts as alive, and what a killed process has left beside it."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import socket
import subprocess
import sys
import threading
import time
from datetime import UTC, datetime, timedelta
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest

from cifar_lab.records import environment
from cifar_lab.records import record as module
from cifar_lab.records.environment import package_versions, process_started
from cifar_lab.records.files import remove_leftovers, sync_folder, write_atomically
from cifar_lab.records.record import RecordFile, RunRecord, command_line, now
from tests.conftest import record_of

HERE = {"schema": 1, "status": "running", "host": socket.gethostname(), "pid": os.getpid()}


def opened(folder: Path, **fields: Any) -> RecordFile:
    return RecordFile(folder, RunRecord(status="running", **fields))


def opened_with_its_thread(folder: Path) -> tuple[RecordFile, threading.Thread]:
    before = set(threading.enumerate())
    file = opened(folder)
    (thread,) = (t for t in set(threading.enumerate()) - before if t.name == "heartbeat")
    return file, thread


def written(folder: Path, **fields: Any) -> Path:
    (folder / "run.json").write_text(json.dumps({**HERE, **fields}))
    return folder


# --- the file -------------------------------------------------------------------------------------


def test_a_new_record_says_what_runs_where_since_when(tmp_path: Path) -> None:
    before = now()
    file = opened(tmp_path)
    fields = record_of(tmp_path)
    assert before <= datetime.fromisoformat(fields["heartbeat"]) <= now()
    assert {key: fields[key] for key in HERE} == HERE
    assert fields["pid_started"] == process_started(os.getpid())
    assert file.refused is None
    file.close("finished")


def test_times_are_utc_to_the_second() -> None:
    then = now()
    assert then.utcoffset() == timedelta(0)
    assert then.microsecond == 0
    assert timedelta(0) <= datetime.now(UTC) - then < timedelta(seconds=30)


def test_an_ending_is_written_and_the_heartbeat_ends(tmp_path: Path) -> None:
    record, thread = opened_with_its_thread(tmp_path)
    before = now()
    assert record.close("failed", "why") is True
    fields = record_of(tmp_path)
    assert (fields["status"], fields["error"]) == ("failed", "why")
    assert before <= datetime.fromisoformat(fields["ended"]) <= now()
    thread.join(5)
    assert not thread.is_alive()


def test_the_heartbeat_goes_on_by_itself_in_a_thread_that_holds_up_nobody(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "HEARTBEAT_S", 0.01)
    record, thread = opened_with_its_thread(tmp_path)
    assert thread.daemon
    for _ in range(2):
        (tmp_path / "run.json").unlink()
        deadline = time.monotonic() + 20
        while not (tmp_path / "run.json").exists():
            assert time.monotonic() < deadline
            time.sleep(0.005)
    record.close("finished")
    thread.join(5)
    assert record_of(tmp_path)["status"] == "finished"


def test_updating_says_whether_the_disk_took_it_and_nothing_is_forgotten(tmp_path: Path) -> None:
    record = opened(tmp_path, metrics={"a": 1.0})
    path = tmp_path / "run.json"
    path.unlink()
    path.mkdir()  # what can't be replaced by a file
    assert record.update(steps=3, metrics={"b": 2.0}) is False
    assert isinstance(record.refused, IsADirectoryError)
    assert list(tmp_path.iterdir()) == [path]
    path.rmdir()
    assert record.update(epochs=1) is True
    fields = record_of(tmp_path)
    assert (fields["steps"], fields["epochs"], fields["metrics"]) == (3, 1, {"a": 1.0, "b": 2.0})
    record.close("finished")


def test_an_update_replaces_what_is_no_dictionary_and_moves_the_heartbeat(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = opened(tmp_path, metrics={"a": 1}, note="x")
    later = now() + timedelta(hours=1)
    monkeypatch.setattr(module, "now", lambda: later)
    record.update(note={"y": 1}, new={"z": 2})
    fields = record_of(tmp_path)
    assert datetime.fromisoformat(fields["heartbeat"]) == later
    assert (fields["note"], fields["metrics"], fields["new"]) == ({"y": 1}, {"a": 1}, {"z": 2})
    record.close("finished")


def test_fields_of_a_later_version_are_kept(tmp_path: Path) -> None:
    opened(tmp_path, git={"sha": "a", "branch": "main"}, later=[1]).close("finished")
    RunRecord.read(tmp_path).with_fields(steps=3).write(tmp_path)
    fields = record_of(tmp_path)
    assert (fields["git"]["branch"], fields["later"], fields["steps"]) == ("main", [1], 3)


@pytest.mark.parametrize(
    "fields",
    [
        {"metrics": {"test/acc": 95.0}},
        {"metrics": {"test/acc": "high"}},
        {"heartbeat": "yesterday"},
        {"heartbeat": "2026-01-01T00:00:00"},
        {"epochs": 10**400},
        {"epochs": -1},
        {"status": "great"},
        {"starts": 5},
        {"timings": {"fit_s": -1}},
    ],
)
def test_what_is_no_record_is_said_in_one_line(tmp_path: Path, fields: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(fields))) as error:
        RunRecord.read(written(tmp_path, **fields))
    assert "\n" not in str(error.value)


def test_a_folder_that_can_not_hold_it_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        opened(tmp_path / "gone")


def test_a_person_can_read_it(tmp_path: Path) -> None:
    opened(tmp_path, metrics={"a": 1.5}).close("finished")
    text = (tmp_path / "run.json").read_text()
    assert text == json.dumps(json.loads(text), indent=2) + "\n"


def test_text_and_bytes_are_written_whole_over_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "file"
    for content, data in (("é\n", b"\xc3\xa9\n"), (b"\xff\x00", b"\xff\x00"), ("", b"")):
        write_atomically(path, content)
        assert path.read_bytes() == data
        assert list(tmp_path.iterdir()) == [path]


def test_what_failed_is_told_whatever_becomes_of_the_half_written_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*arguments: Any) -> None:
        raise OSError(28, "full")

    def gone(*arguments: Any, **keywords: Any) -> None:
        raise OSError(5, "gone")

    monkeypatch.setattr(os, "fsync", full)
    monkeypatch.setattr(Path, "unlink", gone)
    with pytest.raises(OSError, match="full"):
        write_atomically(tmp_path / "file", "text")
    assert not (tmp_path / "file").exists()


def test_a_folder_without_anything_to_flush_is_no_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flushed: list[Path] = []

    def flush(descriptor: int) -> None:
        flushed.append(Path(os.readlink(f"/proc/self/fd/{descriptor}")))
        raise OSError(22, "invalid")

    if not Path("/proc/self/fd").exists():
        pytest.skip("read from /proc")
    monkeypatch.setattr(os, "fsync", flush)
    before = len(os.listdir("/proc/self/fd"))
    sync_folder(tmp_path)
    assert flushed == [tmp_path]
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_file_and_its_folder_are_flushed_before_it_is_said_to_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not Path("/proc/self/fd").exists():
        pytest.skip("read from /proc")
    flushed: list[Path] = []
    monkeypatch.setattr(
        os, "fsync", lambda fd: flushed.append(Path(os.readlink(f"/proc/self/fd/{fd}")))
    )
    write_atomically(tmp_path / "file", "text")
    file, folder = flushed
    assert (file.parent, folder) == (tmp_path, tmp_path)
    assert file.name != "file"  # before the rename


@pytest.mark.parametrize(
    ("name", "left"),
    [
        *[(f".{file}.123", False) for file in ("run.json", "metrics.csv", "predictions.npz")],
        (".probe.7", False),
        *[(name, True) for name in ("run.json", "metrics.csv", "predictions.npz", "probe.7")],
        *[(name, True) for name in (".run.json.tmp", ".run.txt.123", "run.json.123", ".hydra")],
    ],
)
def test_only_what_was_left_half_written_is_removed(tmp_path: Path, name: str, left: bool) -> None:
    (tmp_path / name).touch()
    remove_leftovers(tmp_path)
    assert (tmp_path / name).exists() is left


def test_the_files_of_a_write_that_was_killed_are_leftovers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(*arguments: object) -> None:
        raise ZeroDivisionError

    # what the one names, the other finds
    monkeypatch.setattr(os, "replace", killed)
    monkeypatch.setattr(Path, "unlink", lambda *a, **k: None)
    for name in ("run.json", "metrics.csv", "predictions.npz"):
        with pytest.raises(ZeroDivisionError):
            write_atomically(tmp_path / name, "text")
    assert len(list(tmp_path.iterdir())) == 3
    monkeypatch.undo()
    remove_leftovers(tmp_path)
    assert list(tmp_path.iterdir()) == []


# --- who is alive ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("age", "status"),
    [(0, "running"), (140, "running"), (160, "interrupted"), (1e6, "interrupted")],
)
def test_another_machines_run_lives_as_long_as_its_heartbeat(
    tmp_path: Path, age: float, status: str
) -> None:
    beat = (datetime.now(UTC) - timedelta(seconds=age)).isoformat()
    written(tmp_path, host="elsewhere", pid=1, heartbeat=beat)
    assert RunRecord.read(tmp_path).status == status


def test_without_a_heartbeat_it_does_not(tmp_path: Path) -> None:
    written(tmp_path, host="elsewhere", heartbeat=None)
    assert RunRecord.read(tmp_path).status == "interrupted"


def test_this_machines_run_lives_while_that_very_process_does(tmp_path: Path) -> None:
    started = process_started(os.getpid())
    assert RunRecord.read(written(tmp_path, pid_started=started)).status == "running"
    assert RunRecord.read(written(tmp_path, pid=None)).status == "interrupted"
    if started is not None:
        other = written(tmp_path, pid_started=started + 1)
        assert RunRecord.read(other).status == "interrupted"
    # its heartbeat says nothing here: a suspended laptop's has stopped
    old = written(tmp_path, pid_started=started, heartbeat="2001-01-01T00:00:00+00:00")
    assert RunRecord.read(old).status == "running"


def test_a_process_of_another_user_lives(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def forbidden(pid: int, signum: int) -> None:
        assert (pid, signum) == (os.getpid(), 0)
        raise PermissionError

    monkeypatch.setattr(os, "kill", forbidden)
    written(tmp_path, pid_started=process_started(os.getpid()))
    assert RunRecord.read(tmp_path).status == "running"


def test_what_has_ended_is_as_it_says(tmp_path: Path) -> None:
    for status in ("finished", "failed", "interrupted"):
        assert RunRecord.read(written(tmp_path, status=status, pid=None)).status == status


@pytest.mark.skipif(sys.platform != "linux", reason="read from /proc")
def test_when_a_process_started_whatever_it_is_called(tmp_path: Path) -> None:
    name = shutil.copy(shutil.which("sleep") or "", tmp_path / "a) S 1 2")
    with subprocess.Popen([name, "60"]) as process:
        try:
            deadline = time.monotonic() + 10
            while Path(f"/proc/{process.pid}/comm").read_text() != "a) S 1 2\n":
                assert time.monotonic() < deadline
            started = process_started(process.pid)
        finally:
            process.kill()
    ticks = os.sysconf("SC_CLK_TCK")
    assert started is not None
    assert 0 <= time.clock_gettime(time.CLOCK_BOOTTIME) - started / ticks < 60
    assert process_started(process.pid) is None  # waited for: it is gone


# --- what a run was made with ---------------------------------------------------------------------


def test_versions_are_of_what_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    versions = package_versions()
    assert versions["torch"] == metadata.version("torch")
    monkeypatch.setattr(environment, "PACKAGES", ("no-such-package", "torch"))
    assert package_versions() == {"torch": versions["torch"]}


def test_the_command_can_be_pasted() -> None:
    arguments = ["model.num_blocks=[1, 1]", "data.root=/it's here", "seed=3"]
    line = command_line(arguments)
    assert shlex.split(line) == ["python", "-m", "cifar_lab", *arguments]
