"""What every fit does beside training: checkpoints, timings, the record, and stopping in order."""

from __future__ import annotations

import os
import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint

from cifar_lab import signals
from cifar_lab.record import Record
from cifar_lab.training.classifier import Classifier

# The first steps pay for allocation, algorithm choice and compilation: no rate counts them.
WARMUP_STEPS = 20


class Checkpoints(Checkpoint):
    """``last.ckpt``, ``previous.ckpt`` and ``best.ckpt`` below the run folder's ``checkpoints/``.

    Saved after every epoch, and within an epoch when ``every_minutes`` have passed. A checkpoint is
    written beside, flushed and renamed, and the one before it is kept as ``previous.ckpt``, so that
    one whole checkpoint exists at every instant. A state with a NaN in it is never saved. RNG
    states of torch, CUDA, numpy and python travel along.

    Args:
        monitor: the metric that ``best.ckpt`` has the highest value of; where it isn't logged
            (nothing held out) there is no ``best.ckpt``.
        every_minutes: wall time between checkpoints inside an epoch; null: epochs only.
    """

    def __init__(self, *, monitor: str, every_minutes: float | None) -> None:
        self._monitor = monitor
        self._every_s = None if every_minutes is None else 60 * every_minutes
        self._saved_at = time.monotonic()
        self.best_value: float | None = None
        self.best_epoch: int | None = None
        self.restored_rng: dict[str, Any] | None = None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Starts the clock."""
        self._saved_at = time.monotonic()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Saves inside the epoch when it is time; ranks can't agree on the time without talking."""
        if self._every_s is None or trainer.world_size > 1 or trainer.is_last_batch:
            return
        if time.monotonic() - self._saved_at >= self._every_s:
            self.save_last(trainer, pl_module)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Saves the epoch, and keeps it as the best if it is."""
        value = trainer.callback_metrics.get(self._monitor)
        improved = value is not None and (self.best_value is None or float(value) > self.best_value)
        if improved:
            assert value is not None
            self.best_value, self.best_epoch = float(value), trainer.current_epoch
        self.save_last(trainer, pl_module)
        if improved and trainer.is_global_zero:
            folder = _folder(trainer)
            _link(folder / "last.ckpt", folder / "best.ckpt")

    def save_last(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Replaces ``last.ckpt``; raises Diverged instead of saving a state with a NaN in it."""
        assert isinstance(pl_module, Classifier)
        pl_module.assert_finite()
        folder = _folder(trainer)
        beside = folder / ".last.ckpt.partial"
        trainer.save_checkpoint(beside, weights_only=False)
        if trainer.is_global_zero:
            with open(beside, "rb") as file:
                os.fsync(file.fileno())
            if (folder / "last.ckpt").exists():
                _link(folder / "last.ckpt", folder / "previous.ckpt")
            os.replace(beside, folder / "last.ckpt")
        self._saved_at = time.monotonic()

    def state_dict(self) -> dict[str, Any]:
        """The best so far, and every global RNG."""
        return {"best_value": self.best_value, "best_epoch": self.best_epoch, "rng": rng_state()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restores the best so far; the RNGs are set when training starts."""
        self.best_value, self.best_epoch = state_dict["best_value"], state_dict["best_epoch"]
        self.restored_rng = state_dict["rng"]


def _folder(trainer: Trainer) -> Path:
    return Path(trainer.default_root_dir) / "checkpoints"


def _link(source: Path, target: Path) -> None:
    # a second name for the same file, put in place at once; checkpoints are never written in place
    beside = target.with_name(f".{target.name}.partial")
    beside.unlink(missing_ok=True)
    try:
        os.link(source, beside)
    except OSError:  # a file system without hard links
        import shutil

        shutil.copyfile(source, beside)
    os.replace(beside, target)


def rng_state() -> dict[str, Any]:
    """Every global RNG as tensors and plain values, so that it loads with weights_only=True."""
    name, keys, position, has_gauss, gauss = np.random.get_state()
    assert isinstance(keys, np.ndarray)
    version, words, gauss_next = random.getstate()
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        "numpy": [name, keys.tolist(), int(position), int(has_gauss), float(gauss)],
        "python": [version, list(words), gauss_next],
    }


def set_rng_state(state: dict[str, Any]) -> None:
    """Undoes `rng_state`."""
    torch.set_rng_state(state["torch"].cpu())
    if state["cuda"] and torch.cuda.is_available():
        torch.cuda.set_rng_state_all([cuda.cpu() for cuda in state["cuda"]])
    name, keys, position, has_gauss, gauss = state["numpy"]
    np.random.set_state((name, np.array(keys, dtype=np.uint32), position, has_gauss, gauss))
    version, words, gauss_next = state["python"]
    random.setstate((version, tuple(words), gauss_next))


class Timings(Callback):
    """Where the time goes, read once an epoch: nothing here waits for the device inside one.

    ``images_per_s`` is training images over training time, without validation, checkpoints and the
    first 20 steps of the process; ``step_ms`` the same per optimizer step; ``data_wait_ms`` the
    part of it between two steps.
    """

    def __init__(self, *, batch_size: int, started: float) -> None:
        self._batch_size = batch_size
        self._process_started = started
        self._steps = 0
        self._images = 0
        self._train_s = 0.0
        self._wait_s = 0.0
        self._since: float | None = None
        self._batch_ended: float | None = None
        self._fit_started = time.perf_counter()
        self._first_step_s: float | None = None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Starts the fit's clock."""
        self._fit_started = time.perf_counter()

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """The training clock runs."""
        self._resume_clock()

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Counts the wait since the step before; the clock runs again after a checkpoint."""
        if self._since is None:
            self._resume_clock()
        if self._batch_ended is not None and self._steps >= WARMUP_STEPS:
            self._wait_s += time.perf_counter() - self._batch_ended

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Counts the step's images once the warm-up is over."""
        self._steps += 1
        if self._steps > WARMUP_STEPS:
            self._images += len(batch[1])
        elif self._steps in (1, WARMUP_STEPS):
            _synchronize(pl_module)
            if self._steps == 1:
                self._first_step_s = time.perf_counter() - self._process_started
            self._since = time.perf_counter()
        self._batch_ended = time.perf_counter()

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """The training clock stops until the next batch."""
        self._stop_clock(pl_module)

    def on_save_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """The training clock stops until the next batch."""
        self._stop_clock(pl_module)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Logs the rate with the epoch's metrics."""
        self._stop_clock(pl_module)
        if self._images:
            pl_module.log("images_per_s", self._images * trainer.world_size / self._train_s)

    def summary(self) -> dict[str, float | None]:
        """The record's ``timings``; rates are null until more than 20 steps were made."""
        counted = max(0, self._steps - WARMUP_STEPS)
        rates = counted > 0 and self._train_s > 0
        cuda = torch.cuda.is_available() and torch.cuda.is_initialized()
        return {
            "fit_s": round(time.perf_counter() - self._fit_started, 3),
            "images_per_s": self._images / self._train_s if rates else None,
            "step_ms": 1e3 * self._train_s / counted if rates else None,
            "data_wait_ms": 1e3 * self._wait_s / counted if rates else None,
            "start_to_first_step_s": self._first_step_s,
            "peak_memory_mb": torch.cuda.max_memory_allocated() / 2**20 if cuda else _peak_rss_mb(),
        }

    def _resume_clock(self) -> None:
        self._since = time.perf_counter()
        self._batch_ended = None

    def _stop_clock(self, pl_module: LightningModule) -> None:
        if self._since is not None and self._steps > WARMUP_STEPS:
            _synchronize(pl_module)
            self._train_s += time.perf_counter() - self._since
        self._since = None


def _synchronize(pl_module: LightningModule) -> None:
    if pl_module.device.type == "cuda":
        torch.cuda.synchronize(pl_module.device)


def _peak_rss_mb() -> float:
    import resource
    import sys

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return float(peak) / (2**20 if sys.platform == "darwin" else 2**10)


class KeepRecord(Callback):
    """Brings run.json up to date at the end of every epoch, on rank zero."""

    def __init__(self, *, record: Record, timings: Timings) -> None:
        self._record = record
        self._timings = timings

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Writes epochs, steps, metrics and timings."""
        self._record.update(
            epochs=trainer.current_epoch + 1,
            steps=trainer.global_step,
            metrics=metrics_of(trainer),
            timings=self._timings.summary(),
        )


def metrics_of(trainer: Trainer) -> dict[str, float]:
    """What was logged last, as plain numbers."""
    return {name: float(value) for name, value in trainer.callback_metrics.items()}


class StopInOrder(Callback):
    """Ends the fit between two steps after Ctrl-C or SIGTERM, with a checkpoint of that step."""

    def __init__(self, *, save: Callable[[Trainer, LightningModule], None] | None) -> None:
        self._save = save

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Takes the signals back from Lightning, which puts its own SIGTERM handler before ours."""
        signals.install()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Saves, then raises Interrupted."""
        if signals.pending():
            # Lightning skips the validation of an epoch that a checkpoint says is at its end: from
            # its last step on, the run is taken up from the checkpoint before
            if self._save is not None and not trainer.is_last_batch:
                self._save(trainer, pl_module)
            signals.poll()

    def on_validation_batch_end(self, *arguments: Any) -> None:
        """Validation changes nothing: the last checkpoint is as good."""
        signals.poll()

    def on_test_batch_end(self, *arguments: Any) -> None:
        """The test is repeated when the run is taken up again."""
        signals.poll()
