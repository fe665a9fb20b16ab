"""What every fit does beside training: keep the record true, and stop in order."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from cifar_lab import signals
from cifar_lab.training.callbacks.checkpoints import Checkpoints, can_go_on_after
from cifar_lab.training.callbacks.rng import set_rng_state
from cifar_lab.training.callbacks.timings import Timings as TimingsCallback
from cifar_lab.training.distributed import is_exchange_batch, max_over_processes
from cifar_lab.training.steps.multistep import SupportsMultistep


class ReportProgress(Callback):
    """Tells how far a fit is after every epoch.

    Args:
        report: called with the fields of a record: ``epochs``, ``steps``, ``metrics``, ``timings``.
        timings: of the fit.
    """

    def __init__(self, *, report: Callable[..., object], timings: TimingsCallback) -> None:
        self._report = report
        self._timings = timings

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """The epoch before is over, with its metrics and its checkpoint."""
        if trainer.current_epoch:
            self._update(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """So is the last one."""
        self._update(trainer)

    def _update(self, trainer: Trainer) -> None:
        self._report(
            epochs=trainer.current_epoch,
            steps=trainer.global_step,
            metrics=metrics_of(trainer),
            timings=self._timings.summary(),
        )


def metrics_of(trainer: Trainer) -> dict[str, float]:
    """What was logged last, as plain numbers."""
    return {name: float(value) for name, value in trainer.callback_metrics.items()}


class RestoreRng(Callback):
    """Sets the checkpoint's RNGs when training begins, after everything that draws from them."""

    def __init__(self, checkpoints: Checkpoints) -> None:
        self._checkpoints = checkpoints

    def on_train_start(self, *arguments: Any) -> None:
        """Restores, if a checkpoint brought any."""
        if self._checkpoints.restored_rng is not None:
            set_rng_state(self._checkpoints.restored_rng)


class StopInOrder(Callback, SupportsMultistep):
    """Ends the fit after Ctrl-C or SIGTERM, with a checkpoint of where it stands.

    In training: after the step (with all the batches that it accumulates), except where a
    validation may follow; there, before the validation, which is repeated. A fit of several
    processes ends where all of them know of it: every few steps, before a validation and between
    epochs; it doesn't stop inside a validation or test.
    """

    def __init__(self, *, checkpoints: Checkpoints | None) -> None:
        self._checkpoints = checkpoints

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Takes the signals back from Lightning, which puts its own SIGTERM handler before ours."""
        signals.install()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Saves, then raises Interrupted."""
        if not can_go_on_after(trainer, batch_idx) or not is_exchange_batch(trainer, batch_idx):
            return
        if self._stop_wanted(trainer):
            if self._checkpoints is not None:
                self._checkpoints.save_last(trainer, pl_module)
            signals.poll()

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Saves, then raises Interrupted."""
        if self._stop_wanted(trainer):
            self._stop_in_validation(trainer, pl_module)

    def on_validation_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, *arguments: Any
    ) -> None:
        """Saves, then raises Interrupted: nothing has changed since the validation began."""
        if trainer.world_size == 1 and signals.pending():
            self._stop_in_validation(trainer, pl_module)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """The epoch before has been saved; else there is a checkpoint after the first batch."""
        saved = self._checkpoints is None or self._checkpoints.epoch_saved
        if saved and self._stop_wanted(trainer):
            signals.poll()

    def on_test_batch_end(self, trainer: Trainer, *arguments: Any) -> None:
        """The test is repeated when the run is taken up again."""
        if trainer.world_size == 1:
            signals.poll()

    def _stop_in_validation(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._checkpoints is not None and not trainer.sanity_checking:
            self._checkpoints.save_before_validation(trainer, pl_module)
        signals.poll()

    def _stop_wanted(self, trainer: Trainer) -> bool:
        signum = max_over_processes(trainer, signals.pending())
        if signum:
            signals.receive(signum)
        return signum != 0
