"""Runs on images of one's own (`tests.support.images`), and what happens to their files."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.conftest import record_of

# 55 training images, 11 steps an epoch
BASE = (
    *("data=cifar10", "data.batch_size=5", "model=resnet10", "model.num_blocks=[1]"),
    *("model.width=4", "trainer=cpu", "threads=1", "scheduler=constant"),
    *("callbacks=checkpoints", "monitors=none", "logger=csv"),
)


OFFLINE = (*BASE, "data.offline=true", "data.val_size=5")


RUN = (*OFFLINE, "trainer.max_epochs=2")


def change(run_dir: Path, edit: Callable[[dict[str, Any]], object]) -> dict[str, Any]:
    """Edits run.json as another version or machine would have written it."""
    record = record_of(run_dir)
    edit(record)
    (run_dir / "run.json").write_text(json.dumps(record))
    return record


def replace_in_place(old: Path, new: Path) -> None:
    """With a file of the same size, and with the old one's dates."""
    status = old.stat()
    assert new.stat().st_size == status.st_size
    new.replace(old)
    os.utime(old, ns=(status.st_atime_ns, status.st_mtime_ns))
