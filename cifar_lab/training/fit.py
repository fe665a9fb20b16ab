"""Fit, then test once: everything that happens between a checked configuration and its record."""

from __future__ import annotations

import io
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from lightning.pytorch import Callback, Trainer

from cifar_lab import signals
from cifar_lab.data.datamodule import DataModule
from cifar_lab.errors import InputError
from cifar_lab.records import checkpoint_file as files
from cifar_lab.records.checkpoint_file import load
from cifar_lab.records.files import write_atomically
from cifar_lab.records.record import Record
from cifar_lab.training.callbacks.checkpoints import Checkpoints
from cifar_lab.training.callbacks.lifecycle import KeepRecord, RestoreRng, StopInOrder, metrics_of
from cifar_lab.training.callbacks.timings import Timings
from cifar_lab.training.classifier import Classifier
from cifar_lab.training.layout import WatchLayout
from cifar_lab.training.loggers.metrics_csv import FILE_NAME as METRICS_FILE
from cifar_lab.training.loggers.metrics_csv import MetricsCsv
from cifar_lab.training.loggers.tensorboard import FOLDER as TENSORBOARD_FOLDER
from cifar_lab.training.loggers.tensorboard import TensorBoard, hparams_of
from cifar_lab.training.steps.allocator import keep_freed_memory
from cifar_lab.training.steps.cuda_graph import WholeStep
from cifar_lab.training.steps.multistep import arrange

log = logging.getLogger("cifar_lab")


@dataclass
class Parts:
    """A run, built and ready."""

    trainer: Trainer
    classifier: Classifier
    data: DataModule
    steps_per_call: int | None = None  # None: what suits the device
    cuda_graph: bool = False


def run(
    parts: Parts, *, record: Record | None, run_dir: Path, started: float, resume_from: Path | None
) -> None:
    """Fits, tests the best checkpoint (the last where none is selected), and fills the record.

    Args:
        parts: as built by the door.
        record: None on all ranks but the first.
        run_dir: the run folder.
        started: `time.perf_counter` when the process began.
        resume_from: the checkpoint to continue from.

    Raises:
        Diverged: a loss or a weight became NaN or infinite. Interrupted: Ctrl-C or SIGTERM.
        InputError: the fit was stopped before its first step, or no validation logged what selects.
        DamagedError: the best checkpoint can't be read, and no other holds that epoch.
    """
    trainer, data = parts.trainer, parts.data
    if trainer.strategy.root_device.type == "cpu":
        keep_freed_memory()
    timings, watch = Timings(started=started), WatchLayout()
    checkpoints = _add_callbacks(parts, record, timings, watch, run_dir)
    blocks = arrange(trainer, data, parts.steps_per_call)
    if parts.cuda_graph and blocks is None:
        log.warning("cuda_graph=true: a recorded step needs steps_per_call > 1; going on without")
    parts.classifier.train_on(blocks, whole_step=WholeStep if parts.cuda_graph else None)
    carried = _take_up(parts, record, run_dir, resume_from)
    with signals.deferred():
        trainer.fit(parts.classifier, datamodule=data, ckpt_path=resume_from, weights_only=True)
        fitted = timings.summary()
        if trainer.global_step == 0:
            raise InputError("the fit was stopped before its first optimizer step: nothing to test")
        departures = watch.finish(trainer, parts.classifier)
        # a fit that was over already logs nothing: its last metrics came with the checkpoint
        metrics: dict[str, float | None] = {**carried, **metrics_of(trainer)}
        metrics |= _put_in_place(parts, checkpoints, watch, run_dir, resume_from)
        because = _because(data, checkpoints, watch)

        def keep(result: dict[str, float]) -> None:
            metrics.update(result)
            if record is not None:
                _write_predictions(run_dir, parts.classifier)
                laid_out = {
                    "tested_because": because,
                    "steps_planned": watch.planned.steps,
                    "images_per_step": watch.ran.images_per_step,
                    "departures": departures,
                }
                _finish_record(record, run_dir, checkpoints, metrics, timings=fitted, **laid_out)

        parts.classifier.keep_result = keep
        trainer.test(parts.classifier, datamodule=data, verbose=False)
        metrics.update(metrics_of(trainer))
    if record is not None:
        record.update(metrics=metrics)  # with what callbacks have added
        _finish_curves(trainer, metrics, record)


