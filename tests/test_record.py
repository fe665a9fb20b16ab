"""run.json is whole at every instant, and says the truth about a process that is gone."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from cifar_lab.record import Record, git_state, read_record, write_atomically
from tests.conftest import REPOSITORY


def test_a_reader_never_sees_half_a_record(tmp_path: Path) -> None:
    record = Record(tmp_path, {"metrics": {}})
    done = threading.Event()

    def write() -> None:
        for step in range(200):
            record.update(steps=step, filler="x" * 5000)
        done.set()

    writer = threading.Thread(target=write)
    writer.start()
    while not done.is_set():
        assert read_record(tmp_path)["schema"] == 1
    writer.join()
    record.close("finished")
    assert [path.name for path in tmp_path.iterdir()] == ["run.json"]


def test_updates_merge_one_level_deep(tmp_path: Path) -> None:
    record = Record(tmp_path, {"metrics": {"val/acc": 0.5}})
    record.update(metrics={"test/acc": 0.6}, steps=3)
    record.close("finished")
    fields = read_record(tmp_path)
    assert fields["metrics"] == {"val/acc": 0.5, "test/acc": 0.6}
    assert (fields["steps"], fields["status"]) == (3, "finished")


def test_numbers_that_json_lacks_become_null(tmp_path: Path) -> None:
    Record(tmp_path, {"metrics": {"train/loss": float("nan")}}).close("diverged")
    assert json.loads((tmp_path / "run.json").read_text())["metrics"] == {"train/loss": None}


def test_running_reads_as_interrupted_when_its_process_is_gone(tmp_path: Path) -> None:
    script = (
        "import os, sys; from pathlib import Path; from cifar_lab.record import Record\n"
        "Record(Path(sys.argv[1]), {}); print(flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script, str(tmp_path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        cwd=REPOSITORY,
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()
        assert read_record(tmp_path)["status"] == "running"
        process.kill()
    assert json.loads((tmp_path / "run.json").read_text())["status"] == "running"
    assert read_record(tmp_path)["status"] == "interrupted"


def test_a_number_given_to_another_process_since_is_not_mistaken_for_it(tmp_path: Path) -> None:
    Record(tmp_path, {}).close("running")
    fields = json.loads((tmp_path / "run.json").read_text())
    (tmp_path / "run.json").write_text(json.dumps({**fields, "pid_started": 1}))
    assert fields["pid"] == os.getpid()
    assert read_record(tmp_path)["status"] == "interrupted"


@pytest.mark.parametrize("text", ["", "{", "[]", '{"schema": 99}'])
def test_a_broken_record_is_a_value_error(tmp_path: Path, text: str) -> None:
    (tmp_path / "run.json").write_text(text)
    with pytest.raises(ValueError, match=r"run\.json|Expecting"):
        read_record(tmp_path)


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_atomically(path, "old")
    with pytest.raises(UnicodeEncodeError):
        write_atomically(path, "new \ud800")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_git_state_is_null_outside_a_checkout(tmp_path: Path) -> None:
    assert git_state(tmp_path) == {"sha": None, "dirty": None}


def test_git_state_is_that_of_the_code_that_runs_not_of_a_later_edit(tmp_path: Path) -> None:
    def git(*arguments: str) -> None:
        who = ("-c", "user.name=t", "-c", "user.email=t@t")
        subprocess.run(["git", "-C", str(tmp_path), *who, *arguments], check=True)

    git("init", "--quiet")
    (tmp_path / "errors.py").write_text("1\n")
    git("add", ".")
    git("commit", "--quiet", "--message=one")
    first = git_state(tmp_path)
    assert first["dirty"] is False
    (tmp_path / "errors.py").write_text("2\n")
    assert git_state(tmp_path) == first
