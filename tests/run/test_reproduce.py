"""`python -m cifar_lab.reproduce`: a finished run, run again from its folder and compared."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from cifar_lab.records.digest import run_digest
from cifar_lab.reproduce import main
from tests.conftest import REPOSITORY, record_of
from tests.support.class_folders import write_class_folders
from tests.support.finished import CNN, QUICK, copied, finish
from tests.support.own_images import change
from tests.support.runs import stop_at, weights

Lab = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return finish(tmp_path_factory.mktemp("again") / "run", *CNN)


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    return copied(finished, tmp_path / "run")


@pytest.fixture
def again(capfd: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    def call(*arguments: object) -> tuple[int, str, str]:
        capfd.readouterr()
        status = main(list(map(str, arguments)))
        return status, *capfd.readouterr()

    return call


def last(out: str) -> str:
    return out.strip().splitlines()[-1]


RUNS = {
    "resnet10, two block counts": (*QUICK, "model.num_blocks=[1]"),
    "averages, the best of several": (*QUICK, "callbacks=ema", "trainer.max_epochs=3"),
    "no checkpoints": (*QUICK, "callbacks=none"),
    "the machine's threads": (*[a for a in CNN if a != "threads=1"], "monitors=default"),
    "optimizer groups, torch's scheduler": (
        *QUICK,
        *("optimizer/groups=no_decay", "scheduler=step", "augment=strong", "tta=flip"),
    ),
}


QUICKLY = ("averages, the best of several", "no checkpoints")


@pytest.mark.parametrize(
    "name",
    [n if n in QUICKLY else pytest.param(n, marks=pytest.mark.slow) for n in RUNS],
)
def test_it_comes_to_the_same_bits(tmp_path: Path, again: Lab, name: str) -> None:
    run = finish(tmp_path / "run", *RUNS[name])
    status, out, err = again(run)
    assert (status, err) == (0, ""), out
    assert "different    nothing" in out
    assert last(out).startswith("reproduced to the bit")
    there, new = record_of(run), record_of(tmp_path / "run-again-1")
    assert new["config_digest"] == there["config_digest"]
    assert run_digest(new["config_digest"], new["data"]["digest"]) == run_digest(
        there["config_digest"], there["data"]["digest"]
    )
    if name != "no checkpoints":
        a, b = weights(run), weights(tmp_path / "run-again-1")
        assert a.keys() == b.keys()
        assert all(torch.equal(a[key], b[key]) for key in a)


def test_a_run_that_learned_from_others(finished: Path, tmp_path: Path, again: Lab) -> None:
    teacher = copied(finished, tmp_path / "teacher")
    run = finish(tmp_path / "run", *CNN, f"distill.from={teacher}")
    # which modules of a teacher's are imported is said by the person alone, not by a record
    change(run, lambda record: record["config"]["distill"].update(trust=["nets"]))
    change(run, lambda record: record["overrides"].append("distill.trust=[nets]"))
    status, out, err = again(run)
    assert (status, last(out), err) == (0, "reproduced to the bit", "")
    new = record_of(tmp_path / "run-again-1")
    assert new["config"]["distill"]["trust"] == []
    assert not [o for o in new["overrides"] if o.startswith("distill.trust")]
    assert new["config_digest"] == record_of(run)["config_digest"]
    shutil.move(teacher, tmp_path / "gone")
    status, out, err = again(run)
    assert (status, out) == (2, "")
    assert f"can't be built here: distill.from={teacher}: is no folder" in err
    assert err.endswith("; --distill-from says where it lies now\n")
    moved = tmp_path / "gone"
    status, out, _ = again(run, "--distill-from", moved, "--out", tmp_path / "moved")
    assert (status, last(out)) == (0, "reproduced to the bit")
    assert f"distill.from=[{moved}]" in record_of(tmp_path / "moved")["overrides"]
    status, out, err = again(run, "--distill-from", finish(tmp_path / "other", *CNN, "seed=4"))
    assert (status, "these differ: distill.from.sha256" in err) == (2, True)
    assert "this run learned from no other" in again(moved, "--distill-from", moved)[2]


def test_what_the_new_folder_says(
    run: Path, again: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    assert again(run)[0] == 0
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before
    kept = [o for o in record_of(run)["overrides"] if not o.startswith("hydra.run.dir")]
    assert record_of(tmp_path / "run-again-1")["overrides"] == kept
    written = (tmp_path / "run-again-1" / ".hydra" / "overrides.yaml").read_text()
    assert "- model.width=2" in written.splitlines()
    status, out, _ = again(run)  # once more: its own folder
    assert (status, "run-again-2" in out) == (0, True)
    monkeypatch.chdir(run)
    assert again(".", "--out", tmp_path / "from-inside")[0] == 0
    # the reproduction can itself be reproduced, from elsewhere
    moved = shutil.move(tmp_path / "run-again-1", tmp_path / "moved")
    assert again(moved, "--out", tmp_path / "third")[0] == 0
    assert (tmp_path / "third" / "run.json").exists()


def test_a_changed_folder_says_what_differs(run: Path, again: Lab, finished: Path) -> None:
    accuracy = record_of(run)["metrics"]["test/acc"]
    change(run, lambda record: record["metrics"].update({"test/acc": 0.25}))
    status, out, _ = again(run)
    assert status == 1
    assert f"test/acc 0.25 then, {accuracy} here" in out
    assert "weights      the same to the bit (12 tensors)" in out
    assert last(out).endswith(
        "nothing that it was made with is different here, and yet metrics are"
    )
    # another configuration under the old digest
    edited = copied(finished, run.parent / "edited")
    change(edited, lambda record: record["config"]["optimizer"].update(lr=0.2))
    status, out, err = again(edited)
    assert (status, "has been changed since" in err) == (1, True)
    assert last(out).endswith("and yet weights, metrics and predictions are")
    # another seed's weights and predictions under this record
    other = finish(run.parent / "other", *CNN, "seed=4")
    for name in ("checkpoints", "predictions.npz"):
        path = run / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()
        source = other / name
        shutil.copytree(source, path) if source.is_dir() else shutil.copy(source, path)
    status, out, _ = again(run)
    assert status == 1
    assert "weights      12 of 12 tensors differ, by up to" in out
    assert "predictions  " in out
    assert "images get another class; logits differ by up to" in out


def test_what_cant_be_compared_is_said(run: Path, again: Lab) -> None:
    damaged = run / "checkpoints" / "best.ckpt"
    shutil.rmtree(run / "checkpoints")
    damaged.parent.mkdir()
    damaged.write_bytes(b"")
    with np.load(run / "predictions.npz") as saved:
        arrays = dict(saved)
    np.savez_compressed(run / "predictions.npz", **arrays)
    status, out, _ = again(run)
    assert (status, last(out)) == (
        0,
        "reproduced to the bit, without weights and predictions to compare",
    )
    assert "weights      not compared: no checkpoint holds the best epoch" in out
    assert "in it is compressed" in out
    np.savez(run / "predictions.npz", labels=arrays["labels"], logits=np.array([{}]))
    assert "predictions  not compared: " in again(run)[1]
    (run / "predictions.npz").write_text("none")
    assert "predictions  not compared: " in again(run)[1]


def test_what_is_different_here_is_said_and_the_spread_decides(
    finished: Path, again: Lab, tmp_path: Path
) -> None:
    def of_seed(seed: int, accuracy: float, **more: Any) -> Path:
        folder = copied(finished, tmp_path / "sweep" / f"seed{seed}")

        def edit(record: dict[str, Any]) -> None:
            record["seed"] = record["config"]["seed"] = seed
            record["metrics"]["test/acc"] = accuracy
            record["starts"][0]["packages"]["torch"] = "2.12.0"
            record["starts"][0]["device"] = "1 x NVIDIA H100"
            record.update(more)

        change(folder, edit)
        return folder

    there = record_of(finished)["metrics"]["test/acc"]
    run = of_seed(3, there + 0.02)
    status, out, _ = again(run, "--out", tmp_path / "first")
    assert status == 1
    assert "different    torch 2.12.0 (here " in out
    assert "device 1 x NVIDIA H100 (here cpu: " in out
    assert "and 1 recorded seeds tell no spread: it takes 3 finished runs beside it" in last(out)
    of_seed(4, there + 0.03)
    of_seed(5, there - 0.01)
    of_seed(6, 0.99, status="failed")  # no seed of it
    change(of_seed(7, 0.99), lambda r: r["config"]["model"].update(width=3))  # another run
    (tmp_path / "sweep" / "file").touch()
    status, out, _ = again(run, "--out", tmp_path / "second")
    assert status == 0
    assert last(out).startswith("reproduced within the spread of 3 seeds (0.")
    # t(0.975, 2) * sqrt(2) * deviation of the three: 0.02, 0.03 and -0.01 about there
    assert f"({4.302653 * 2**0.5 * np.std([0.02, 0.03, -0.01], ddof=1):.4f} for two runs" in out
    change(run, lambda record: record["metrics"].update({"test/acc": 0.9}))
    for seed in (8, 9):
        of_seed(seed, 0.9)
    for seed in (4, 5):
        shutil.rmtree(tmp_path / "sweep" / f"seed{seed}")
    status, out, _ = again(run, "--out", tmp_path / "third")
    assert status == 1
    assert last(out).startswith("not reproduced: outside the spread of 3 seeds (0.0000 for two")


def test_the_same_bits_count_whatever_is_different(run: Path, again: Lab) -> None:
    change(run, lambda r: r["starts"][0]["packages"].update(numpy="1.0"))
    change(run, lambda r: r["starts"][0]["git"].update(sha="0" * 40, dirty=False, diff=None))
    status, out, _ = again(run)
    assert "different    code 0000000 (here " in out
    assert "numpy 1.0 (here " in out
    assert (status, last(out)) == (0, "reproduced to the bit")


def test_its_images_elsewhere_or_others(tmp_path: Path, again: Lab) -> None:
    root = write_class_folders(tmp_path / "mine", ("a", "b", "c"), train=8)
    kept = [a for a in QUICK if not a.startswith("data")]
    data = ("data=folders", f"data.root={root}", "data.val_size=6", "data.batch_size=8")
    run = finish(tmp_path / "run", *kept, *data)
    assert again(run)[0] == 0
    moved = shutil.move(root, tmp_path / "moved")
    status, _, err = again(run)
    assert (status, err.count("\n")) == (2, 1)
    assert "run: can't be built here: data.root=null" in err
    assert err.endswith("; --data says where it lies now\n")
    assert again(run, "--data", moved)[0] == 0
    assert f"data.root={moved}" in record_of(tmp_path / "run-again-2")["overrides"]
    other = write_class_folders(tmp_path / "other", ("a", "b", "c"), train=9)
    status, out, err = again(run, "--data", other)
    assert (status, out) == (2, "")
    assert "are not those of the run" in err
    assert not (tmp_path / "run-again-3").exists()


def test_weights_that_it_began_with(tmp_path: Path, again: Lab, finished: Path) -> None:
    source = copied(finished, tmp_path / "source")
    run = finish(tmp_path / "run", *CNN, f"init_from={source}")
    moved = shutil.move(source, tmp_path / "moved")
    status, _, err = again(run)
    assert (status, "init_from=" in err and "no such file or folder" in err) == (2, True)
    assert err.endswith("; --init-from says where it lies now\n")
    assert again(run, "--init-from", moved)[0] == 0
    other = finish(tmp_path / "other", *CNN, "seed=4")
    status, _, err = again(run, "--init-from", other)
    assert (status, "these differ: init_from.sha256 (" in err) == (2, True)


def test_a_stopped_one_goes_on_and_is_compared(
    run: Path, again: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        stop_at(patch, 4)
        status, out, err = again(run)
    assert status == 130
    assert "weights" not in out
    out_dir = tmp_path / "run-again-1"
    command = f"python -m cifar_lab.reproduce {run} --out {out_dir}"
    assert err.splitlines()[-1] == f"cifar_lab: to continue: {command}"
    assert again(run, "--out", out_dir)[0] == 0
    # finished: compared again, not run again
    ended = record_of(out_dir)["ended"]
    status, out, _ = again(run, "--out", out_dir)
    assert (status, last(out)) == (0, "reproduced to the bit")
    assert record_of(out_dir)["ended"] == ended


def test_wrong_input_is_one_line_and_leaves_nothing(
    run: Path, again: Lab, tmp_path: Path, finished: Path
) -> None:
    (tmp_path / "file").touch()
    broken = copied(finished, tmp_path / "broken")
    (broken / "run.json").write_text("{")

    def edited(name: str, **fields: Any) -> Path:
        folder = copied(finished, tmp_path / name)
        change(folder, lambda record: record.update(fields))
        return folder

    config = record_of(finished)["config"]
    elsewhere = {"host": "x", "heartbeat": "2020-01-01T00:00:00+00:00"}
    beating = {**elsewhere, "pid": 1, "heartbeat": "2999-01-01T00:00:00+00:00"}
    other = finish(tmp_path / "other", *CNN, "seed=4")
    before = {path for path in tmp_path.rglob("*") if path.parent != tmp_path / "other"}
    for arguments, said in (
        ((), "usage: python -m cifar_lab.reproduce RUN"),
        ((run, run), "unrecognized arguments"),
        ((run, "--dat", "x"), "unrecognized arguments: --dat"),
        ((run, "--data="), "--data: is empty"),
        ((run, "--distill-from="), "--distill-from: is empty"),
        (("nowhere",), "nowhere: does not exist"),
        (("file",), "file: is no folder; give the folder of a run"),
        ((tmp_path,), "holds no run.json; give the folder of a run; there are runs below it"),
        ((broken,), "its run.json: "),
        ((edited("running", status="running", **beating),), "process 1 on x is running in it"),
        ((edited("failed", status="failed"),), "is failed, and there is no result to compare"),
        ((edited("cut", status="running", **elsewhere),), "is interrupted, and there is no"),
        ((edited("bare", config=None),), "has no configuration or no images"),
        ((edited("newer", config={**config, "warp": 9}),), "warp: is a key of another version"),
        ((edited("seedless", config={**config, "seed": "x"}),), "seed=x: "),
        ((edited("less", config={"seed": 3}),), "these differ: "),
        ((edited("many", threads=-1),), "threads=-1: must lie in 1..1024"),
        ((run, "--data", "nowhere"), "this run's images are drawn by code"),
        ((run, "--init-from", other), "this run began with no other's weights"),
        ((run, "--out", run), "is the run itself"),
        ((run, "--out="), "--out: is empty"),
        ((run, "--out", "."), "holds other things; give a new folder"),
        ((run, "--out", "file"), "can't be written"),
        ((run, "--out", "file/below"), "can't be written"),
        ((run, "--out", other), "--out=" + str(other)),
    ):
        status, _, err = again(*arguments)
        assert (status, err.count("\n")) == (2, 1), (arguments, err)
        assert said in err, (arguments, err)
    after = {path for path in tmp_path.rglob("*") if path.parent != tmp_path / "other"}
    made = {path.relative_to(tmp_path).parts[0] for path in after - before}
    assert made <= {"running", "failed", "cut", "bare", "newer", "seedless", "less", "many"}
    assert again("--help")[0] == 0


@pytest.mark.parametrize(
    ("key", "node"),
    [
        ("model", {"_target_": "os.system", "command": "touch pwned"}),
        ("optimizer", {"_target_": "subprocess.run", "args": "touch pwned"}),
        ("callbacks", {"x": {"_target_": "builtins.eval", "_args_": ["open('pwned', 'w')"]}}),
        ("monitors", {"x": {"_target_": "os.mkdir", "path": "pwned"}}),
        (
            "callbacks",
            {"x": {"_target_": "lightning.pytorch.callbacks.ModelCheckpoint", "dirpath": "/pwned"}},
        ),
        (
            "callbacks",
            {"x": {"_target_": "lightning.pytorch.callbacks.ModelCheckpoint", "dirpath": "pwned"}},
        ),
        ("trainer", {"_target_": "lightning.pytorch.Trainer", "default_root_dir": "../pwned"}),
        ("tta", "${oc.env:HOME}"),
        ("data", {"_target_": "cifar_lab.data.fetch.download.fetch"}),
    ],
)
def test_a_record_from_anybody_calls_nothing_and_writes_nothing(
    run: Path, again: Lab, tmp_path: Path, key: str, node: Any
) -> None:
    change(run, lambda record: record["config"].update({key: node}))
    before = set(tmp_path.rglob("*"))
    status, out, err = again(run)
    assert (status, out, err.count("\n")) == (2, "", 1), err
    assert set(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(
    "override", ["+logger.x={_target_: os.getcwd}", "+monitors.x={_target_: os.getcwd}"]
)
def test_a_command_of_a_record_starts_no_other_process(
    run: Path, again: Lab, tmp_path: Path, override: str
) -> None:
    """Lightning would start the other ranks with it."""

    def edit(record: dict[str, Any]) -> None:
        kept = [o for o in record["overrides"] if not o.startswith("trainer=")]
        ddp = ["trainer=ddp", "trainer.accelerator=cpu", "trainer.devices=2"]
        record["overrides"] = [*kept, *ddp, override, "hydra.callbacks.x._target_=os.getcwd"]
        record["config"]["trainer"].update(accelerator="cpu", strategy="ddp", devices=2)

    change(run, edit)
    before = set(tmp_path.rglob("*"))
    status, out, err = again(run)
    assert (status, out, "is not a part of a run" in err) == (2, "", True), err
    assert set(tmp_path.rglob("*")) == before


def test_loggers_are_those_of_here(run: Path, again: Lab, tmp_path: Path) -> None:
    theirs = {
        "_target_": "lightning.pytorch.loggers.MLFlowLogger",
        "tracking_uri": "http://127.0.0.1:9",
    }
    change(run, lambda record: record["config"]["logger"].update(theirs=theirs))
    assert again(run)[0] == 0
    assert "theirs" not in record_of(tmp_path / "run-again-1")["config"]["logger"]


def test_a_run_of_an_older_version_is_run_again(again: Lab, tmp_path: Path) -> None:
    old = copied(REPOSITORY / "tests" / "fixtures" / "runs_of_af3b1f8" / "seed0", tmp_path / "old")
    status, out, err = again(old)
    assert "different    code " in out, err
    if furthest := re.search(r"tensors differ, by up to (\S+):", out):
        # another processor rounds otherwise (6e-8 with AVX2), and it alone
        assert ", device cpu: " in out
        assert float(furthest[1]) < 1e-6
        assert "predictions  0 of 60 images get another class" in out
        assert (status, last(out).startswith("not reproduced to the bit (")) == (1, True)
    else:
        assert "weights      the same to the bit (20 tensors)" in out
        assert "predictions  the same to the bit (60 images)" in out
        said = "reproduced to the bit, but for the last digits of metrics"
        assert (status, last(out)) == (0, said)
    change(old, lambda record: record["metrics"].update({"test/loss": 2.2445}))
    status, out, _ = again(old)
    assert (status, "recorded seeds tell no spread" in last(out)) == (1, True)
