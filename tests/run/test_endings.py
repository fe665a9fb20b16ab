"""How a run ends other than well, and what it says then."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from cifar_lab.training.classifier import Classifier
from tests.conftest import record_of
from tests.support.runs import SMALL

Lab = Callable[..., tuple[int, str, str]]


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (
            torch.OutOfMemoryError(
                "CUDA out of memory. Tried to allocate 72.00 MiB. GPU 0 has a total capacity of "
                "79.18 GiB of which 62.39 GiB is free."
            ),
            "OutOfMemoryError: CUDA out of memory. Tried to allocate 72.00 MiB; set a smaller",
        ),
        (
            RuntimeError(
                "[enforce fail at alloc_cpu.cpp:130] data. DefaultCPUAllocator: can't allocate "
                "memory: you tried to allocate 400000 bytes. Error code 12"
            ),
            "you tried to allocate 400000 bytes; set a smaller data.batch_size (now 50)",
        ),
        (MemoryError(), "MemoryError: ; set a smaller"),
    ],
    ids=["cuda", "cpu", "python"],
)
def test_too_little_memory_is_one_line(
    lab: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, line: str
) -> None:
    def raises(self: Classifier, batch: Any, batch_idx: int) -> None:
        raise error

    monkeypatch.setattr(Classifier, "training_step", raises)
    status, _, err = lab(*SMALL, "data.batch_size=50", f"hydra.run.dir={tmp_path}/run")
    assert status == 1
    said, *more = err.strip().splitlines()
    assert line in said
    assert more == [f"cifar_lab: log: {tmp_path}/run/train.log"]
    record = record_of(tmp_path / "run")
    assert record["status"] == "failed"
    assert record["error"] in said
