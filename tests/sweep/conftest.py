"""Jobs of a second, and ways for them to go wrong."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.conftest import TINY

SMALL = (*TINY, "trainer.max_epochs=1", "logger=csv", "sweep.report=false")

FATES = '''
import os, signal, sys, time
from pathlib import Path
import torch
from lightning.pytorch import Callback


class Fate(Callback):
    """Ends its job in the way it is told, or spoils what a process shares."""

    def __init__(self, *, how):
        self.how = how

    def on_train_start(self, trainer, pl_module):
        first = Path(trainer.default_root_dir) / "attempted"
        if self.how == "raise":
            raise ZeroDivisionError("on purpose")
        if self.how == "sys.exit":
            sys.exit(3)
        if self.how == "os._exit":
            os._exit(3)
        if self.how == "kill" or (self.how == "kill_once" and not first.exists()):
            first.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        if self.how == "memory_once" and not first.exists():
            first.touch()
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        if self.how == "hang":
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            time.sleep(600)
        if self.how == "wait":
            while True:
                time.sleep(0.01)

    def on_fit_end(self, trainer, pl_module):
        Path("working_directory").touch()
        if self.how == "spoil":
            torch.set_default_dtype(torch.float64)
            torch.use_deterministic_algorithms(True)
            torch.manual_seed(7)
            os.environ["OMP_NUM_THREADS"] = "7"
'''


@pytest.fixture
def fates(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The override whose values are the fates of jobs."""
    (tmp_path / "fates.py").write_text(FATES)
    monkeypatch.syspath_prepend(tmp_path)
    return "+callbacks.fate.how"
