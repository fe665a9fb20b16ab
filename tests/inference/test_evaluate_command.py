"""`python -m cifar_lab.evaluate`: tables, JSON, figures, and one line for what can't be done."""

from __future__ import annotations

import json
import os
import shutil
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from cifar_lab import load_run
from cifar_lab.data.dataset import CLASSES
from cifar_lab.data.synthetic import make_synthetic
from cifar_lab.evaluate import main
from cifar_lab.inference.corruptions import CORRUPTIONS, corrupt
from tests.conftest import record_of
from tests.support.class_folders import write_class_folders, zipped
from tests.support.finished import QUICK, copied, finish
from tests.support.own_images import change


def as_json(capfd: pytest.CaptureFixture[str], *arguments: object) -> dict[str, Any]:
    capfd.readouterr()
    status = main([*map(str, arguments), "--json"])
    out, err = capfd.readouterr()
    assert (status, err) == (0, "")
    found: dict[str, Any] = json.loads(out)
    return found


def refused(capfd: pytest.CaptureFixture[str], *arguments: object) -> str:
    capfd.readouterr()
    assert main(list(map(str, arguments))) == 2
    out, err = capfd.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    return err


def test_without_options_it_is_the_runs_own_test(
    finished: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    run = copied(finished, tmp_path / "run")
    metrics = record_of(run)["metrics"]
    (one,) = as_json(capfd, run)["runs"]
    assert one["accuracy"] == metrics["test/acc"]
    assert one["loss"] == metrics["test/loss"]
    assert one["tta"] == "none"
    assert one["temperature"] is not None
    assert np.sum(one["confusion_matrix"]) == one["images"] == 200
    assert not (run / "evaluation").exists()
    assert main([str(run)]) == 0
    out, err = capfd.readouterr()
    assert err == ""
    assert f"accuracy       {100 * metrics['test/acc']:.2f} % (95% interval" in out
    for name in ("reliability", "confusion_matrix", "mistakes"):
        with Image.open(run / "evaluation" / f"{name}.png") as figure:
            assert min(figure.size) > 300
    change(run, lambda record: record["metrics"].update({"test/acc": 0.5}))
    assert main([str(run), "--out", "there"]) == 0
    assert "its own test had an accuracy of 0.5, and here it is" in capfd.readouterr().err
    assert (tmp_path / "there" / "mistakes.png").exists()


def test_several_runs_are_an_ensemble(
    finished: Path, another: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    found = as_json(capfd, finished, another, "--tta", "flip+shift")
    assert [one["tta"] for one in found["runs"]] == ["flip+shift", "flip+shift"]
    assert [one["name"] for one in found["runs"]] == ["resnet", "cnn"]
    assert found["ensemble"]["name"] == "ensemble of 2"
    losses = [one["calibration"]["cross_entropy"] for one in found["runs"]]
    assert found["ensemble"]["calibration"]["cross_entropy"] <= np.mean(losses)  # Jensen
    assert main([str(finished), str(another), "--out", "both"]) == 0
    assert "ensemble of 2" in capfd.readouterr().out
    assert Path("both/resnet/mistakes.png").exists()
    assert Path("both/cnn/mistakes.png").exists()


def test_other_images_of_some_of_the_classes(
    finished: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    root = write_class_folders(tmp_path / "mine", ("cat", "dog", "ship"), size=(48, 40), test=3)
    capfd.readouterr()
    assert main([str(finished), "--data", str(root), "--json"]) == 0
    out, err = capfd.readouterr()
    assert "no temperature" not in err  # its own are drawn by code, and always here
    (one,) = json.loads(out)["runs"]
    assert one["images"] == 9
    by_name = {c["name"]: c["images"] for c in one["classes"]}
    assert (by_name["cat"], by_name["dog"], by_name["ship"], by_name["frog"]) == (3, 3, 3, 0)
    other = write_class_folders(tmp_path / "unknown", ("cat", "unicorn"))
    assert (
        "the class unicorn is none of this run's 10"
        in refused(capfd, finished, "--data", other, "--json").splitlines()[-1]
    )


def test_its_own_images_from_another_place(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    root = write_class_folders(tmp_path / "mine", ("a", "b", "c"), train=8)
    kept = [a for a in QUICK if not a.startswith("data")]
    data = ("data=folders", f"data.root={root}", "data.val_size=6", "data.batch_size=8")
    # a mean with weights of the classes is of each batch
    batches = ("data.eval_batch_size=5", "+loss.weight=[1,2,3]")
    run = finish(tmp_path / "run", *kept, *data, *batches)
    at_home = as_json(capfd, run)["runs"][0]
    moved = zipped(root, tmp_path / "moved.zip")
    shutil.rmtree(root)
    assert "its images are not here" in refused(capfd, run)
    capfd.readouterr()
    assert main([str(run), "--data", str(moved), "--json"]) == 0
    (elsewhere,) = json.loads(capfd.readouterr().out)["runs"]
    for key in ("accuracy", "loss", "temperature", "confusion_matrix"):
        assert elsewhere[key] == at_home[key], key
    assert elsewhere["temperature"] is not None


def test_corruptions_and_the_archive(
    another: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    found = as_json(capfd, another, "--corrupt")["runs"][0]
    table = found["corruptions"]
    assert list(table["accuracy"]) == list(CORRUPTIONS)
    values = np.array(list(table["accuracy"].values()))
    assert values.shape == (15, 5)
    assert table["mean_corruption_error"] == pytest.approx(1 - values.mean())
    assert table["clean"] == record_of(another)["metrics"]["test/acc"]
    assert table["source"] == "drawn here"
    # the same images as an archive have the same table
    test = make_synthetic(train_size=600, test_size=200, data_seed=0).test
    archive = tmp_path / "CIFAR-10-C"
    archive.mkdir()
    np.save(archive / "labels.npy", np.tile(test.labels, 5))
    for name in CORRUPTIONS:
        parts = [corrupt(test.images, name, strength) for strength in range(1, 6)]
        np.save(archive / f"{name}.npy", np.concatenate(parts).transpose(0, 2, 3, 1))
    read = as_json(capfd, another, "--corrupt", "--data", archive)["runs"][0]["corruptions"]
    assert read["accuracy"] == table["accuracy"]
    assert (read["source"], read["clean"]) == ("archive", None)
    assert main([str(another), "--corrupt", "--data", str(archive)]) == 0
    out = capfd.readouterr().out
    assert "mean corruption error" in out
    assert "not comparable" not in out
    assert "add --corrupt" in refused(capfd, another, "--data", archive)
    np.save(archive / "labels.npy", np.tile(test.labels + 1, 5))
    assert "holds the label 10; this run has 10 classes" in refused(
        capfd, another, "--corrupt", "--data", archive
    )


@pytest.mark.parametrize("names", [CLASSES, CLASSES[::-1], tuple("abcdefghij")])
def test_an_archive_s_labels_are_of_named_classes(
    finished: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], names: tuple[str, ...]
) -> None:
    """Label i of CIFAR-10-C is CIFAR-10's class i, in whatever order a run has them."""
    run = copied(finished, tmp_path / "run")
    record = record_of(run)
    record["data"]["classes"] = list(names)
    (run / "run.json").write_text(json.dumps(record))
    test = make_synthetic(train_size=10, test_size=200, data_seed=0).test
    archive = tmp_path / "CIFAR-10-C"
    archive.mkdir()
    np.save(archive / "labels.npy", np.tile(test.labels, 5))
    for name in CORRUPTIONS:
        np.save(archive / f"{name}.npy", np.tile(test.images.transpose(0, 2, 3, 1), (5, 1, 1, 1)))
    found = as_json(capfd, run, "--corrupt", "--data", archive)["runs"][0]["corruptions"]
    loaded = load_run(run)
    taken = [loaded.classes[i] for i in loaded.predict(test.images).argmax(1)]
    known = CLASSES if set(names) == set(CLASSES) else names
    right = np.mean([known[label] == name for label, name in zip(test.labels, taken, strict=True)])
    assert found["accuracy"]["fog"] == pytest.approx([right] * 5)
    unknown = not set(names) & set(CLASSES)
    assert any(f"{archive}: names no classes" in note for note in found["notes"]) == unknown


def test_wrong_input_is_one_line(
    finished: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert "usage: python -m cifar_lab.evaluate" in refused(capfd)
    assert "invalid choice: 'twice'" in refused(capfd, finished, "--tta", "twice")
    assert "nowhere: does not exist" in refused(capfd, "nowhere")
    assert "nowhere: does not exist" in refused(capfd, finished, "--data", "nowhere")
    assert "x.ckpt: does not exist" in refused(capfd, finished, "--ckpt", "x.ckpt")
    (tmp_path / "file").write_text("")
    err = refused(capfd, finished, "--ckpt", tmp_path / "file")
    assert "file is empty" in err
    seven = write_class_folders(tmp_path / "mine", ("a", "b"), train=8)
    kept = [a for a in QUICK if not a.startswith("data")]
    data = ("data=folders", f"data.root={seven}", "data.val_size=6", "data.batch_size=8")
    other = finish(tmp_path / "run", *kept, *data)
    assert "has other classes than" in refused(capfd, finished, other)
    # the same labels in the same order, and other images
    drawn = finish(tmp_path / "drawn", *QUICK, "data.data_seed=1")
    assert "was tested on other images than" in refused(capfd, finished, drawn)
    assert main(["--help"]) == 0
    assert "--corrupt" in capfd.readouterr().out


def test_a_reader_that_has_what_it_wanted_leaves_nothing_undone(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    run, gone = copied(finished, tmp_path / "run"), os.fdopen(writing, "w")
    with monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", gone)
        assert main([str(run)]) == 0
        sys.stdout.close()  # the null device by now
    with suppress(BrokenPipeError):
        gone.close()
    assert len(list((run / "evaluation").iterdir())) == 3


def test_a_folder_that_cant_be_written(
    finished: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    capfd.readouterr()
    assert main([str(finished), "--out", str(tmp_path / "file")]) == 2
    assert "can't be written" in capfd.readouterr().err


def test_the_json_says_whose_views_were_averaged(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    run = finish(tmp_path / "run", *QUICK, "tta=flip")
    assert as_json(capfd, run)["runs"][0]["tta"] == "flip"


def test_the_last_weights_and_a_file(finished: Path, capfd: pytest.CaptureFixture[str]) -> None:
    last = finished / "checkpoints" / "last.ckpt"
    by_name = as_json(capfd, finished, "--ckpt", "last")["runs"][0]
    by_file = as_json(capfd, finished, "--ckpt", last)["runs"][0]
    assert by_name == by_file
    assert by_name["digest"] == load_run(finished, "last").digest
