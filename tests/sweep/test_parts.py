"""Places for jobs, and what the fork server may not do."""

from __future__ import annotations

import io
import json
import subprocess
import sys
import time
from multiprocessing import Pipe
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf
from rich.console import Console

from cifar_lab.config.compose import compose_group
from cifar_lab.data.datamodule import Synthetic
from cifar_lab.data.synthetic import make_synthetic
from cifar_lab.errors import InputError
from cifar_lab.records.record import RunRecord
from cifar_lab.sweep.compose import Composer
from cifar_lab.sweep.launch import GridSource, make_slots
from cifar_lab.sweep.points import Point, compose_point
from cifar_lab.sweep.supervisor import SweepJob
from cifar_lab.sweep.tasks import Check, Findings
from cifar_lab.sweep.view import SweepView
from cifar_lab.sweep.worker import _check_gpu, check
from tests.conftest import environment
from tests.support.hydra import hydra_of

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
        return _check_gpu(cfg)
    with pytest.raises(InputError, match=r"CUDA_VISIBLE_DEVICES=7: the sweep gave this job that"):
        _check_gpu(cfg)
    return None


def test_there_are_no_more_slots_than_jobs() -> None:
    assert places(Findings([], "cpu", 1, 1), 3, most=2) == ["cpu", "cpu"]


def test_the_live_table_shows_state_epoch_accuracy_time_left_and_device(tmp_path: Path) -> None:
    point = Point((), {"seed": "0"}, OmegaConf.create(), {"trainer": {"max_epochs": 4}}, "0" * 64)
    point.config["seed"] = 0
    record = RunRecord(status="running", epochs=2, metrics={"val/acc": 0.5})
    job = SweepJob(point, tmp_path / "seed0-00000000", "running", record=record, slot="cuda:1")
    job.started, job.took_s = time.monotonic() - 60, 60.0
    console = Console(file=io.StringIO(), force_terminal=True, width=100, height=20)
    queued = SweepJob(point, tmp_path / "seed1-00000000")
    with SweepView([job, queued], sweep_dir=tmp_path, slots=1, expected=2, console=console) as view:
        view.tick()
    shown = console.file.getvalue()  # type: ignore[attr-defined]
    for word in ("1 running, 1 queued", "seed0-00000000", "2/4", "0.5000", "1:00", "cuda:1"):
        assert word in shown


def test_the_jobs_with_the_most_work_start_first_else_in_their_order(tmp_path: Path) -> None:
    def job(name: str, status: str = "queued") -> SweepJob:
        return SweepJob(Point((), {}, OmegaConf.create(), {}, name), tmp_path / name, status)

    jobs = [job("a"), job("b"), job("c"), job("d", "finished"), job("e"), job("f")]
    source = GridSource(jobs, {"a": 1.0, "b": 3.0, "c": 1.0, "d": 9.0, "e": 3.0})
    order = [job.point.digest for job in iter(source.next, None)]
    assert order == ["b", "e", "a", "c", "f"]


def test_work_is_what_a_network_computes_times_its_epochs() -> None:
    loader, master = hydra_of("data=synthetic", "model=resnet10", "trainer=cpu")
    composer = Composer(loader, master, ["model.num_blocks", "trainer.max_epochs"])
    points = [
        compose_point(composer, [*PARTS, f"model.num_blocks={blocks}", f"trainer.max_epochs={n}"])
        for blocks, n in (("[1]", 1), ("[1]", 3), ("[1,1]", 1))
    ]
    ours, theirs = Pipe(duplex=False)
    assert check(Check([p.cfg for p in points], [p.config for p in points], theirs)) == 0
    first, longer, deeper = ours.recv().work
    # multiply-adds of two images count twice: stem, two convolutions, one linear layer
    assert first == 2 * 2 * (32 * 32 * 9 * (3 * 4 + 2 * 4 * 4) + 4 * 10)
    assert longer == 3 * first
    assert first < deeper < longer


def in_a_process_of_its_own(code: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return done.stdout


def test_the_fork_server_opens_the_data_and_leaves_no_thread_and_cuda_alone(
    tmp_path: Path,
) -> None:
    # torch's pools start at the first parallel region: a fork after that would hang in the next
    node = compose_group("data", ["data=synthetic", "data.train_size=100", "data.test_size=50"])
    told = tmp_path / "data.json"
    told.write_text(json.dumps(node))
    out = in_a_process_of_its_own(
        "import os, threading, numpy\n"
        "from cifar_lab.sweep import process\n"
        f"os.environ[process.DATA_VARIABLE] = {str(told)!r}\n"
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
    assert second.startswith(f"{expected.digest} {Synthetic.__module__}.Synthetic ")
    assert "'train_size': 100" in second


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere it imports to the end first")
def test_the_fork_server_ends_with_its_supervisor_whatever_it_is_doing() -> None:
    # it holds the supervisor's output open: who reads that through a pipe waits for its end, too
    in_a_process_of_its_own(
        "import os, signal, time\n"
        "from multiprocessing import forkserver\n"
        "from cifar_lab.sweep import process\n"
        "process.warm_up()\n"
        "server = forkserver._forkserver._forkserver_pid\n"
        "while os.getpgid(server) != server:\n"  # it has begun
        "    time.sleep(0.01)\n"
        "os.kill(server, signal.SIGSTOP)\n"  # and would not end by itself
        "os._exit(0)\n"
    )


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="read from /proc")
def test_the_fork_server_never_hears_ctrl_c() -> None:
    # one traceback of Python's start-up on the terminal else, when it comes early
    out = in_a_process_of_its_own(
        "import signal\n"
        "from multiprocessing import forkserver\n"
        "from pathlib import Path\n"
        "from cifar_lab.sweep import process\n"
        "before = signal.getsignal(signal.SIGINT)\n"
        "process.warm_up()\n"
        "status = Path(f'/proc/{forkserver._forkserver._forkserver_pid}/status').read_text()\n"
        "ignored = int(status.partition('SigIgn:')[2].split()[0], 16)\n"
        "print(ignored >> (signal.SIGINT - 1) & 1, signal.getsignal(signal.SIGINT) == before)\n"
    )
    assert out.split() == ["1", "True"]


def test_a_worker_speaks_where_the_one_who_started_it_does_now(tmp_path: Path) -> None:
    # not where the fork server spoke when it was started, which may be somebody else's
    out = in_a_process_of_its_own(
        "import os\n"
        "from cifar_lab.sweep import process\n"
        "def say(word):\n"
        "    process.start('builtins:print', word, environment=os.environ).join()\n"
        "say('before')\n"
        f"file = os.open({str(tmp_path / 'out')!r}, os.O_WRONLY | os.O_CREAT)\n"
        "os.dup2(file, 1)\n"
        "say('after')\n"
        "os.close(1)\n"
        "say('closed')\n"
    )
    assert "before" in out
    assert "after" not in out
    assert (tmp_path / "out").read_text() == "after\n"


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
