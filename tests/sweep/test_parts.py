"""Places for jobs, and what the fork server may not do."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf

from cifar_lab.errors import InputError
from cifar_lab.sweep.launch import make_slots
from cifar_lab.sweep.points import Point
from cifar_lab.sweep.results import write_results
from cifar_lab.sweep.supervisor import SweepJob
from cifar_lab.sweep.tasks import Findings
from cifar_lab.sweep.worker import check_gpu

PARTS = ["data=synthetic", "model=resnet10", "model.width=4", "trainer=cpu"]


def places(findings: Findings, per_device: int | None, most: int = 100) -> list[str]:
    slots = make_slots(findings, per_device, most=most)
    return [slot.environment.get("CUDA_VISIBLE_DEVICES", slot.name) for slot in slots]


def test_each_gpu_has_its_slots_and_the_first_jobs_spread_over_all(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert places(Findings([], "cuda", 2, 1), None) == ["0", "1"]
    assert places(Findings([], "cuda", 2, 1), 2) == ["0", "1", "0", "1"]
    assert places(Findings([], "cuda", 4, 2), None) == ["0,1", "2,3"]
    assert places(Findings([], "cuda", 2, 1), 2, most=3) == ["0", "1", "0"]


def test_gpus_that_are_hidden_from_the_sweep_stay_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,GPU-5a")
    assert places(Findings([], "cuda", 2, 1), None) == ["3", "GPU-5a"]
    with pytest.raises(InputError, match=r"trainer\.devices=4"):
        make_slots(Findings([], "cuda", 2, 4), None, most=1)


@pytest.mark.parametrize(
    ("visible", "devices", "expected"),
    [
        ("0,7", 1, ["0"]),  # of a machine with one
        ("0,-1,1", 1, ["0"]),  # what follows a -1 is hidden
        ("2, 0", 2, ["2", "0"]),
        ("MIG-3c,GPU-5a,GPU-77", 2, ["MIG-3c", "GPU-5a"]),
    ],
)
def test_a_place_is_on_a_gpu_that_cuda_finds_and_what_it_does_not_is_said(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    visible: str,
    devices: int,
    expected: list[str],
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert places(Findings([], "cuda", devices, 1), None) == expected
    missing = len(visible.split(",")) - devices
    said = f"CUDA_VISIBLE_DEVICES={visible}: CUDA finds {devices} of these {devices + missing} GPUs"
    assert (said in capsys.readouterr().err) == bool(missing)


@pytest.mark.parametrize("name", ["auto", "cpu"])
def test_a_job_in_a_gpus_place_does_not_train_on_the_cpu_without_a_word(
    monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "7")
    cfg = OmegaConf.create({"trainer": {"accelerator": name}})
    if name == "cpu":
        return check_gpu(cfg)
    with pytest.raises(InputError, match=r"CUDA_VISIBLE_DEVICES=7: the sweep gave this job that"):
        check_gpu(cfg)
    return None


def test_there_are_no_more_slots_than_jobs() -> None:
    assert places(Findings([], "cpu", 1, 1), 3, most=2) == ["cpu", "cpu"]


def test_the_live_table_shows_state_epoch_accuracy_time_left_and_device(tmp_path: Path) -> None:
    swept = {"model.tag": "=1+1", "optimizer.lr": "-0.1"}
    point = Point((), swept, OmegaConf.create(), {"seed": 0}, "")
    write_results(tmp_path, [SweepJob(point, tmp_path / "-2+3")])
    (row,) = csv.DictReader((tmp_path / "results.csv").read_text().splitlines())
    assert (row["model.tag"], row["optimizer.lr"], row["job"]) == ("'=1+1", "-0.1", "'-2+3")
