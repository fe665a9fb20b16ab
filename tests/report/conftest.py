"""Run folders as runs leave them, without running anything; and one sweep of real runs."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.conftest import TINY, environment, merged

DIGEST = "d7c0b9ac" * 8


def config_of(lr: float, num_blocks: Sequence[int], **more: Any) -> dict[str, Any]:
    """A resolved configuration, short, with keys that change no result among them."""
    return {
        "data": {"_target_": "cifar_lab.data.datamodule.Cifar10", "root": "/data", "val_size": 50},
        "model": {"_target_": "cifar_lab.model.resnet.ResNet", "num_blocks": list(num_blocks)},
        "optimizer": {"_target_": "torch.optim.SGD", "lr": lr, "momentum": 0.9},
        "trainer": {"max_epochs": 3},
        "slots": None,
        **more,
    }


def write_run(
    folder: Path,
    *,
    lr: float = 0.1,
    num_blocks: Sequence[int] = (1, 1),
    seed: int = 0,
    val: Sequence[float] = (0.3, 0.5, 0.4),
    test: float | None = 0.45,
    status: str = "finished",
    predictions: np.ndarray | None = None,
    curves: bool = True,
    **fields: Any,
) -> Path:
    """A run folder; ``val`` are the epochs' accuracies, ``fields`` replace those of run.json."""
    folder.mkdir(parents=True)
    metrics: dict[str, Any] = {"train/loss": 1.0, "test/acc": test}
    if len(val):
        metrics["val/acc"] = val[-1]
    blocks = "[" + ",".join(map(str, num_blocks)) + "]"
    record: dict[str, Any] = {
        "schema": 1,
        "status": status,
        "host": "elsewhere",
        "pid": 1,
        "heartbeat": "2026-01-01T00:00:00+00:00",
        "ended": "2026-01-01T00:01:00+00:00",
        "error": None,
        "overrides": [f"optimizer.lr={lr}", f"model.num_blocks={blocks}", f"seed={seed}"],
        "config": {**config_of(lr, num_blocks), "seed": seed},
        "config_digest": f"{abs(hash((lr, blocks, seed))):x}",
        "seed": seed,
        "tested": "best" if len(val) else "last",
        "best_epoch": int(np.argmax(val)) + 1 if len(val) else None,
        "git": {"sha": "c" * 40, "dirty": False},
        "device": "cpu",
        "data": {"name": "cifar10", "digest": DIGEST, "official": True},
        "parameters": 1000 * sum(num_blocks),
        "epochs": len(val),
        "timings": {"fit_s": 10.0 * sum(num_blocks) + seed, "images_per_s": 500.0},
        "metrics": metrics,
        **fields,
    }
    (folder / "run.json").write_text(json.dumps(record))
    if curves:
        rows = [f"{i},{10 * i + 9},{2.3 - v},{v},{2.4 - v},,," for i, v in enumerate(val)]
        if test is not None:
            rows.append(f"{len(val)},{10 * len(val)},,,,,1.5,{test}")
        header = "epoch,step,val/loss,val/acc,train/loss,lr,test/loss,test/acc"
        (folder / "metrics.csv").write_text("\n".join([header, *rows]) + "\n")
    if predictions is not None:
        save_predictions(folder, predictions)
    return folder


def save_predictions(folder: Path, right: np.ndarray) -> None:
    """predictions.npz in which image i is answered correctly where ``right[i]``."""
    labels = np.arange(len(right)) % 10
    said = np.where(right, labels, (labels + 1) % 10)
    np.savez(folder / "predictions.npz", labels=labels, logits=np.eye(10, dtype=np.float32)[said])


def write_many(root: Path, *, configurations: int, seeds: int, epochs: int, images: int) -> None:
    """A sweep of ``configurations`` x ``seeds`` runs with plausible curves and predictions."""
    random = np.random.default_rng(0)
    ladder = [(1,), (1, 1), (1, 1, 1), (1, 1, 1, 1), (2, 2, 2, 2)]
    for number in range(configurations):
        lr = float(f"{10 ** (-3 + 2.5 * (number // 5) / (configurations / 5)):.3g}")
        best = 0.95 - 0.05 * math.log10(lr / 0.05) ** 2 - 0.04 / len(ladder[number % 5])
        for seed in range(seeds):
            top = best + random.normal(0, 0.004)
            noise = random.normal(0, 0.004, epochs)
            values = top - 0.5 * np.exp(-np.arange(epochs) / epochs * 6) + noise
            write_run(
                root / f"{number:03}-seed{seed}",
                lr=lr,
                num_blocks=ladder[number % 5],
                seed=seed,
                val=np.clip(values, 0, 1).round(4).tolist(),
                test=float(values.max() - 0.005),
                predictions=random.random(images) < top if images else None,
            )


def rows_of(text: str) -> list[Mapping[str, str]]:
    """A CSV text's rows."""
    import csv
    import io

    return list(csv.DictReader(io.StringIO(text)))


@pytest.fixture(scope="session")
def sweep(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Real runs: 2 learning rates x 2 depths x 2 seeds, and one that diverges."""
    folder = tmp_path_factory.mktemp("sweep")
    command = [
        sys.executable,
        "-m",
        "cifar_lab",
        "-m",
        *TINY,
        "threads=1",
        "sweep.slots=1",
        "sweep.report=false",
    ]
    swept = ["optimizer.lr=0.03,0.3", "model.num_blocks=[1],[1,1]", "seed=0,1"]
    environ = environment(XDG_CACHE_HOME=str(folder / "cache"))
    runs = folder / "outputs" / "depth"
    subprocess.run(
        merged(*command, *swept, f"hydra.sweep.dir={runs}"), env=environ, cwd=folder, check=True
    )
    # a rate at which no network of this world stays finite
    ends = subprocess.run(
        [*command, "optimizer.lr=1e30", f"hydra.sweep.dir={folder / 'outputs' / 'wild'}"],
        env=environ,
        cwd=folder,
        check=False,
    )
    assert ends.returncode == 1
    return folder / "outputs"


@pytest.fixture
def artefacts(tmp_path: Path) -> Path:
    """Where screenshots go: the folder that CIFAR_LAB_ARTEFACTS names, if it does."""
    folder = Path(os.environ.get("CIFAR_LAB_ARTEFACTS") or tmp_path / "artefacts")
    folder.mkdir(parents=True, exist_ok=True)
    return folder
