"""What a GPU computes is what the CPU does, on every path; all of it skips without one."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from cifar_lab.training.classifier import Classifier
from tests.conftest import TINY, environment, merged, record_of
from tests.support.runs import same

pytestmark = pytest.mark.gpu
Lab = Callable[..., tuple[int, str, str]]

# without dropout, which draws on the device
BASE = (*[a for a in TINY if not a.startswith(("model", "trainer=cpu"))], "seed=5", "threads=1")
RESNET = ("model=resnet10", "model.num_blocks=[1,1]", "model.width=16")
# a ResNet learns much in these 16 steps: other bits move its losses by a part in 10,000, a wrong
# gradient by far more; TF32 and bfloat16 by some in 1,000
FULL, HALF = 0.01, 0.03

PATHS: dict[str, tuple[float, tuple[str, ...]]] = {
    "plain": (FULL, ()),
    "contiguous": (FULL, ("channels_last=false",)),
    "every monitor": (FULL, ("monitors=default", "logger=default")),
    "bf16-mixed": (HALF, ("trainer.precision=bf16-mixed",)),
    "16-mixed": (HALF, ("trainer.precision=16-mixed",)),
    "bf16-true": (2 * HALF, ("trainer.precision=bf16-true",)),
    "tf32": (FULL, ("matmul_precision=high",)),
    "benchmark": (FULL, ("trainer.benchmark=true",)),
    "ema": (FULL, ("callbacks=ema",)),
    "clipping": (FULL, ("trainer.gradient_clip_val=1.0",)),
    "accumulation": (FULL, ("trainer.accumulate_grad_batches=2",)),
    "adamw": (FULL, ("optimizer=adamw",)),
    "muon": (2 * HALF, ("optimizer=muon",)),
    "every transform": (FULL, ("augment=strong",)),
    "torchvision's loader": (FULL, ("data.loader=torchvision", "data.workers=2")),
    "4 steps": (FULL, ("steps_per_call=4",)),
    "recorded": (FULL, ("steps_per_call=4", "cuda_graph=true")),
    "recorded, bf16": (
        HALF,
        ("steps_per_call=4", "cuda_graph=true", "trainer.precision=bf16-mixed"),
    ),
    "recorded, ema": (FULL, ("steps_per_call=4", "cuda_graph=true", "callbacks=ema")),
    "compiled": (FULL, ("compile=default", "monitors=default")),
    "compiled, recorded": (FULL, ("compile=default", "steps_per_call=4", "cuda_graph=true")),
    "compiled with the slow search": (FULL, ("compile=max", "monitors=default")),
    "other batches to evaluate": (FULL, ("data.eval_batch_size=150",)),
    "views": (FULL, ("tta=flip+shift",)),
}


@pytest.mark.parametrize("path", PATHS)
def test_a_run_is_that_of_the_cpu(lab: Lab, tmp_path: Path, path: str) -> None:
    tolerance, more = PATHS[path]
    # what the CPU has too, in float32 and step by step
    there_only = ("trainer.precision", "steps_per_call", "cuda_graph", "compile", "trainer.bench")
    here = [word for word in more if not word.startswith(there_only)]
    assert lab(*BASE, *RESNET, *here, "trainer=cpu", f"hydra.run.dir={tmp_path}/cpu")[0] == 0
    status, _, err = lab(*BASE, *RESNET, *more, "trainer=gpu", f"hydra.run.dir={tmp_path}/gpu")
    assert status == 0, err
    cpu, gpu = record_of(tmp_path / "cpu"), record_of(tmp_path / "gpu")
    assert torch.cuda.get_device_name() in gpu["device"]
    assert gpu["steps"] == cpu["steps"]
    assert gpu["departures"] == cpu["departures"]
    for metric in ("train/loss", "val/loss", "test/loss"):
        assert gpu["metrics"][metric] == pytest.approx(cpu["metrics"][metric], rel=tolerance), (
            metric
        )


@pytest.mark.parametrize(
    "network",
    [
        RESNET,
        ("model=preact_resnet", "model.num_blocks=[1,1]", "model.width=16"),
        ("model=wide_resnet", "model.depth=10", "model.width=1"),
        ("model=speednet", "optimizer.lr=0.001"),
    ],
    ids=lambda words: words[0],
)
@pytest.mark.parametrize("recorded", [False, True])
def test_every_network_is_that_of_the_cpu(
    lab: Lab, tmp_path: Path, network: tuple[str, ...], recorded: bool
) -> None:
    fast = ("steps_per_call=4", "cuda_graph=true") if recorded else ()
    assert lab(*BASE, *network, "trainer=cpu", f"hydra.run.dir={tmp_path}/cpu")[0] == 0
    status, _, err = lab(*BASE, *network, *fast, "trainer=gpu", f"hydra.run.dir={tmp_path}/gpu")
    assert status == 0, err
    cpu, gpu = record_of(tmp_path / "cpu")["metrics"], record_of(tmp_path / "gpu")["metrics"]
    for metric in ("train/loss", "test/loss"):
        assert gpu[metric] == pytest.approx(cpu[metric], rel=5 * FULL), metric


@pytest.mark.parametrize("first", ["steps_per_call=1", "steps_per_call=4"])
@pytest.mark.parametrize(
    "more",
    [
        (),
        ("callbacks=ema",),
        ("trainer.precision=bf16-mixed",),
        ("cuda_graph=true",),
        ("cuda_graph=true", "callbacks=ema", "augment=strong"),
    ],
    ids=str,
)
def test_stopped_and_continued_equals_undisturbed_to_the_bit(
    lab: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, first: str, more: tuple[str, ...]
) -> None:
    if "cuda_graph=true" in more and first == "steps_per_call=1":
        first = "steps_per_call=3"
    arguments = (*BASE, "model=cnn", "model.width=16", *more, "trainer=gpu")
    arguments = (*arguments, "trainer.deterministic=true")
    assert lab(*arguments, first, f"hydra.run.dir={tmp_path}/whole")[0] == 0
    pending, forward = [2, 9, 13], Classifier.forward

    def stopped(self: Classifier, images: Any) -> Any:
        if (
            self.training
            and pending
            and self.global_step >= pending[0]
            and not torch.cuda.is_current_stream_capturing()
        ):
            pending.pop(0)
            signal.raise_signal(signal.SIGINT)
        return forward(self, images)

    monkeypatch.setattr(Classifier, "forward", stopped)
    sizes = ("steps_per_call=4", "steps_per_call=2", first)
    for size in sizes:
        status, _, err = lab(*arguments, size, f"hydra.run.dir={tmp_path}/cut")
        if status == 0:
            break  # a replay doesn't pass here: it was stopped less often
        assert status == 130, err
    monkeypatch.undo()
    status, _, err = lab(*arguments, first, f"hydra.run.dir={tmp_path}/cut")
    assert status == 0, err
    same(tmp_path / "whole", tmp_path / "cut")


@pytest.mark.parametrize("precision", ["16-mixed", "bf16-mixed"])
def test_sixty_steps_in_half_precision_learn(lab: Lab, tmp_path: Path, precision: str) -> None:
    status, _, err = lab(
        *(*BASE, *RESNET, "trainer=gpu", f"trainer.precision={precision}", "trainer.max_epochs=8"),
        f"hydra.run.dir={tmp_path}/run",
    )
    assert status == 0, err
    metrics = record_of(tmp_path / "run")["metrics"]
    assert metrics["train/loss"] < 2.2


def test_jobs_of_a_sweep_share_a_gpu(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "cifar_lab", "-m", *merged(*BASE, *RESNET, "seed=1,2,3,4")]
    command += ["trainer=gpu", "sweep.slots=2", f"hydra.sweep.dir={tmp_path}/sweep"]
    done = subprocess.run(
        command, env=environment(), capture_output=True, text=True, timeout=200, cwd=tmp_path
    )
    assert done.returncode == 0, done.stdout + done.stderr
    records = [json.loads(path.read_text()) for path in tmp_path.glob("sweep/*/run.json")]
    assert [record["status"] for record in records] == ["finished"] * 4
    assert all(torch.cuda.get_device_name() in record["device"] for record in records)


def test_processes_on_a_gpu_talk_through_nccl(tmp_path: Path) -> None:
    arguments = (*BASE, *RESNET, "trainer=ddp", "trainer.accelerator=gpu", "trainer.devices=1")
    command = [
        sys.executable,
        "-m",
        "cifar_lab",
        *merged(*arguments, f"hydra.run.dir={tmp_path}/r"),
    ]
    done = subprocess.run(
        command, env=environment(), capture_output=True, text=True, timeout=200, cwd=tmp_path
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert record_of(tmp_path / "r")["status"] == "finished"


def test_more_gpus_than_there_are_is_one_line(lab: Lab, tmp_path: Path) -> None:
    count = torch.cuda.device_count() + 1
    status, _, err = lab(
        *BASE, *RESNET, "trainer=gpu", f"trainer.devices={count}", f"hydra.run.dir={tmp_path}/run"
    )
    assert status == 2
    assert len(err.strip().splitlines()) == 1
    assert not (tmp_path / "run").exists()


def test_too_little_memory_is_one_line(lab: Lab, tmp_path: Path) -> None:
    torch.cuda.set_per_process_memory_fraction(0.004)
    try:
        status, _, err = lab(
            *(*BASE, "model=resnet10", "model.width=256", "data.batch_size=400", "trainer=gpu"),
            f"hydra.run.dir={tmp_path}/run",
        )
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
        torch.cuda.empty_cache()
    assert status == 1
    assert "Traceback" not in err
    assert "memory" in err
    assert record_of(tmp_path / "run")["status"] == "failed"


def test_a_run_of_a_gpu_is_read_anywhere(lab: Lab, tmp_path: Path) -> None:
    from cifar_lab import load_run
    from cifar_lab.evaluate import main

    folder = tmp_path / "run"
    assert lab(*BASE, *RESNET, "trainer=gpu", f"hydra.run.dir={folder}")[0] == 0
    run = load_run(folder)
    assert next(run.model.parameters()).device.type == "cpu"
    assert main([str(folder)]) == 0
