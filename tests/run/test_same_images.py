"""Two runs are the same when configuration and images are: paths and dates say nothing."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import TINY, record_of
from tests.support.images import write_zip
from tests.support.own_images import BASE, OFFLINE, RUN, change, replace_in_place
from tests.support.runs import stop_at

Lab = Callable[..., tuple[int, str, str]]


@pytest.fixture
def a(tmp_path: Path) -> Path:
    return write_zip(tmp_path / "A.zip", 1)


@pytest.fixture
def b(tmp_path: Path) -> Path:
    return write_zip(tmp_path / "B.zip", 2)


@pytest.mark.parametrize("stopped", [False, True], ids=["finished", "interrupted"])
@pytest.mark.parametrize("epochs", [2, 3], ids=["same", "longer"])
def test_other_images_are_another_run_and_refused_by_name(
    lab: Lab,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    a: Path,
    b: Path,
    stopped: bool,
    epochs: int,
) -> None:
    run = tmp_path / "run"
    if stopped:
        stop_at(monkeypatch, 3)
    assert lab(*RUN, f"data.root={a}", f"hydra.run.dir={run}")[0] == (130 if stopped else 0)
    before = (run / "run.json").read_bytes()
    again = (*OFFLINE, f"trainer.max_epochs={epochs}")
    status, out, err = lab(*again, f"data.root={b}", f"hydra.run.dir={run}")
    assert status == 2
    assert out == ""
    assert (run / "run.json").read_bytes() == before
    *said, line = err.strip().splitlines()
    assert all("decoded" in text or "more epochs" in text for text in said)
    there, here = record_of(run)["data"]["digest"][:12], digest_of_root(b)[:12]
    for part in (
        f"data.root={b}: these images ({here})",
        f"({there}, data.root={a} then)",
        str(run),
    ):
        assert part in line
    # moved and renamed they are the same images
    status, _, err = lab(*again, f"data.root={a.rename(tmp_path / 'C')}", f"hydra.run.dir={run}")
    assert status == 0, err
    assert record_of(run)["data"]["digest"][:12] == there


def digest_of_root(root: Path) -> str:
    from cifar_lab.data.fetch.locate import Fetching, open_from

    fetching = Fetching(offline=True, sources=[], min_rate=0, stall_s=1)
    return open_from(root=str(root), cache=None, fetching=fetching).dataset.digest


def test_images_replaced_in_place_are_noticed_though_size_and_date_are_the_same(
    lab: Lab, tmp_path: Path, a: Path, b: Path
) -> None:
    arguments = (*RUN, f"data.root={a}", f"hydra.run.dir={tmp_path}/run")
    assert lab(*arguments)[0] == 0
    replace_in_place(a, b)
    status, out, err = lab(*arguments)
    assert (status, out) == (2, "")
    assert f"data.root={a}: these images (" in err.splitlines()[-1]


def test_a_folder_and_a_zip_of_the_same_images_are_the_same_run(
    lab: Lab, tmp_path: Path, a: Path
) -> None:
    folder = write_zip(tmp_path / "folder", 1, folder=True)
    assert lab(*RUN, f"data.root={folder}", f"hydra.run.dir={tmp_path}/run")[0] == 0
    before = (tmp_path / "run" / "run.json").read_bytes()
    status, out, err = lab(*RUN, f"data.root={a}", f"hydra.run.dir={tmp_path}/run")
    assert status == 0, err
    assert "test accuracy" in out
    assert (tmp_path / "run" / "run.json").read_bytes() == before


def test_what_can_not_be_compared_is_no_answer(
    lab: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, a: Path
) -> None:
    run, arguments = tmp_path / "run", (*RUN, f"hydra.run.dir={tmp_path}/run")
    assert lab(*arguments, f"data.root={a}")[0] == 0
    # a mistyped root
    status, out, err = lab(*arguments, f"data.root={tmp_path}/AA.zip")
    assert (status, out) == (2, "")
    assert len(err.strip().splitlines()) == 1
    assert f"data.root={tmp_path}/AA.zip: does not exist" in err
    assert f"the finished run in {run} can't be compared with that, and its result stays in" in err
    # no root means the official images, and these are none
    status, out, err = lab(*arguments)
    assert (status, out) == (2, "")
    assert len(err.strip().splitlines()) == 1
    assert "data.root=null: these images (the official images, not on this machine)" in err
    # a run on the official ones has no other images than those that would be fetched: nothing is
    monkeypatch.setattr("socket.socket.connect", None)
    change(run, lambda record: record["data"].update(official=True))
    online = (*BASE, "data.val_size=5", "trainer.max_epochs=2", f"hydra.run.dir={run}")
    status, out, err = lab(*online)
    assert status == 0, err
    assert "test accuracy" in out


def test_the_law_holds_for_images_drawn_by_code(lab: Lab, tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert lab(*TINY, f"hydra.run.dir={run}")[0] == 0
    change(run, lambda record: record["data"].update(digest="f" * 64))  # by another version
    status, out, err = lab(*TINY, f"hydra.run.dir={run}")
    assert (status, out) == (2, "")
    assert len(err.strip().splitlines()) == 1
    assert "data=synthetic: these images (" in err
    # what ended before it had read any images fits all
    change(run, lambda record: record.pop("data"))
    change(run, lambda record: record.update(status="failed"))
    assert lab(*TINY, f"hydra.run.dir={run}")[0] == 0


def test_a_key_that_is_new_and_null_makes_no_other_run(lab: Lab, tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert lab(*TINY, f"hydra.run.dir={run}")[0] == 0

    def by_an_older_version(record: dict[str, Any]) -> None:
        del record["config"]["data"]["transform"]
        record["config_digest"] = "0" * 64

    change(run, by_an_older_version)
    status, out, err = lab(*TINY, f"hydra.run.dir={run}")
    assert (status, err) == (0, "")
    assert "test accuracy" in out


def test_checkpoints_of_nobody_knows_which_run_are_never_taken_up(
    lab: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"
    stop_at(monkeypatch, 3)
    assert lab(*TINY, f"hydra.run.dir={run}")[0] == 130
    (run / "run.json").unlink()  # to start it over, as one might think
    before = sorted((path, path.stat().st_mtime_ns) for path in run.rglob("*"))
    status, _, err = lab(*TINY, "optimizer.lr=0.5", f"hydra.run.dir={run}")
    assert status == 2
    assert len(err.strip().splitlines()) == 1
    assert f"hydra.run.dir={run}: holds checkpoints and no run.json" in err
    assert before == sorted((path, path.stat().st_mtime_ns) for path in run.rglob("*"))


# --- every start is on record ---------------------------------------------------------------------


def test_every_start_is_kept_and_a_change_is_said(
    lab: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"
    arguments = (*TINY, "threads=1", f"hydra.run.dir={run}")
    stop_at(monkeypatch, 3)
    assert lab(*arguments)[0] == 130
    (first,) = record_of(run)["starts"]
    assert first["resumed_from_step"] == 0

    def by_another_torch(record: dict[str, Any]) -> None:
        record["starts"][0]["packages"]["torch"] = "2.13.0"
        record["starts"][0]["git"].update(sha="a" * 40, dirty=True, diff="0123456789ab")
        record["starts"][0]["device"] = "1 x Abacus"

    first = change(run, by_another_torch)["starts"][0]
    stop_at(monkeypatch, 5)
    status, _, err = lab(*arguments)
    assert status == 130
    record = record_of(run)
    line, _ = err.strip().splitlines()
    here = record["packages"]["torch"]
    assert line.startswith(f"{run}: goes on, though begun with code aaaaaaa+0123456789ab (here ")
    assert f"torch 2.13.0 (here {here})" in line
    assert f"device 1 x Abacus (here {record['device']})" in line
    assert line in (run / "train.log").read_text()
    assert [start["resumed_from_step"] for start in record["starts"]] == [0, 4]
    assert record["starts"][0] == first
    names = {
        "started",
        "command",
        "resumed_from_step",
        "git",
        "packages",
        "device",
        "threads",
        "host",
    }
    assert set(record["starts"][1]) == names
    for name in names - {"resumed_from_step", "started"}:
        assert record[name] == record["starts"][1][name]
    # finished, and given again: what was made elsewhere is said once more
    assert lab(*arguments)[0] == 0
    assert len(record_of(run)["starts"]) == 3
    status, out, err = lab(*arguments)
    assert status == 0
    assert "test accuracy" in out
    (line,) = err.strip().splitlines()
    assert line.startswith(
        f"cifar_lab: {run}: this run was made with code aaaaaaa+0123456789ab (here "
    )
    assert f"torch 2.13.0 (here {here})" in line
    assert "delete its folder or choose another hydra.run.dir" in line
    assert "Abacus" not in line  # nothing is made here


def test_a_network_of_ones_own_that_has_been_edited_is_said(
    lab: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "edited_nets.py").write_text(NETWORK)
    plain = [one for one in TINY if not one.startswith(("model", "trainer.max_epochs"))]
    own = ("model=cnn", "~model.width", "~model.dropout", "model._target_=edited_nets.Net")
    line = (*plain, *own, "trainer.max_epochs=1", "threads=1", f"hydra.run.dir={tmp_path}/run")
    assert lab(*line)[::2] == (0, "")
    assert lab(*line)[::2] == (0, "")
    (tmp_path / "edited_nets.py").write_text(NETWORK.replace("8", "9"))
    status, _, err = lab(*line)
    assert status == 0
    assert f"cifar_lab: {tmp_path}/run: this run was made with edited_nets " in err


NETWORK = """
from torch import nn


