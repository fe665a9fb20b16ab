"""run.json is whole at every instant, and says the truth about a process that is gone."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Mapping
from hashlib import sha256
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest

from cifar_lab.records import environment
from cifar_lab.records.environment import git_state, package_versions
from cifar_lab.records.files import write_atomically
from cifar_lab.records.record import RecordFile, RunRecord, Start, made_otherwise
from tests.conftest import REPOSITORY


def test_a_reader_never_sees_half_a_record(tmp_path: Path) -> None:
    record = RecordFile(tmp_path, RunRecord(status="running"))
    done = threading.Event()

    def write() -> None:
        for step in range(200):
            record.update(steps=step, filler="x" * 5000)
        done.set()

    writer = threading.Thread(target=write)
    writer.start()
    while not done.is_set():
        assert RunRecord.read(tmp_path).schema_version == 1
    writer.join()
    record.close("finished")
    assert [path.name for path in tmp_path.iterdir()] == ["run.json"]


def test_updates_add_to_the_metrics(tmp_path: Path) -> None:
    record = RecordFile(tmp_path, RunRecord(status="running", metrics={"val/acc": 0.5}))
    record.update(metrics={"test/acc": 0.6}, steps=3)
    record.close("finished")
    read = RunRecord.read(tmp_path)
    assert read.metrics == {"val/acc": 0.5, "test/acc": 0.6}
    assert (read.steps, read.status) == (3, "finished")


def test_numbers_that_json_lacks_become_null(tmp_path: Path) -> None:
    record = RecordFile(tmp_path, RunRecord(status="running"))
    record.update(metrics={"train/loss": float("nan")})
    record.close("diverged")
    assert json.loads((tmp_path / "run.json").read_text())["metrics"] == {"train/loss": None}


def test_running_reads_as_interrupted_when_its_process_is_gone(tmp_path: Path) -> None:
    script = (
        "import sys; from pathlib import Path\n"
        "from cifar_lab.records.record import RecordFile, RunRecord\n"
        "RecordFile(Path(sys.argv[1]), RunRecord(status='running')); print(flush=True)\n"
        "sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script, str(tmp_path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        cwd=REPOSITORY,
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()
        assert RunRecord.read(tmp_path).status == "running"
        process.kill()
    assert json.loads((tmp_path / "run.json").read_text())["status"] == "running"
    assert RunRecord.read(tmp_path).status == "interrupted"


def test_a_number_given_to_another_process_since_is_not_mistaken_for_it(tmp_path: Path) -> None:
    RecordFile(tmp_path, RunRecord(status="running")).close("running")
    fields = json.loads((tmp_path / "run.json").read_text())
    (tmp_path / "run.json").write_text(json.dumps({**fields, "pid_started": 1}))
    assert fields["pid"] == os.getpid()
    assert RunRecord.read(tmp_path).status == "interrupted"


@pytest.mark.parametrize("text", ["", "{", "[]", '{"schema": 99}'])
def test_a_broken_record_is_a_value_error(tmp_path: Path, text: str) -> None:
    (tmp_path / "run.json").write_text(text)
    with pytest.raises(ValueError, match=r"run\.json|schema"):
        RunRecord.read(tmp_path)


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_atomically(path, "old")
    with pytest.raises(UnicodeEncodeError):
        write_atomically(path, "new \ud800")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_git_state_is_null_outside_a_checkout(tmp_path: Path) -> None:
    assert git_state(tmp_path) == {"sha": None, "dirty": None, "diff": None}


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A committed package, below the top of its repository; its own __init__.py marks it."""
    package = tmp_path / "top" / "package"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    (package / "code.py").write_text("1\n")
    (package.parent / ".gitignore").write_text("outputs/\n")
    git(package.parent, "init", "--quiet")
    commit(package.parent)
    return package


def git(folder: Path, *arguments: str) -> None:
    who = ("-c", "user.name=t", "-c", "user.email=t@t")
    subprocess.run(["git", "-C", str(folder), *who, *arguments], check=True)


