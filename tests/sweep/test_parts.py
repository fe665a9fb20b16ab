"""Places for jobs, and what the fork server may not do."""

from __future__ import annotations

import io
import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
from omegaconf import OmegaConf
from rich.console import Console

from cifar_lab.config import compose_group
from cifar_lab.data.synthetic import make_synthetic
from cifar_lab.errors import InputError
from cifar_lab.sweep.launch import make_slots
from cifar_lab.sweep.points import Point
from cifar_lab.sweep.supervisor import SweepJob
from cifar_lab.sweep.tasks import Findings
from cifar_lab.sweep.view import SweepView
from tests.conftest import environment


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


def test_there_are_no_more_slots_than_jobs() -> None:
    assert places(Findings([], "cpu", 1, 1), 3, most=2) == ["cpu", "cpu"]


def test_the_live_table_shows_state_epoch_accuracy_time_left_and_device(tmp_path: Path) -> None:
    point = Point((), {"seed": "0"}, OmegaConf.create(), {"trainer": {"max_epochs": 4}}, "0" * 64)
    point.config["seed"] = 0
    record = {"status": "running", "epochs": 2, "metrics": {"val/acc": 0.5}}
    job = SweepJob(point, tmp_path / "seed0-00000000", "running", record=record, slot="cuda:1")
    job.started, job.took_s = time.monotonic() - 60, 60.0
    console = Console(file=io.StringIO(), force_terminal=True, width=100, height=20)
    queued = SweepJob(point, tmp_path / "seed1-00000000")
    with SweepView([job, queued], sweep_dir=tmp_path, slots=1, expected=2, console=console) as view:
        view.tick()
    shown = console.file.getvalue()  # type: ignore[attr-defined]
    for word in ("1 running, 1 queued", "seed0-00000000", "2/4", "0.5000", "1:00", "cuda:1"):
        assert word in shown


def in_a_process_of_its_own(code: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment(), capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return done.stdout


def test_the_fork_server_opens_the_data_and_leaves_no_thread_and_cuda_alone() -> None:
    # torch's pools start at the first parallel region: a fork after that would hang in the next
    node = compose_group("data", ["data=synthetic", "data.train_size=100", "data.test_size=50"])
    out = in_a_process_of_its_own(
        "import os, threading, numpy\n"
        "from cifar_lab.sweep import process\n"
        f"os.environ[process.DATA_VARIABLE] = {json.dumps(node)!r}\n"
        "before = len(os.listdir('/proc/self/task')) if os.path.isdir('/proc/self') else 1\n"
        "import cifar_lab.sweep.preload, torch\n"
        "after = len(os.listdir('/proc/self/task')) if os.path.isdir('/proc/self') else 1\n"
        "print(after - before, threading.active_count(), torch.cuda.is_initialized())\n"
        "from cifar_lab.data.datamodule import DataModule\n"
        "for source, dataset in DataModule.inherited.items():\n"
        "    print(dataset.digest, source)\n"
    )
    expected = make_synthetic(train_size=100, test_size=50, data_seed=0)
    first, second = out.splitlines()
    assert first.split() == ["0", "1", "False"]
    assert second.startswith(f"{expected.digest} Synthetic ")
    assert "'train_size': 100" in second


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere the supervisor's pipe must do")
def test_a_worker_whose_server_died_at_once_ends_too() -> None:
    # killed between the fork and the worker's request for a signal: no signal would ever come
    out = in_a_process_of_its_own(
        "import multiprocessing, os\n"
        "from cifar_lab.sweep import process\n"
        "def begin():\n"
        "    os.setpgid(0, 0)\n"
        "    process.server_pid = os.getppid() + 1\n"
        "    process._end_with_parent()\n"
        "worker = multiprocessing.get_context('fork').Process(target=begin)\n"
        "worker.start()\n"
        "worker.join()\n"
        "print(worker.exitcode)\n"
    )
    assert out.split() == ["-9"]


def test_the_supervisor_loads_no_torch() -> None:
    out = in_a_process_of_its_own(
        "import sys, cifar_lab.sweep.launch, hydra_plugins.cifar_lab_sweeps\n"
        "print(sorted({'torch', 'lightning', 'numpy'} & set(sys.modules)))"
    )
    assert out.strip() == "[]"
