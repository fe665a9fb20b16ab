"""What the rate counts: held against a clock that only steps move."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from cifar_lab.training.classifier import Classifier
from tests.conftest import record_of
from tests.support.runs import SMALL

Lab = Callable[..., tuple[int, str, str]]
# 400 images in batches of 30: 13 whole ones and one of 10
ARGUMENTS = (
    *(a for a in SMALL if not a.startswith("data.batch_size")),
    *("data.batch_size=30", "trainer.max_epochs=3"),
)


@pytest.mark.parametrize("size", [1, 5])
def test_a_batch_of_a_new_size_is_no_part_of_the_rate(
    lab: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    now, seen = 1e9, set()  # later than this process began
    step = Classifier.training_step

    def stepping(self: Classifier, batch: Any, batch_idx: int) -> Any:
        nonlocal now
        shape = batch[0].shape
        # a second for each image but, where a kernel is made for a new size, an hour more
        now += len(batch[1].flatten()) + (0 if shape in seen else 3600)
        seen.add(shape)
        return step(self, batch, batch_idx)

    monkeypatch.setattr(Classifier, "training_step", stepping)
    monkeypatch.setattr(
        "cifar_lab.training.callbacks.timings.time", SimpleNamespace(perf_counter=lambda: now)
    )
    status, _, err = lab(*ARGUMENTS, f"steps_per_call={size}", f"hydra.run.dir={tmp_path}/run")
    assert status == 0, err
    timings = record_of(tmp_path / "run")["timings"]
    assert timings["images_per_s"] == pytest.approx(1.0)
    assert timings["data_wait_ms"] == pytest.approx(0.0)
    assert len(seen) == (2 if size == 1 else 3)