def commit(folder: Path) -> None:
    git(folder, "add", ".")
    git(folder, "commit", "--quiet", "--message=one")


def state_now(package: Path) -> Mapping[str, Any]:
    """As a process that begins now would see it."""
    git_state.cache_clear()
    return git_state(package)


def test_git_state_is_that_of_the_code_that_runs_not_of_a_later_edit(checkout: Path) -> None:
    first = git_state(checkout)
    assert first["dirty"] is False
    assert first["diff"] is None
    assert len(first["sha"]) == 40
    (checkout / "code.py").write_text("2\n")
    assert git_state(checkout) == first


def test_the_diff_tells_one_set_of_uncommitted_changes_from_another(checkout: Path) -> None:
    clean = state_now(checkout)
    seen: list[str | None] = [None]

    def changed() -> bool:
        state = state_now(checkout)
        assert state["sha"] == clean["sha"]
        assert state["dirty"] is (state["diff"] is not None)
        fresh = state["diff"] not in seen
        seen.append(state["diff"])
        return fresh

    (checkout / "code.py").write_text("2\n")
    assert changed()
    assert len(str(seen[-1])) == 12
    assert not changed()
    git(checkout, "config", "diff.mnemonicPrefix", "true")  # nor do settings of git's
    git(checkout, "add", ".")  # or what is staged
    assert not changed()
    (checkout / "code.py").write_text("3\n")
    assert changed()
    (checkout.parent / "conf with space").mkdir()
    new = checkout.parent / "conf with space" / "mine é.yaml"  # not told to git yet
    new.write_text("a: 1\n")
    assert changed()
    new.write_text("a: 2\n")
    assert changed()
    new.rename(new.with_name("other.yaml"))
    assert changed()
    new.with_name("other.yaml").chmod(0o755)
    assert changed()
    (checkout / "link").symlink_to("code.py")
    assert changed()
    (checkout / "code.py").unlink()
    assert changed()
    (checkout.parent / "outputs").mkdir()
    (checkout.parent / "outputs" / "run.json").touch()  # ignored
    assert not changed()


