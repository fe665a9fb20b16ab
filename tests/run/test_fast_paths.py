"""Keys that make a run faster on a GPU: off by default, on record, and no change where they are."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from cifar_lab.config.validate import (
    accelerator,
    check_precision,
    devices_present,
    precision_warning,
)
from cifar_lab.records.digest import NEW_AND_BEFORE, config_digest
from tests.conftest import record_of
from tests.support.runs import SMALL, weights

Lab = Callable[..., tuple[int, str, str]]
ONE_EPOCH = (*(a for a in SMALL if not a.startswith("trainer.max")), "trainer.max_epochs=1")


@pytest.fixture(autouse=True)
def _as_it_was() -> Iterator[None]:
    before = torch.get_float32_matmul_precision()
    yield
    torch.set_float32_matmul_precision(before)


def test_every_fast_path_is_off_by_default(lab: Lab, tmp_path: Path) -> None:
    torch.set_float32_matmul_precision("medium")  # what a run before in this process left
    assert lab(*ONE_EPOCH, f"hydra.run.dir={tmp_path}/run")[0] == 0
    assert torch.get_float32_matmul_precision() == "highest"
    config = record_of(tmp_path / "run")["config"]
    expected = {"compile": "none", "cuda_graph": False, "steps_per_call": 1}
    expected |= {"matmul_precision": "highest", "channels_last": True}
    assert {key: config[key] for key in expected} == expected
    assert config["data"]["eval_batch_size"] is None
    assert config["callbacks"]["checkpoints"]["min_seconds"] is None
    assert "benchmark" not in config["trainer"]


@pytest.mark.parametrize("precision", ["high", "medium"])
def test_the_matmul_precision_is_torchs_on_record_and_part_of_the_digest(
    lab: Lab, tmp_path: Path, precision: str
) -> None:
    more = (f"matmul_precision={precision}", f"hydra.run.dir={tmp_path}/run")
    assert lab(*ONE_EPOCH, *more)[0] == 0
    assert torch.get_float32_matmul_precision() == precision
    record = record_of(tmp_path / "run")
    assert record["config"]["matmul_precision"] == precision
    other = {**record["config"], "matmul_precision": "highest"}
    assert config_digest(record["config"]) == record["config_digest"] != config_digest(other)


def test_another_matmul_precision_is_wrong_input(lab: Lab, tmp_path: Path) -> None:
    status, _, err = lab(*ONE_EPOCH, "matmul_precision=tf32", f"hydra.run.dir={tmp_path}/run")
    assert status == 2
    assert len(err.splitlines()) <= 2
    assert all(word in err for word in ("matmul_precision", "highest", "high", "medium"))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("key", NEW_AND_BEFORE)
def test_a_record_without_a_young_key_is_the_same_run(lab: Lab, tmp_path: Path, key: str) -> None:
    assert lab(*ONE_EPOCH, "trainer.limit_train_batches=1", f"hydra.run.dir={tmp_path}/run")[0] == 0
    record = record_of(tmp_path / "run")
    older = json.loads(json.dumps(record["config"]))
    *path, last = key.split(".")
    node = older
    for name in path:
        node = node[name]
    node.pop(last, None)
    assert config_digest(older) == record["config_digest"]
    node[last] = "another"
    assert config_digest(older) != record["config_digest"]


@pytest.mark.parametrize("size", [7, 1000])
def test_a_batch_of_the_evaluation_has_its_own_size_and_nothing_else_changes(
    lab: Lab, tmp_path: Path, size: int
) -> None:
    assert lab(*ONE_EPOCH, f"hydra.run.dir={tmp_path}/one")[0] == 0
    more = (f"data.eval_batch_size={size}", f"hydra.run.dir={tmp_path}/other")
    assert lab(*ONE_EPOCH, *more)[0] == 0
    one, other = (weights(tmp_path / name) for name in ("one", "other"))
    assert all(torch.equal(other[key], value) for key, value in one.items())
    metrics = [record_of(tmp_path / name)["metrics"] for name in ("one", "other")]
    for split in ("val", "test"):
        assert metrics[0][f"{split}/acc"] == metrics[1][f"{split}/acc"]
        assert metrics[0][f"{split}/loss"] == pytest.approx(metrics[1][f"{split}/loss"], rel=1e-6)
    kept = [np.load(tmp_path / name / "predictions.npz") for name in ("one", "other")]
    np.testing.assert_array_equal(kept[0]["labels"], kept[1]["labels"])
    np.testing.assert_allclose(kept[0]["logits"], kept[1]["logits"], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("bad", ["0", "2.5", "true"])
def test_a_size_that_is_none_is_wrong_input(lab: Lab, tmp_path: Path, bad: str) -> None:
    more = (f"data.eval_batch_size={bad}", f"hydra.run.dir={tmp_path}/run")
    status, _, err = lab(*ONE_EPOCH, *more)
    assert status == 2
    assert "data.eval_batch_size" in err
    assert not (tmp_path / "run").exists()


# --- bfloat16 without instructions for it ---------------------------------------------------------


@pytest.mark.parametrize(
    ("has", "slow"),
    [
        ({"avx2": True, "avx512_bf16": False, "amx_bf16": False, "cpu_name": "AMD EPYC"}, True),
        ({"avx512_bf16": True, "amx_bf16": False}, False),
        ({"avx512_bf16": False, "amx_bf16": True}, False),
        ({"neon": True, "bf16": False}, True),
        ({"neon": True, "bf16": True}, False),
        ({"architecture": "unknown"}, False),
    ],
)
@pytest.mark.parametrize("precision", ["bf16-mixed", "bf16-true"])
def test_a_processor_without_bfloat16_is_said(
    monkeypatch: pytest.MonkeyPatch, has: dict[str, Any], slow: bool, precision: str
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: has)
    line = precision_warning(precision, "cpu")
    assert (line is not None) == slow
    if line:
        name = has.get("cpu_name", "this processor")
        assert line.startswith(f"trainer.precision={precision}: {name} has no instructions for ")
    for other in ("32-true", "64-true"):
        assert precision_warning(other, "cpu") is None
    assert precision_warning(precision, "cuda") is None


def test_a_run_and_a_sweep_say_that_bfloat16_is_slow_here(lab: Lab, tmp_path: Path) -> None:
    precise = ("trainer.precision=bf16-mixed", "trainer.accelerator=cpu")
    line = precision_warning("bf16-mixed", "cpu")
    status, _, err = lab(*ONE_EPOCH, *precise, f"hydra.run.dir={tmp_path}/run")
    assert status == 0, err
    assert ("no instructions for bfloat16" in err) == (line is not None)
    sweep = ("-m", *ONE_EPOCH, *precise, "seed=0,1", f"hydra.sweep.dir={tmp_path}/sweep")
    status, _, err = lab(*sweep)
    assert status == 0, err
    # once for all jobs
    assert err.count("no instructions for bfloat16") == (line is not None)


# --- who asks CUDA --------------------------------------------------------------------------------


def test_what_is_no_question_of_cuda_asks_it_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("is_available", "device_count", "is_bf16_supported"):
        monkeypatch.setattr(torch.cuda, name, lambda *_, **__: pytest.fail("CUDA was asked"))
    assert accelerator("cpu") == "cpu"
    assert devices_present("cpu") >= 2
    for precision in ("32-true", "bf16-mixed", "64-true"):
        check_precision(precision, "cpu")
    for precision in ("32-true", "16-mixed", "64-true"):
        check_precision(precision, "cuda")


@pytest.mark.parametrize(
    ("name", "cuda", "mps", "kind"),
    [
        *[
            ("auto", True, True, "cuda"),
            ("auto", False, True, "mps"),
            ("auto", False, False, "cpu"),
        ],
        *[("gpu", True, False, "cuda"), ("gpu", False, True, "mps"), ("mps", True, True, "mps")],
        *[("cuda", True, False, "cuda"), ("cpu", True, True, "cpu")],
    ],
)
def test_an_accelerator_is_the_first_that_is_there(
    monkeypatch: pytest.MonkeyPatch, name: str, cuda: bool, mps: bool, kind: str
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)
    assert accelerator(name) == kind
