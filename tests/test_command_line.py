"""Wrong input: status 2, one clear line, nothing on disk. Right input: a folder and a record."""

from __future__ import annotations

import csv
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.conftest import TINY, environment, merged, record_of, started

Lab = Callable[..., tuple[int, str, str]]

WRONG = [
    # (arguments, what the one line has to say)
    (["trainer.max_epoch=3"], ["trainer.max_epoch", "did you mean trainer.max_epochs?"]),
    (["lr=0.1"], ["did you mean optimizer.lr?"]),
    (["modle=cnn"], ["did you mean model?"]),
    (["+typo=1"], ["typo: unknown key"]),
    (["+model.widht=3"], ["model.widht", "did you mean width?"]),
    (["model=resnet11"], ["did you mean resnet10?", "available: cnn, ", ", resnet10, "]),
    (["experiment=nothing"], ["available:", "report_cnn"]),
    (["x=="], ["x==", "key=value"]),
    (["seed=abc"], ["seed=abc: must be an integer"]),
    (["seed=-1"], ["seed=-1", "0..4294967295"]),
    (["resume=maybe"], ["resume=maybe", "auto"]),
    (["resume=must"], ["resume=must", "holds no run"]),
    (["optimizer.lr=abc"], ["optimizer.lr=abc", "a number"]),
    (["optimizer.lr=-1"], ["optimizer.lr=-1", "above 0"]),
    (["optimizer.lr=nan"], ["optimizer.lr=nan", "finite"]),
    (["optimizer.lr=inf"], ["optimizer.lr=inf", "finite"]),
    (["optimizer.momentum=-1"], ["optimizer", "momentum"]),
    (["+optimizer.differentiable=true"], ["optimizer", "differentiable"]),
    (["cuda_graph=true", "trainer=cpu"], ["cuda_graph=true", "needs a CUDA device"]),
    (["trainer.max_epochs=2.5"], ["trainer.max_epochs=2.5", "an integer"]),
    (["trainer.max_epochs=0"], ["trainer.max_epochs=0", "at least 1"]),
    (["trainer.limit_train_batches=0"], ["trainer.limit_train_batches=0"]),
    (["trainer.limit_val_batches=1.5"], ["limit_val_batches", "1.5"]),
    (["trainer=cpu", "trainer.devices=1000"], ["trainer.devices=1000", "CPU processes"]),
    (["trainer=cpu", "trainer.devices=0"], ["trainer.devices=0"]),
    (["trainer.accelerator=abacus"], ["trainer.accelerator=abacus", "cpu"]),
    (["trainer=cpu", "trainer.precision=16-mixed"], ["16-mixed", "bf16-mixed"]),
    (["trainer.precision=half"], ["trainer.precision=half", "16-true"]),
    (["threads=0"], ["threads=0"]),
    (["model=resnet10", "model.num_blocks=[]"], ["model.num_blocks=[]", "1 to 6"]),
    (["model=resnet10", "model.num_blocks=[2,0]"], ["model.num_blocks=[2, 0]", "at least 1"]),
    (["model=resnet10", "model.num_blocks=[1,1,1,1,1,1,1]"], ["1 to 6"]),
    (["model=resnet10", "model.num_blocks=2"], ["model.num_blocks=2", "a list"]),
    (["model=resnet10", "model.width=0"], ["model.width=0"]),
    (["model.dropout=1"], ["model.dropout=1"]),
    (["model._target_=cifar_lab.model.cnn.CNM"], ["model._target_", "CNM"]),
    (["data.batch_size=0"], ["data.batch_size=0"]),
    (["data.batch_size=9001", "data.drop_last=true"], ["data.batch_size=9001"]),
    (["data.val_size=10000"], ["data.val_size=10000", "0..9999"]),
    (["data.val_size=-1"], ["data.val_size=-1"]),
    (["data.normalization=zscore"], ["data.normalization=zscore", "channel"]),
    (["augment.transforms.crop.padding=-1"], ["padding"]),
    (["callbacks=early_stopping", "data.val_size=0"], ["callbacks.early_stopping", "val_size"]),
]