def _put_in_place(
    parts: Parts,
    checkpoints: Checkpoints | None,
    watch: WatchLayout,
    run_dir: Path,
    resume_from: Path | None,
) -> dict[str, float | None]:
    """Gives the classifier the weights to test; what ``val/...`` says of those very weights."""
    trainer, classifier = parts.trainer, parts.classifier
    trainer.strategy.barrier()  # rank zero writes the checkpoints, the others read them
    if checkpoints is not None and checkpoints.best_step is not None:
        # by hand: Lightning's test(ckpt_path=...) prints two lines and restores callbacks too
        best = files.best_checkpoint(run_dir, checkpoints.best_step)
        classifier.load_state_dict(best["state_dict"])
        return _validation(best["run"]["metrics"])
    if resume_from is not None and trainer.fit_loop.skip:
        # over before it was taken up: no callback has put the averages of weights in place
        classifier.load_state_dict(load(resume_from)["state_dict"])
    elif checkpoints is not None and watch.changed_at_the_end:
        classifier.load_state_dict(load(run_dir / files.FOLDER / files.LAST)["state_dict"])
    if watch.validated_step == trainer.global_step:
        return {}
    # null, and not left out: the record holds those of the last validation
    return dict.fromkeys(_validation(trainer.callback_metrics))


def _validation(metrics: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in metrics.items() if key.startswith("val/")}


def _because(data: DataModule, checkpoints: Checkpoints | None, watch: WatchLayout) -> str:
    """Why the weights that are tested are those; a warning where that is a surprise."""
    if checkpoints is not None and checkpoints.best_step is not None:
        return f"{'lowest' if checkpoints.mode == 'min' else 'highest'} {checkpoints.monitor}"
    if data.val_size == 0:
        return "nothing was held out to select with"
    if checkpoints is None:
        return "no callback selects: callbacks.checkpoints is missing"
    if checkpoints.monitor is None:
        return "callbacks.checkpoints.monitor=null selects none"
    never = f"{checkpoints.monitor} was never a number"
    why = "the fit ended before its first validation" if watch.validated_step is None else never
    log.warning("the last weights are tested, and none were selected: %s", why)
    return why


def _add_callbacks(
    parts: Parts, record: Record | None, timings: Timings, watch: WatchLayout, run_dir: Path
) -> Checkpoints | None:
    callbacks: list[Callback] = parts.trainer.callbacks  # type: ignore[attr-defined]  # set by a connector
    checkpoints = next((c for c in callbacks if isinstance(c, Checkpoints)), None)
    own: list[Callback] = [watch, timings]
    if record is not None:
        own.append(KeepRecord(record=record, timings=timings))
    if checkpoints is not None:
        own.append(RestoreRng(checkpoints))
        (run_dir / files.FOLDER).mkdir(exist_ok=True)
    # Checkpoints come last, Lightning sees to it, for they save what all others have done; stopping
    # in order saves one too
    others = [c for c in callbacks if c is not checkpoints]
    last = [] if checkpoints is None else [checkpoints]
    callbacks[:] = [*own, *others, StopInOrder(checkpoints=checkpoints), *last]
    return checkpoints


def _take_up(
    parts: Parts, record: Record | None, run_dir: Path, resume_from: Path | None
) -> dict[str, float]:
    """Sets record and loggers to where the checkpoint stands (or to the start); its metrics."""
    step, carried = 0, {}
    if resume_from is not None:
        checkpoint = load(resume_from)
        step, carried = checkpoint["global_step"], dict(checkpoint["run"]["metrics"])
        if record is not None:
            record.update(epochs=checkpoint["run"]["epochs"], steps=step, metrics=carried)
    # a start that was killed before its first checkpoint may have logged something too
    logged = any((run_dir / name).exists() for name in (METRICS_FILE, TENSORBOARD_FOLDER))
    for logger in parts.trainer.loggers:
        if logged and isinstance(logger, MetricsCsv | TensorBoard):
            logger.resume(step)
    overrides = [] if record is None else record.fields["overrides"]
    hparams = hparams_of(parts.classifier.hparams["config"], overrides)
    for logger in parts.trainer.loggers:
        logger.log_hyperparams(hparams)
    return carried


def _write_predictions(run_dir: Path, classifier: Classifier) -> None:
    buffer = io.BytesIO()
    np.savez(buffer, labels=classifier.test_labels.numpy(), logits=classifier.test_logits.numpy())
    write_atomically(run_dir / "predictions.npz", buffer.getvalue())


def _finish_curves(trainer: Trainer, metrics: dict[str, float | None], record: Record) -> None:
    known = {key: value for key, value in metrics.items() if value is not None}
    results = {**known, "parameters": record.fields["parameters"]}
    for logger in trainer.loggers:
        if isinstance(logger, TensorBoard):
            logger.finish(results, trainer.global_step)


def _finish_record(
    record: Record,
    run_dir: Path,
    checkpoints: Checkpoints | None,
    metrics: dict[str, float | None],
    **more: Any,
) -> None:
    best = None if checkpoints is None else checkpoints.best_epoch
    names = [f"{files.FOLDER}/{n}" for n in (files.LAST, files.PREVIOUS, files.BEST)]
    record.update(
        tested="last" if best is None else "best",
        best_epoch=None if best is None else best + 1,
        best_step=None if checkpoints is None else checkpoints.best_step,
        metrics=metrics,
        checkpoints=[name for name in names if (run_dir / name).exists()],
        **more,
    )