class Net(nn.Sequential):
    def __init__(self, num_classes):
        super().__init__(nn.Flatten(), nn.Linear(3072, 8), nn.ReLU(), nn.Linear(8, num_classes))
"""


def test_a_start_that_left_no_checkpoint_is_a_start_and_the_next_begins_anew(
    lab: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"
    arguments = (*TINY, f"hydra.run.dir={run}")
    stop_at(monkeypatch, 3)
    assert lab(*arguments)[0] == 130
    for path in (run / "checkpoints").iterdir():
        path.unlink()
    change(run, lambda record: record["starts"][0]["packages"].update(torch="2.13.0"))
    status, _, err = lab(*arguments)
    assert (status, err) == (0, "")  # no weight is of the other torch
    assert [start["resumed_from_step"] for start in record_of(run)["starts"]] == [0, 0]
    assert lab(*arguments)[::2] == (0, "")


# --- copies ---------------------------------------------------------------------------------------


def test_copies_between_the_splits_are_said_and_on_record(
    lab: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = write_zip(tmp_path / "copies.zip", 3, test_in_train=20, repeated=5)
    images = (f"data.root={root}", "data.val_size=50")
    arguments = (*BASE, *images, "trainer.max_epochs=1", f"hydra.run.dir={tmp_path}/run")
    status, _, err = lab(*arguments)
    assert status == 0, err
    line = (
        f"data.root={root}: 20 of the 30 test images are also training images (exact copies): the "
        "test accuracy will be too high, by up to 66.7 points"
    )
    assert line in err.splitlines()
    assert line in (tmp_path / "run" / "train.log").read_text()
    data = record_of(tmp_path / "run")["data"]
    assert data["images"] == {"train": 10, "val": 50, "test": 30}
    held_out = data["duplicates"].pop("val_in_train")
    assert data["duplicates"] == {"test_in_train": 20, "train": 5, "test": 0, "contradicting": 0}
    said = f"{root}: {held_out} of the 50 held-out images are also among those that train (exact"
    assert (said in err) is (held_out > 0)
    # the result that is given again is as high
    status, _, err = lab(*arguments)
    assert status == 0
    assert f"cifar_lab: {line}" in err.splitlines()


def test_the_data_command_says_whether_there_are_copies(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], a: Path
) -> None:
    from cifar_lab.data.__main__ import main

    assert main([f"root={a}"]) == 0
    assert "\ncopies  none: every image is there once\n" in capsys.readouterr().out
    root = write_zip(tmp_path / "copies.zip", 3, test_in_train=20, repeated=5)
    assert main([f"root={root}"]) == 0
    assert capsys.readouterr().out.splitlines()[-2:] == [
        "copies  20 of the 30 test images are also training images (exact copies): the test "
        "accuracy will be too high, by up to 66.7 points",
        "copies  5 of the 60 training images repeat another of them",
    ]
