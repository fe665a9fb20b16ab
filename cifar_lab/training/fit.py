"""Fit, then test once: everything that happens between a checked configuration and its record."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Callback, Trainer

from cifar_lab import signals
from cifar_lab.data.datamodule import DataModule
from cifar_lab.record import Record
from cifar_lab.training.callbacks import (
    Checkpoints,
    KeepRecord,
    StopInOrder,
    Timings,
    metrics_of,
    set_rng_state,
)
from cifar_lab.training.classifier import Classifier
from cifar_lab.training.metrics_csv import MetricsCsv
from cifar_lab.training.tensorboard import TensorBoard, hparams_of

log = logging.getLogger("cifar_lab")


@dataclass
class Parts:
    """A run, built and ready."""

    trainer: Trainer
    classifier: Classifier
    data: DataModule


class _RestoreRng(Callback):
    """Sets the checkpoint's RNGs when training begins, after everything that draws from them."""

    def __init__(self, checkpoints: Checkpoints) -> None:
        self._checkpoints = checkpoints

    def on_train_start(self, *arguments: Any) -> None:
        """Restores, if a checkpoint brought any."""
        if self._checkpoints.restored_rng is not None:
            set_rng_state(self._checkpoints.restored_rng)


def run(
    parts: Parts, *, record: Record | None, run_dir: Path, started: float, resume_from: Path | None
) -> None:
    """Fits, tests the best checkpoint (the last where nothing is held out), and fills the record.

    Args:
        parts: as built by the door.
        record: None on all ranks but the first.
        run_dir: the run folder.
        started: `time.perf_counter` when the process began.
        resume_from: the checkpoint to continue from.

    Raises:
        Diverged: a loss or a weight became NaN or infinite. Interrupted: Ctrl-C or SIGTERM.
    """
    trainer, data = parts.trainer, parts.data
    timings = Timings(batch_size=data.batch_size, started=started)
    callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]  # set by a connector
    checkpoints = next((c for c in callbacks if isinstance(c, Checkpoints)), None)
    own: list[Callback] = [timings]
    if record is not None:
        own.append(KeepRecord(record=record, timings=timings))
    if checkpoints is not None:
        own.append(_RestoreRng(checkpoints))
        (run_dir / "checkpoints").mkdir(exist_ok=True)
    own.append(StopInOrder(save=None if checkpoints is None else checkpoints.save_last))
    # before the checkpoint callback, which Lightning keeps last: it saves what these have measured
    callbacks[:] = own + callbacks
    _open_loggers(parts, resume_from)
    with signals.deferred():
        trainer.fit(parts.classifier, datamodule=data, ckpt_path=resume_from, weights_only=True)
        fitted = timings.summary()
        metrics = metrics_of(trainer)
        best = None if checkpoints is None else checkpoints.best_epoch
        tested = "last" if best is None else "best"
        path = run_dir / "checkpoints" / "best.ckpt" if tested == "best" else None
        if path is not None:
            # by hand: Lightning's test(ckpt_path=...) prints two lines and restores callbacks too
            state = torch.load(path, map_location="cpu", weights_only=True)["state_dict"]
            parts.classifier.load_state_dict(state)
        trainer.test(parts.classifier, datamodule=data, verbose=False)
        metrics.update(metrics_of(trainer))
    if record is None:
        return
    np.savez(
        run_dir / "predictions.npz",
        labels=parts.classifier.test_labels.numpy(),
        logits=parts.classifier.test_logits.numpy(),
    )
    for logger in trainer.loggers:
        if isinstance(logger, TensorBoard):
            logger.finish(
                {**metrics, "parameters": record.fields["parameters"]}, trainer.global_step
            )
    saved = ("last", "previous", "best")
    record.update(
        tested=tested,
        best_epoch=None if best is None else best + 1,
        metrics=metrics,
        timings=fitted,
        checkpoints=[
            f"checkpoints/{name}.ckpt"
            for name in saved
            if (run_dir / "checkpoints" / f"{name}.ckpt").exists()
        ],
    )


def _open_loggers(parts: Parts, resume_from: Path | None) -> None:
    """Hyperparameters first; on a resume, what was logged after the checkpoint is taken back."""
    config = parts.classifier.hparams["config"]
    if resume_from is not None:
        step = torch.load(resume_from, map_location="cpu", weights_only=True)["global_step"]
        for logger in parts.trainer.loggers:
            if isinstance(logger, MetricsCsv | TensorBoard):
                logger.resume(step)
    for logger in parts.trainer.loggers:
        logger.log_hyperparams(hparams_of(config))
