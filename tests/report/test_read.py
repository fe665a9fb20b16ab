"""Whatever lies below a folder is read, or told of; it never ends the report."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cifar_lab.data import dataset
from cifar_lab.report.read import CLASSES, Reader
from tests.report.conftest import write_run


def test_the_classes_are_the_ones_of_the_lab() -> None:
    assert CLASSES == dataset.CLASSES


def test_the_validation_accuracy_is_that_of_the_weights_that_were_tested(tmp_path: Path) -> None:
    write_run(tmp_path / "best", val=(0.3, 0.5, 0.4))
    write_run(tmp_path / "last", val=(0.3, 0.5, 0.4), tested="last", best_epoch=None)
    best, last = Reader(tmp_path).read().runs
    assert (best.selection, last.selection) == (0.5, 0.4)


def test_what_a_record_of_today_says_of_the_tested_weights_is_believed(tmp_path: Path) -> None:
    # validated twice in its second epoch, and the first time was the better one
    rows = "1,15,0.6,\n1,19,0.4,\n2,29,0.5,\n"
    folder = write_run(
        tmp_path / "run", val=(0.3, 0.4, 0.5), best_epoch=2, starts=[], metrics={"val/acc": 0.6}
    )
    (folder / "metrics.csv").write_text(f"epoch,step,val/acc,val/loss\n0,9,0.3,\n{rows}")
    [run] = Reader(tmp_path).read().runs
    assert run.selection == 0.6


def test_curves_have_a_value_an_epoch_and_nothing_of_the_test(tmp_path: Path) -> None:
    write_run(tmp_path / "run", val=(0.3, 0.5))
    [run] = Reader(tmp_path).read().runs
    assert run.curves["epoch"].tolist() == [1, 2]
    assert run.curves["val/acc"].tolist() == [0.3, 0.5]
    assert not any(name.startswith("test/") for name in run.curves)


def test_rows_of_one_epoch_become_one(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run")
    (folder / "metrics.csv").write_text("epoch,step,lr,val/acc\n0,5,0.1,\n0,9,0.2,0.3\n1,15,0.3,\n")
    [run] = Reader(tmp_path).read().runs
    assert run.curves["epoch"].tolist() == [1, 2]
    assert run.curves["lr"].tolist() == [0.2, 0.3]
    assert run.curves["val/acc"][0] == 0.3


def test_without_metrics_csv_the_curves_come_from_tensorboard_events(tmp_path: Path) -> None:
    from tensorboard.compat.proto.event_pb2 import Event
    from tensorboard.compat.proto.summary_pb2 import Summary
    from tensorboard.summary.writer.event_file_writer import EventFileWriter

    write_run(tmp_path / "csv", val=(0.25, 0.5))
    folder = write_run(tmp_path / "events", val=(0.25, 0.5), curves=False)
    writer = EventFileWriter(str(folder / "tensorboard"))
    for epoch, accuracy in enumerate((0.25, 0.5)):
        values = {"val/acc": accuracy, "train/loss": 2.4 - accuracy, "val/loss": 2.3 - accuracy}
        for tag, value in values.items():
            summary = Summary(value=[Summary.Value(tag=tag, simple_value=value)])
            writer.add_event(Event(step=10 * epoch + 9, summary=summary))
    writer.close()
    csv, events = Reader(tmp_path).read().runs
    assert csv.curves.keys() == events.curves.keys()
    for name, curve in csv.curves.items():
        np.testing.assert_allclose(events.curves[name], curve, rtol=1e-6)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("{", "Invalid JSON"),
        ("[]", "should be an object"),
        ('{"schema": 99}', "schema: "),
        ('{"schema": 1, "status": "finished"}', "no configuration"),
        ('{"schema": 1, "status": "finished", "config": 3}', "config: "),
        ("[" * 100_000, "recursion limit"),
    ],
)
def test_a_broken_record_is_listed_and_the_others_are_read(
    tmp_path: Path, content: str, reason: str
) -> None:
    write_run(tmp_path / "good")
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "run.json").write_text(content)
    reading = Reader(tmp_path).read()
    assert [run.name for run in reading.runs] == ["good"]
    [(name, why)] = reading.broken
    assert name == "bad"
    assert reason in why
    assert "\n" not in why


@pytest.mark.parametrize(
    "fields",
    [
        {"metrics": [1]},
        {"timings": "soon"},
        {"overrides": "x"},
        {"parameters": "many"},
        {"metrics": {"test/acc": 95.0}},
        {"metrics": {"train/loss": 10**400}},
        {"starts": [3]},
    ],
)
def test_fields_that_can_not_be_are_told_of(tmp_path: Path, fields: dict[str, Any]) -> None:
    write_run(tmp_path / "odd", **fields)
    reading = Reader(tmp_path).read()
    assert reading.runs == ()
    [(name, why)] = reading.broken
    assert (name, why.startswith(next(iter(fields)))) == ("odd", True)


def test_a_broken_metrics_csv_costs_the_curves_only(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run")
    (folder / "metrics.csv").write_bytes(b"\xff\xfe\x00garbage")
    reading = Reader(tmp_path).read()
    assert reading.runs[0].test == 0.45
    assert reading.runs[0].curves == {}
    assert "curves left out" in reading.broken[0][1]


def test_a_run_that_lives_is_running_and_one_that_went_silent_is_interrupted(
    tmp_path: Path,
) -> None:
    now = datetime.now(UTC).isoformat()
    write_run(tmp_path / "a", status="running", test=None, heartbeat=now)
    write_run(tmp_path / "b", status="running", test=None)
    assert [run.status for run in Reader(tmp_path).read().runs] == ["running", "interrupted"]


def test_the_configuration_may_lie_in_hydras_folder(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", config=None)
    (folder / ".hydra").mkdir()
    (folder / ".hydra" / "config.yaml").write_text("optimizer:\n  lr: 0.3\nseed: 4\n")
    [run] = Reader(tmp_path).read().runs
    assert run.settings == {"optimizer.lr": 0.3}


def test_yaml_that_would_run_code_is_refused(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", config=None)
    (folder / ".hydra").mkdir()
    poison = f"a: !!python/object/apply:os.mkdir ['{tmp_path / 'poisoned'}']\n"
    (folder / ".hydra" / "config.yaml").write_text(poison)
    reading = Reader(tmp_path).read()
    assert not reading.runs
    assert not (tmp_path / "poisoned").exists()


def test_a_second_reading_sees_what_has_changed(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", val=(0.3,))
    reader = Reader(tmp_path)
    assert reader.read().runs[0].curves["val/acc"].tolist() == [0.3]
    with open(folder / "metrics.csv", "a") as file:
        file.write("5,59,1.0,0.7,1.0,,,\n")
    record = json.loads((folder / "run.json").read_text())
    (folder / "run.json").write_text(json.dumps({**record, "status": "failed"}))
    [run] = reader.read().runs
    assert run.curves["val/acc"].tolist() == [0.3, 0.7]
    assert run.status == "failed"


def test_predictions_that_would_run_code_or_are_cut_off_count_as_missing(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", predictions=np.ones(20, bool))
    [run] = Reader(tmp_path).read().runs
    found = run.predictions()
    assert found is not None
    assert (found.labels == found.said).all()
    whole = (folder / "predictions.npz").read_bytes()
    (folder / "predictions.npz").write_bytes(whole[:-30])
    assert run.predictions() is None
    objects = np.array([{}], dtype=object)
    np.savez(folder / "predictions.npz", labels=objects, logits=objects)
    assert run.predictions() is None


def test_predictions_name_their_classes_and_those_of_before_go_without(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run")
    [run] = Reader(tmp_path).read().runs
    assert run.data_name == "cifar10"
    labels = np.arange(3)
    cases: list[tuple[int, dict[str, Any], tuple[str, ...]]] = [
        (3, {"classes": np.array(["ant", "bee", "crab"])}, ("ant", "bee", "crab")),
        (3, {}, ("0", "1", "2")),
        (10, {}, CLASSES),
        (3, {"classes": np.array(["ant"])}, ("0", "1", "2")),  # no names of these
        (300, {}, tuple(map(str, range(300)))),
    ]
    for count, saved, names in cases:
        np.savez(folder / "predictions.npz", labels=labels, logits=np.eye(3, count), **saved)
        found = run.predictions()
        assert found is not None
        assert found.classes == names
    np.savez(folder / "predictions.npz", labels=labels, logits=np.eye(3), classes=np.array([{}]))
    assert run.predictions() is None


def test_predictions_that_belong_to_no_image_are_none(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run")
    [run] = Reader(tmp_path).read().runs
    for labels, logits in (
        (np.arange(3), np.zeros((4, 10))),
        (np.arange(0), np.zeros((0, 10))),
        (np.array([-1]), np.zeros((1, 10))),
        (np.arange(3), np.zeros(3)),
    ):
        np.savez(folder / "predictions.npz", labels=labels, logits=logits)
        assert run.predictions() is None


def test_an_empty_reason_is_no_reason(tmp_path: Path) -> None:
    write_run(tmp_path / "run", status="failed", error="")
    [run] = Reader(tmp_path).read().runs
    assert run.error is None
