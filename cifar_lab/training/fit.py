"""Fit, then test once; what came of it is a `FitResult`, and what becomes of that is others'."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import WeightAveraging
from numpy.typing import NDArray
from torch import nn

from cifar_lab import signals
from cifar_lab.data.datamodule import DataModule
from cifar_lab.errors import InputError
from cifar_lab.records import checkpoint_file as files
from cifar_lab.records.checkpoint_file import load
from cifar_lab.records.record import Init
from cifar_lab.training.callbacks.checkpoints import Checkpoints
from cifar_lab.training.callbacks.lifecycle import (
    ReportProgress,
    RestoreRng,
    StopInOrder,
    metrics_of,
)
from cifar_lab.training.callbacks.timings import Timings
from cifar_lab.training.classifier import Classifier
from cifar_lab.training.layout import WatchLayout
from cifar_lab.training.lightning_internals import callbacks_of, cuda_left_alone, set_callbacks
from cifar_lab.training.loggers.metrics_csv import FILE_NAME as METRICS_FILE
from cifar_lab.training.loggers.metrics_csv import MetricsCsv
from cifar_lab.training.loggers.tensorboard import FOLDER as TENSORBOARD_FOLDER
from cifar_lab.training.loggers.tensorboard import TensorBoard, hparams_of
from cifar_lab.training.steps.allocator import keep_freed_memory
from cifar_lab.training.steps.cuda_graph import GraphedStep
from cifar_lab.training.steps.multistep import arrange

log = logging.getLogger("cifar_lab")

# As many as the speedrun's script looks at: some 4.8 million patches of 2x2.
IMAGES_TO_INITIALIZE = 5000


@dataclass
class Parts:
    """A run, built and ready; ``init`` says which weights it begins with, None: its own."""

    trainer: Trainer
    classifier: Classifier
    data: DataModule
    steps_per_call: int = 1
    cuda_graph: bool = False
    init: Init | None = None


@dataclass(frozen=True)
class FitResult:
    """What a fit and its test came to.

    Attributes:
        metrics: by name; None where a number is of other weights than those that were tested.
        timings: as `cifar_lab.training.callbacks.timings.Timings.summary`.
        tested: ``best`` or ``last``.
        tested_because: why those weights.
        best_epoch: the selected one, from 1; None where none was.
        best_step: optimizer steps behind it.
        steps_planned: optimizer steps that the learning rates are laid out for.
        images_per_step: images behind each of them.
        departures: what ran other than configured, a line each.
        checkpoints: paths relative to the run folder.
        labels: (N,) int64 of the test images, in the order of the dataset.
        logits: (N, C) float32, likewise.
        classes: the C classes' names.
    """

    metrics: dict[str, float | None]
    timings: dict[str, float | None]
    tested: str
    tested_because: str
    best_epoch: int | None
    best_step: int | None
    steps_planned: int
    images_per_step: int
    departures: list[str]
    checkpoints: list[str]
    labels: NDArray[np.int64] = field(repr=False)
    logits: NDArray[np.float32] = field(repr=False)
    classes: tuple[str, ...] = field(repr=False)


def fit_and_test(
    parts: Parts,
    *,
    run_dir: Path,
    started: float,
    resume_from: Path | None,
    overrides: Sequence[str] = (),
    report: Callable[..., object] | None = None,
    on_result: Callable[[FitResult], None] | None = None,
) -> FitResult:
    """Fits, then tests the best checkpoint (the last where none is selected), once.

    Args:
        parts: built.
        run_dir: the run folder.
        started: `time.perf_counter` when the process began.
        resume_from: the checkpoint to continue from.
        overrides: as typed, for the loggers' hyperparameters.
        report: called after each epoch with the fields of a record that have changed.
        on_result: called with the result as soon as the test images have been read: before any
            logger or callback gets to see it, and may fail.

    Raises:
        Diverged: a loss or a weight became NaN or infinite. Interrupted: Ctrl-C or SIGTERM.
        InputError: the fit was stopped before its first step, or no validation logged what selects.
        DamagedError: the best checkpoint can't be read, and no other holds that epoch.
    """
    trainer, data, classifier = parts.trainer, parts.data, parts.classifier
    if trainer.strategy.root_device.type == "cpu":
        keep_freed_memory()
    timings, watch = Timings(started=started), WatchLayout()
    checkpoints = _add_callbacks(parts, report, timings, watch, run_dir)
    singly = classifier.wants_single_steps
    multistep = arrange(trainer, data, parts.steps_per_call, singly=singly)
    classifier.train_on(multistep, graphed_step=GraphedStep if parts.cuda_graph else None)
    carried = _take_up(parts, run_dir, resume_from, overrides, report)
    if resume_from is None:
        if parts.init is None:  # else it was, before it took another's weights
            show_data(classifier.network, data)
        if classifier.proxy is not None:
            show_data(classifier.proxy, data)
    with signals.deferred():
        with cuda_left_alone(trainer):
            trainer.fit(classifier, datamodule=data, ckpt_path=resume_from, weights_only=True)
        fitted = timings.summary()
        if trainer.global_step == 0:
            raise InputError("the fit was stopped before its first optimizer step: nothing to test")
        watch.finish(trainer, classifier)
        # a fit that was over already logs nothing: its last metrics came with the checkpoint
        metrics: dict[str, float | None] = {**carried, **metrics_of(trainer)}
        metrics |= _put_in_place(parts, checkpoints, watch, run_dir, resume_from)
        because = _because(data, checkpoints, watch)
        best = None if checkpoints is None else checkpoints.best_epoch

        def result(tested: dict[str, float]) -> FitResult:
            return FitResult(
                metrics={**metrics, **tested},
                timings=fitted,
                tested="last" if best is None else "best",
                tested_because=because,
                best_epoch=None if best is None else best + 1,
                best_step=None if checkpoints is None else checkpoints.best_step,
                steps_planned=watch.planned.steps,
                images_per_step=watch.ran.images_per_step,
                departures=list(watch.departures.values()),
                checkpoints=[n for n in files.NAMES if (run_dir / n).exists()],
                labels=classifier.test_labels.numpy(),
                logits=classifier.test_logits.numpy(),
                classes=data.dataset.classes,
            )

        if on_result is not None:
            classifier.keep_result = lambda tested: on_result(result(tested))
        trainer.test(classifier, datamodule=data, verbose=False)
    finished = result(metrics_of(trainer))  # with what callbacks have added
    if report is not None:
        report(metrics=finished.metrics)
        known = {key: value for key, value in finished.metrics.items() if value is not None}
        for logger in trainer.loggers:
            if isinstance(logger, TensorBoard):
                results = {**known, "parameters": classifier.parameter_count}
                logger.finish(results, trainer.global_step)
    return finished


def show_data(network: nn.Module, data: DataModule) -> None:
    """Calls ``network.initialize(images)``, where it has such a method: for a whitening layer.

    Once, before a run's first step; a run that goes on has what came of it in its checkpoint. The
    images are the first `IMAGES_TO_INITIALIZE` that train, (N, 3, H, W) float32, normalized, on the
    CPU as the network is: the same in every process, and of every seed.
    """
    initialize = getattr(network, "initialize", None)
    # somebody's own method of that name may take nothing, or a deviation
    if callable(initialize) and "images" in inspect.signature(initialize).parameters:
        initialize(data.first_images(IMAGES_TO_INITIALIZE))


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
        _, best = files.best_checkpoint(run_dir, checkpoints.best_step)
        classifier.load_state_dict(best["state_dict"])
        return _validation(best["run"]["metrics"])
    if resume_from is not None and not watch.trained:
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
    parts: Parts,
    report: Callable[..., object] | None,
    timings: Timings,
    watch: WatchLayout,
    run_dir: Path,
) -> Checkpoints | None:
    callbacks = callbacks_of(parts.trainer)
    checkpoints = next((c for c in callbacks if isinstance(c, Checkpoints)), None)
    own: list[Callback] = [watch, timings]
    if report is not None:
        own.append(ReportProgress(report=report, timings=timings))
    if checkpoints is not None:
        own.append(RestoreRng(checkpoints))
        (run_dir / files.FOLDER).mkdir(exist_ok=True)
    # Checkpoints come last, Lightning sees to it, for they save what all others have done; stopping
    # in order saves one too
    others = [c for c in callbacks if c is not checkpoints]
    # averages are of the weights as all others leave them, whichever order these were named in
    others.sort(key=lambda callback: isinstance(callback, WeightAveraging))
    last = [] if checkpoints is None else [checkpoints]
    stop = StopInOrder(checkpoints=checkpoints)
    set_callbacks(parts.trainer, [*own, *others, stop, *last])
    return checkpoints


def _take_up(
    parts: Parts,
    run_dir: Path,
    resume_from: Path | None,
    overrides: Sequence[str],
    report: Callable[..., object] | None,
) -> dict[str, float]:
    """Sets record and loggers to where the checkpoint stands (or to the start); its metrics."""
    step, carried = 0, {}
    if resume_from is not None:
        checkpoint = load(resume_from)
        step, carried = checkpoint["global_step"], dict(checkpoint["run"]["metrics"])
        if report is not None:
            report(epochs=checkpoint["run"]["epochs"], steps=step, metrics=carried)
    # a start that was killed before its first checkpoint may have logged something too
    logged = any((run_dir / name).exists() for name in (METRICS_FILE, TENSORBOARD_FOLDER))
    for logger in parts.trainer.loggers:
        if logged and isinstance(logger, MetricsCsv | TensorBoard):
            logger.resume(step)
    hparams = hparams_of(parts.classifier.hparams["config"], overrides)
    for logger in parts.trainer.loggers:
        logger.log_hyperparams(hparams)
    return carried