@pytest.mark.parametrize(("arguments", "parts"), WRONG, ids=lambda value: " ".join(value)[:40])
def test_wrong_input_is_one_clear_line_and_status_2(
    lab: Lab, tmp_path: Path, arguments: list[str], parts: list[str]
) -> None:
    status, out, err = lab("data=synthetic", *arguments)
    assert status == 2, err
    assert len(err.strip().splitlines()) == 1, err
    assert out == ""
    for part in parts:
        assert part in err
    assert not (tmp_path / "outputs").exists()


def test_a_run_folder_that_can_not_be_written_is_wrong_input(lab: Lab, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    status, _, err = lab(*TINY, f"hydra.run.dir={tmp_path}/file/run")
    assert status == 2
    assert "hydra.run.dir=" in err
    assert len(err.strip().splitlines()) == 1


def test_a_tilde_stands_for_the_home_folder(
    lab: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    status, _, err = lab("data.root=~/nothing.zip")
    assert status == 2
    assert f"data.root={tmp_path}/nothing.zip" in err


def test_an_unknown_flag_is_wrong_input(lab: Lab) -> None:
    status, _, err = lab("--frobnicate")
    assert status == 2
    assert "--frobnicate" in err


def test_the_console_script_completes_groups_and_keys(tmp_path: Path) -> None:
    def completed(line: str) -> list[str]:
        script = Path(sys.executable).with_name("cifar-lab")
        variables = {"COMP_LINE": line, "COMP_POINT": str(len(line))}
        done = subprocess.run(
            [script, "-sc", "query=bash"],
            cwd=tmp_path,
            env=environment(**variables),
            capture_output=True,
            text=True,
            check=True,
        )
        return done.stdout.split()

    assert {"model=cnn", "model=resnet10"} <= set(completed("cifar-lab model="))
    assert completed("cifar-lab optimizer.l") == ["optimizer.lr="]


def test_help_names_every_group_and_an_example(lab: Lab) -> None:
    status, out, _ = lab("--help")
    assert status == 0
    for word in (
        "model: cnn, ",
        ", resnet10, ",
        "optimizer: adamw, muon, schedule_free, sgd",
        "experiment:",
        "-m ",
    ):
        assert word in out


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("finished")
    status, out, err = _child(*TINY, "monitors=default", f"hydra.run.dir={folder}/run", cwd=folder)
    assert status == 0, err
    assert "test accuracy" in out
    assert err == ""  # no terminal: no bar, and no noise from the libraries
    return folder / "run"


def test_a_run_leaves_what_the_contract_promises(finished: Path, lab: Lab) -> None:
    record = record_of(finished)
    assert record["schema"] == 1
    assert record["status"] == "finished"
    assert record["error"] is None
    assert record["tested"] == "best"
    assert (record["epochs"], record["steps"]) == (2, 16)
    assert record["data"]["name"] == "synthetic"
    assert record["data"]["official"] is False
    assert len(record["data"]["digest"]) == len(record["config_digest"]) == 64
    assert record["command"].startswith("python -m cifar_lab data=synthetic")
    assert set(record) >= {"host", "pid", "heartbeat", "overrides", "seed", "threads", "git"}
    for name in ("train/loss", "train/acc", "val/loss", "val/acc", "test/loss", "test/acc", "lr"):
        assert isinstance(record["metrics"][name], float)
    assert record["timings"]["fit_s"] > 0
    for name in record["checkpoints"]:
        state = torch.load(finished / name, weights_only=True)
        assert "network.stem.0.weight" in state["state_dict"]
    assert (finished / ".hydra" / "config.yaml").exists()
    assert (finished / "train.log").read_text()
    assert list((finished / "tensorboard").glob("events.out.tfevents.*"))


def test_predictions_give_the_recorded_accuracy(finished: Path) -> None:
    predictions = np.load(finished / "predictions.npz")
    assert predictions["logits"].shape == (200, 10)
    accuracy = (predictions["logits"].argmax(1) == predictions["labels"]).mean()
    assert accuracy == record_of(finished)["metrics"]["test/acc"]


def test_metrics_csv_has_a_row_for_every_epoch(finished: Path) -> None:
    with open(finished / "metrics.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    trained = [row for row in rows if row["train/loss"]]
    assert [row["epoch"] for row in trained] == ["0", "1"]
    assert all(row["val/acc"] for row in trained)


def test_a_finished_run_is_returned_at_once(finished: Path, lab: Lab) -> None:
    before = (finished / "run.json").read_bytes()
    status, out, _ = lab(*TINY, "monitors=default", f"hydra.run.dir={finished}")
    assert status == 0
    assert "test accuracy" in out
    assert (finished / "run.json").read_bytes() == before


def test_another_configuration_in_the_same_folder_is_refused_by_name(
    finished: Path, lab: Lab
) -> None:
    before = (finished / "run.json").read_bytes()
    status, _, err = lab(*TINY, "monitors=default", "optimizer.lr=0.5", f"hydra.run.dir={finished}")
    assert status == 2
    assert "optimizer.lr (0.03 there, 0.5 here)" in err
    assert (finished / "run.json").read_bytes() == before


def test_resume_never_deletes_nothing(finished: Path, lab: Lab) -> None:
    status, _, err = lab(*TINY, "resume=never", f"hydra.run.dir={finished}")
    assert status == 2
    assert "nothing is deleted" in err


def test_two_runs_in_the_same_second_get_two_folders(lab: Lab, tmp_path: Path) -> None:
    for _ in range(2):
        assert lab(*TINY, "trainer.max_epochs=1", "trainer.limit_train_batches=1")[0] == 0
    assert len(list(tmp_path.glob("outputs/runs/*/*/run.json"))) == 2


def test_equal_seeds_are_equal_to_the_bit_and_others_differ(lab: Lab, tmp_path: Path) -> None:
    weights = []
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        assert lab(*TINY, f"seed={seed}", "threads=1", f"hydra.run.dir={tmp_path / name}")[0] == 0
        checkpoint = torch.load(tmp_path / name / "checkpoints" / "last.ckpt", weights_only=True)
        weights.append(checkpoint["state_dict"])
    assert all(torch.equal(weights[0][key], weights[1][key]) for key in weights[0])
    assert not torch.equal(weights[0]["network.fc.weight"], weights[2]["network.fc.weight"])


def test_nothing_held_out_means_the_last_epoch_is_tested(lab: Lab, tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    assert lab(*TINY, "data.val_size=0", f"hydra.run.dir={run_dir}")[0] == 0
    record = record_of(run_dir)
    assert record["tested"] == "last"
    assert "val/acc" not in record["metrics"]
    assert not (run_dir / "checkpoints" / "best.ckpt").exists()


def test_a_loss_that_becomes_nan_ends_as_diverged_and_saves_nothing(
    lab: Lab, tmp_path: Path
) -> None:
    run_dir = tmp_path / "run"
    status, _, err = lab(*TINY, "optimizer.lr=1e30", f"hydra.run.dir={run_dir}")
    assert status == 1
    record = record_of(run_dir)
    assert record["status"] == "diverged"
    assert "at step" in record["error"]
    assert "optimizer.lr" in record["error"]
    assert err.strip().splitlines()[-1].endswith("train.log")
    assert not (run_dir / "checkpoints" / "last.ckpt").exists()


def test_a_crash_is_recorded_and_its_log_is_named(lab: Lab, tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    (tmp_path / "crashing.py").write_text(
        "from lightning.pytorch import Callback\n"
        "class Crash(Callback):\n"
        "    def on_validation_end(self, *_):\n"
        "        raise ZeroDivisionError('on purpose')\n"
    )
    status, _, err = _child(
        *TINY, "+callbacks.crash._target_=crashing.Crash", f"hydra.run.dir={run_dir}", cwd=tmp_path
    )
    assert status == 1
    record = record_of(run_dir)
    assert record["status"] == "failed"
    assert record["error"] == "ZeroDivisionError: on purpose"
    assert err.strip().splitlines()[-1] == f"cifar_lab: log: {run_dir / 'train.log'}"
    assert "on purpose" in (run_dir / "train.log").read_text()


def _child(*arguments: str, cwd: Path) -> tuple[int, str, str]:
    done = subprocess.run(
        [sys.executable, "-m", "cifar_lab", *merged(*arguments)],
        cwd=cwd,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=240,
    )
    return done.returncode, done.stdout, done.stderr


@pytest.mark.parametrize(("signum", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_stopped_run_says_how_to_continue(
    tmp_path: Path, signum: signal.Signals, status: int
) -> None:
    run_dir = tmp_path / "run"
    process = started(run_dir, *TINY, "trainer.max_epochs=300")
    process.send_signal(signum)
    _, err = process.communicate(timeout=60)
    assert process.returncode == status
    assert record_of(run_dir)["status"] == "interrupted"
    last_line = err.strip().splitlines()[-1]
    assert last_line.startswith("cifar_lab: to continue: python -m cifar_lab data=synthetic")
    assert f"hydra.run.dir={run_dir}" in last_line


def test_a_signal_during_the_imports_ends_with_its_status(tmp_path: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-X", "importtime", "-m", "cifar_lab", *TINY],
        env=environment(),
        cwd=tmp_path,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stderr is not None
        for line in process.stderr:  # until the first modules of torch are in
            if "torch" in line:
                break
        process.send_signal(signal.SIGTERM)
        rest = process.stderr.read()
    assert process.returncode == 143, rest[-2000:]
    assert not (tmp_path / "outputs").exists()


def test_ranks_of_a_ddp_run_agree_with_one_process(tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    arguments = (*TINY, "trainer=ddp", "trainer.accelerator=cpu", f"hydra.run.dir={run_dir}")
    status, _, err = _child(*arguments, cwd=tmp_path)
    assert (status, err) == (0, "")
    record = record_of(run_dir)
    assert (record["status"], record["steps"]) == ("finished", 16)
    assert len(np.load(run_dir / "predictions.npz")["labels"]) == 200
    assert os.listdir(tmp_path / "run" / "checkpoints")


@pytest.mark.slow
def test_a_signal_to_the_whole_group_stops_a_run_with_workers_in_order(tmp_path: Path) -> None:
    """As ``timeout`` and a cluster's cancel send it: to the workers of the loader, too."""
    run_dir = tmp_path / "run"
    loader = ("data.loader=torchvision", "data.workers=2", "trainer.max_epochs=300")
    command = ["timeout", "600", sys.executable, "-m", "cifar_lab", *merged(*TINY, *loader)]
    process = subprocess.Popen(
        [*command, f"hydra.run.dir={run_dir}"],
        env=environment(),
        cwd=tmp_path,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    while not (run_dir / "checkpoints" / "last.ckpt").exists():
        assert process.poll() is None
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGTERM)
    _, err = process.communicate(timeout=60)
    assert record_of(run_dir)["status"] == "interrupted"
    assert err.strip().splitlines()[-1].startswith("cifar_lab: to continue: ")
    with pytest.raises(ProcessLookupError):  # nothing of the group is left
        os.killpg(process.pid, 0)


def test_a_batch_of_more_than_all_images_is_said(lab: Lab, tmp_path: Path) -> None:
    more = ("data.batch_size=99999", "debug=fast", f"hydra.run.dir={tmp_path}/run")
    status, _, err = lab(*TINY, *more)
    assert status == 0
    assert err == (
        "cifar_lab: data.batch_size=99999: is more than the 400 training images; an epoch is one "
        "step\n"
    )