def test_uncommitted_files_are_read_up_to_a_bound(
    checkout: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(environment, "_MOST_DIFF_BYTES", 10)
    (checkout / "big.bin").write_bytes(b"0123456789abcdef")
    first = state_now(checkout)["diff"]
    (checkout / "big.bin").write_bytes(b"0123456789xxxxxx")
    assert state_now(checkout)["diff"] == first
    (checkout / "big.bin").write_bytes(b"0123456789xxxxxxx")
    assert state_now(checkout)["diff"] != first


def test_a_package_that_is_only_installed_below_a_checkout_is_no_code_of_it(checkout: Path) -> None:
    inside = checkout.parent / "outputs" / "site-packages"
    inside.mkdir(parents=True)
    (inside / "__init__.py").touch()
    assert state_now(inside)["sha"] is None


# --- who made a run -------------------------------------------------------------------------------

CLEAN = {"sha": "a" * 40, "dirty": False, "diff": None}
EDITED = {"sha": "a" * 40, "dirty": True, "diff": "0123456789ab"}
NEWER = {"sha": "b" * 40, "dirty": False, "diff": None}


def start(step: int = 0, torch: str = "2.15.0", **fields: Any) -> dict[str, Any]:
    packages = {"torch": torch, "tensorboard": "2.21"}
    return {"git": CLEAN, "packages": packages, "resumed_from_step": step, **fields}


@pytest.mark.parametrize(
    ("starts", "here", "said"),
    [
        ([start()], start(), ""),
        ([start()], start(git=NEWER), "code aaaaaaa (here bbbbbbb)"),
        ([start()], start(git=EDITED), "code aaaaaaa (here aaaaaaa+0123456789ab)"),
        (
            [start(git=EDITED)],
            start(git={**EDITED, "diff": "ba9876543210"}),
            "code aaaaaaa+0123456789ab (here aaaaaaa+ba9876543210)",
        ),
        # an older version's record doesn't say which changes: they are none that can be compared
        (
            [start(git={"sha": "a" * 40, "dirty": True})],
            start(git=EDITED),
            "code aaaaaaa+? (here aaaaaaa+0123456789ab)",
        ),
        ([start(git={"sha": "a" * 40, "dirty": False})], start(), ""),
        ([start(git={"sha": None, "dirty": None})], start(), "code of no commit (here aaaaaaa)"),
        ([start(torch="2.14.1")], start(), "torch 2.14.1 (here 2.15.0)"),
        ([start(packages={"tensorboard": "1"})], start(), ""),  # it decides no number
        ([start(device="cpu: A")], start(device="1 x B"), "device cpu: A (here 1 x B)"),
        ([start(device="cpu: A")], start(), ""),  # not known here
        ([start(threads=2)], start(threads=1), "threads 2 (here 1)"),
        # every start whose work the weights hold, not the last alone
        (
            [start(torch="2.13.0"), start(8, "2.14.1"), start(16)],
            start(),
            "torch 2.13.0, 2.14.1 (here 2.15.0)",
        ),
        # but none before one that began anew
        ([start(torch="2.13.0"), start(8, "2.14.1"), start(0)], start(), ""),
        ([], start(), ""),
        # modules of one's own, and packages beside those that every run has
        (
            [start(packages={"nets": "0123"})],
            start(packages={"nets": "4567"}),
            "nets 0123 (here 4567)",
        ),
        ([start(packages={"nets": "0123"})], start(), ""),
    ],
)
def test_what_a_run_was_made_with_that_is_different_here(
    starts: list[dict[str, Any]], here: dict[str, Any], said: str
) -> None:
    before = [Start.model_validate(fields) for fields in starts]
    assert made_otherwise(before, Start.model_validate(here)) == said


def test_own_modules_are_known_by_their_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs" / "__init__.py").touch()
    files = tmp_path / "own_nets.py", tmp_path / "theirs" / "steps.py"
    config = {
        "model": {"_target_": "own_nets.Net"},
        "data": {"transform": {"transforms": [{"_target_": "theirs.steps.Step"}]}},
        "optimizer": {"_target_": "timm.optim.Lion"},
        "loss": {"_target_": "torch.nn.CrossEntropyLoss"},
        "scheduler": {"_target_": "no.such..module"},
        "monitors": {"one": {"_target_": "own_monitors.One"}},
    }
    (tmp_path / "own_monitors.py").touch()

    def found() -> dict[str, str]:
        every, its = package_versions(), package_versions(config)
        return {name: version for name, version in its.items() if name not in every}

    for file in files:
        file.write_text("raise ImportError('not to be imported')")
    before = found()
    assert before == {
        "own_nets": sha256(files[0].read_bytes()).hexdigest()[:12],
        "theirs.steps": sha256(files[1].read_bytes()).hexdigest()[:12],
        "timm": metadata.version("timm"),
    }
    files[0].write_text("Net = None")
    assert {name for name, version in found().items() if before[name] != version} == {"own_nets"}
    ours = {"model": {"_target_": "cifar_lab.model.timm_network.timm_network"}}
    assert package_versions(ours)["timm"] == metadata.version("timm")


def test_a_record_of_an_older_version_is_read_as_one_start() -> None:
    fields = {"packages": {"torch": "2.13.0"}, "git": CLEAN, "host": "h", "resumed": False}
    record = RunRecord.model_validate({**fields, "status": "finished"})
    (only,) = record.all_starts
    assert (only.host, only.resumed_from_step) == ("h", 0)
    (only,) = record.with_fields(resumed=True).all_starts
    assert only.resumed_from_step is None
    here = Start.model_validate(start())
    assert made_otherwise(record.all_starts, here) == "torch 2.13.0 (here 2.15.0)"
    # what could not be built, or was killed at once, never began
    assert RunRecord(config={}, status="failed", error="data.root=x: no").all_starts == ()
