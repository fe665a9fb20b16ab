"""A compiled network is the same network: its checkpoints are those of an uncompiled one."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from cifar_lab.data.augment import Pipeline
from cifar_lab.data.datamodule import Synthetic
from cifar_lab.model.resnet import ResNet
from cifar_lab.training.steps.compile import prepare
from tests.conftest import FEED, TINY, environment, merged, record_of
from tests.support.runs import stop_at, weights

Lab = Callable[..., tuple[int, str, str]]
# no dropout: compiled, it draws other masks
ARGUMENTS = (*TINY, "threads=1")
# one pass differs in the last bits, 16 steps of training in what grows from them
LOOSE: dict[str, Any] = {"rtol": 1e-3, "atol": 1e-3}
AFTER_TRAINING: dict[str, Any] = {"rtol": 0.05, "atol": 0.02}


def logits_of(network: ResNet) -> torch.Tensor:
    data = Synthetic(
        **{**FEED, "train_size": 600, "test_size": 200, "data_seed": 0, "batch_size": 50},
        val_size=200,
        augment=Pipeline(transforms={}),
        seed=0,
    )
    data.open()
    network.eval()
    with torch.no_grad():
        return torch.cat([network(images) for images, _ in data.test_dataloader()])


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["default", "max"])
def test_a_compiled_run_resumes_and_its_checkpoint_loads_into_either(
    lab: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: str
) -> None:
    arguments = (*ARGUMENTS, f"compile={mode}", f"hydra.run.dir={tmp_path}/run")
    stop_at(monkeypatch, 11)
    assert lab(*arguments)[0] == 130
    monkeypatch.undo()
    status, _, err = lab(*arguments)
    assert status == 0, err
    assert lab(*ARGUMENTS, f"hydra.run.dir={tmp_path}/eager")[0] == 0
    compiled, eager = weights(tmp_path / "run"), weights(tmp_path / "eager")
    assert compiled.keys() == eager.keys()
    for name in compiled:
        torch.testing.assert_close(compiled[name], eager[name], **AFTER_TRAINING)

    record = record_of(tmp_path / "run")
    state = torch.load(tmp_path / "run" / "checkpoints" / f"{record['tested']}.ckpt")["state_dict"]
    state = {key.removeprefix("network."): value for key, value in state.items()}
    saved = torch.from_numpy(np.load(tmp_path / "run" / "predictions.npz")["logits"])
    for how in ("none", mode):
        network = ResNet(num_blocks=[1, 1], width=4)
        prepare(network, device="cpu", channels_last=False, mode=how)
        network.load_state_dict(state)
        torch.testing.assert_close(logits_of(network), saved, **LOOSE)


@pytest.mark.parametrize("mode", ["default", "max"])
def test_no_graphs_of_inductors_own_are_made(monkeypatch: pytest.MonkeyPatch, mode: str) -> None:
    from torch._inductor import list_mode_options

    asked: list[dict[str, Any]] = []
    monkeypatch.setattr(nn.Module, "compile", lambda _, **options: asked.append(options))
    prepare(ResNet(num_blocks=[1], width=4), device="cpu", channels_last=False, mode=mode)
    [options] = asked
    settings = list_mode_options(options["mode"]) if "mode" in options else {}
    assert not settings.get("triton.cudagraphs")
    assert (mode == "max") == bool(settings.get("max_autotune"))


def test_compiling_changes_no_name(tmp_path: Path) -> None:
    network = ResNet(num_blocks=[1, 1], width=16)
    names = list(network.state_dict())
    prepare(network, device="cpu", channels_last=True, mode="default")
    assert list(network.state_dict()) == names
    assert network.get_parameter("stem.0.weight").is_contiguous(memory_format=torch.channels_last)


def test_without_a_compiler_the_person_is_told(
    lab: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    status, _, err = lab(*ARGUMENTS, "compile=default", f"hydra.run.dir={tmp_path}/run")
    assert status == 2
    assert "compile=default: needs a compiler and finds none of c++" in err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("network", "expected"),
    [
        (nn.Conv2d(8, 20, 1, stride=2), False),
        (nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(32, 8, 1, stride=2, groups=4)), False),
        (nn.Conv2d(16, 20, 1, stride=2), True),
        (nn.Conv2d(8, 20, 1), True),
        (nn.Conv2d(8, 20, 3, stride=2), True),
        (ResNet(num_blocks=[1, 1], width=8), True),  # leaves pixels out by itself
    ],
)
def test_networks_that_onednn_writes_out_of_bounds_with_stay_contiguous(
    network: nn.Module, expected: bool
) -> None:
    assert prepare(network, device="cpu", channels_last=True, mode="none") is expected
    first = next(network.parameters())
    if first.shape[-1] > 1:  # else the two formats look the same
        assert first.is_contiguous(memory_format=torch.channels_last) is expected


def test_a_narrow_network_survives_odd_batches_on_several_threads(tmp_path: Path) -> None:
    # with channels_last it dies of a corrupted heap (uxlfoundation/oneDNN#6035)
    arguments = (*ARGUMENTS[:-1], "threads=2", "data.batch_size=25", "hydra.run.dir=run")
    done = subprocess.run(
        [sys.executable, "-m", "cifar_lab", *merged(*arguments)],
        env=environment(XDG_CACHE_HOME=str(tmp_path / "cache")),
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stderr) == (0, "")
