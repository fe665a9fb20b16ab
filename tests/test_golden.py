"""The golden run: twenty steps on synthetic data in float64 on one thread, held against a file.

A refactor leaves it untouched. A change of numbers says so in CHANGELOG.md, with before and after,
and rewrites the file: ``python -m tests.test_golden``.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.conftest import record_of

FILE = Path(__file__).parent / "golden" / "twenty_steps.json"
# No dropout: its stream differs between builds of torch (MKL or not). All else is drawn by
# torch.Generator on the CPU and numpy's SeedSequence, which are the same everywhere.
COMMAND = (
    "data=synthetic",
    "data.batch_size=40",
    "data.val_size=200",
    "model=resnet10",
    "model.num_blocks=[1,1,1]",
    "model.width=8",
    "optimizer.lr=0.05",
    "optimizer.nesterov=true",
    "scheduler=onecycle",
    "trainer=cpu",
    "trainer.precision=64-true",
    "trainer.max_epochs=2",
    "trainer.limit_train_batches=10",
    "trainer.limit_test_batches=10",
    "callbacks=checkpoints",
    "monitors=none",
    "threads=1",
    "seed=7",
)


def measured(folder: Path) -> dict[str, Any]:
    """Runs it and reads what it left."""
    from cifar_lab.__main__ import main

    threads = torch.get_num_threads()
    try:
        assert main([*COMMAND, f"hydra.run.dir={folder}"]) == 0
    finally:
        torch.set_num_threads(threads)
    record = record_of(folder)
    state = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    return {
        "data": record["data"]["digest"],
        "metrics": {k: v for k, v in record["metrics"].items() if k != "images_per_s"},
        "norms": {name: float(t.double().norm()) for name, t in state.items()},
    }


def test_twenty_steps_are_the_committed_ones(tmp_path: Path) -> None:
    golden, now = json.loads(FILE.read_text()), measured(tmp_path / "run")
    assert now["data"] == golden["data"]
    assert now["metrics"] == pytest.approx(golden["metrics"], rel=1e-9)
    assert now["norms"] == pytest.approx(golden["norms"], rel=1e-9)


if __name__ == "__main__":
    import tempfile

    with tempfile.TemporaryDirectory() as temporary:
        FILE.write_text(json.dumps(measured(Path(temporary) / "run"), indent=2) + "\n")
