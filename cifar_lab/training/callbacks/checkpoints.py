"""The run folder's checkpoints: when they are written, what they hold, which one to go on from."""

from __future__ import annotations

import logging
import os
import time
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint

from cifar_lab import signals
from cifar_lab.errors import InputError
from cifar_lab.records.checkpoint_file import (
    BEST,
    FOLDER,
    LAST,
    PREVIOUS,
    add_digest,
    link,
)
from cifar_lab.records.files import sync_folder
from cifar_lab.training.callbacks.rng import rng_state
from cifar_lab.training.classifier import Classifier
from cifar_lab.training.distributed import is_exchange_batch, max_over_processes
from cifar_lab.training.lightning_internals import enter_validation, validation_may_follow
from cifar_lab.training.selection import Mode, is_better, mode_of
from cifar_lab.training.steps.multistep import SupportsMultistep
from cifar_lab.training.trial import as_python, check_keepable

log = logging.getLogger("cifar_lab")


class Checkpoints(Checkpoint, SupportsMultistep):
    """``last.ckpt``, ``previous.ckpt`` and ``best.ckpt`` below the run folder's ``checkpoints/``.

    Saved after every epoch, within an epoch when ``every_minutes`` have passed, and after a
    validation within an epoch that has the best value so far. A checkpoint is written beside,
    given its digest, flushed and renamed, and the one before it is kept as ``previous.ckpt``,
    so that one whole checkpoint exists at every instant. A state with a NaN in it is never saved.
    RNG states of torch, CUDA, numpy and python travel along.

    ``best.ckpt`` holds the weights that were validated with the best value, averages where `Ema`
    keeps them: it is chosen where a validation ends, before another step is made. Of equal values
    the earlier one stays, and NaN is never the best. Another library's checkpoint callback may keep
    files of its own beside this one; what is tested is chosen here.

    Args:
        monitor: the metric that ``best.ckpt`` has the best value of, one of the held-out images
            (``val/...``). With nothing held out, or with null, there is no ``best.ckpt``.
        every_minutes: wall time between checkpoints inside an epoch; null: epochs only.
        mode: ``max`` or ``min``: which values are better; null: as the metric's name says.
        min_seconds: an epoch that ends sooner after the last checkpoint is left out, unless it is
            the best one or the fit's last; null: none is.

    Attributes:
        best_value: of ``monitor``; None until there is one.
        best_epoch: in which it was validated, from 0.
        best_step: optimizer steps made by then.
        epoch_saved: whether the last epoch that ended has a checkpoint.
    """

    def __init__(
        self,
        *,
        monitor: str | None,
        every_minutes: float | None,
        mode: Mode | None = None,
        min_seconds: float | None = None,
    ) -> None:
        if min_seconds is not None and not min_seconds >= 0:
            raise InputError(
                f"min_seconds={min_seconds}: must be at least 0, or null for every epoch"
            )
        if every_minutes is not None and not every_minutes > 0:
            raise InputError(
                f"every_minutes={every_minutes}: must be above 0, or null for none within an epoch"
            )
        if monitor is not None and not monitor.startswith("val/"):
            raise InputError(
                f"monitor={monitor}: held-out images alone choose what is tested; must be val/acc, "
                "val/loss or another val/..., or null to test the last weights"
            )
        self.monitor = monitor
        self.mode: Mode | None = None if monitor is None else mode_of(monitor, mode)
        self._every_s = None if every_minutes is None else 60 * every_minutes
        self._min_s = min_seconds
        self._saved_at = time.monotonic()
        self.epoch_saved = True
        self._epoch_over = False
        self._validation_to_come = False
        self._best_to_save = False
        self.best_value: float | None = None
        self.best_epoch: int | None = None
        self.best_step: int | None = None
        self.restored_rng: dict[str, Any] | None = None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Starts the clock."""
        self._saved_at = time.monotonic()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Saves inside the epoch when it is time, where a run can go on from."""
        if self._every_s is None or not can_go_on_after(trainer, batch_idx):
            return
        if not is_exchange_batch(trainer, batch_idx):
            return
        if max_over_processes(trainer, int(time.monotonic() - self._saved_at >= self._every_s)):
            self.save_last(trainer, pl_module)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Decides whether these weights are the best, and saves them if steps are to follow."""
        if self.monitor is None or trainer.sanity_checking:
            return
        assert self.mode is not None
        value = self._value(trainer)
        if not is_better(value, self.best_value, self.mode):
            return
        self.best_value, self.best_epoch = value, trainer.current_epoch
        self.best_step = trainer.global_step
        # the last one of an epoch is saved with the epoch, of which more is known then
        self._best_to_save = trainer.is_last_batch or 0 <= trainer.max_steps <= trainer.global_step
        if not self._best_to_save:
            self._save_best(trainer, pl_module)

    def _value(self, trainer: Trainer) -> float:
        logged = trainer.callback_metrics
        if self.monitor not in logged:
            raise InputError(
                f"callbacks.checkpoints.monitor={self.monitor}: the validation didn't log it; "
                f"it logged {', '.join(sorted(key for key in logged if key.startswith('val/')))}"
            )
        # a metric of one's own may differ from process to process; all must decide alike
        return float(trainer.strategy.broadcast(float(logged[self.monitor])))

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Saves the epoch, and keeps it as the best if it is."""
        self.epoch_saved = self._best_to_save or self._is_due(trainer)
        if not self.epoch_saved:
            return
        self._epoch_over = True
        try:
            if self._best_to_save:
                self._save_best(trainer, pl_module)
            else:
                self.save_last(trainer, pl_module)
        finally:
            self._epoch_over = False

    def _is_due(self, trainer: Trainer) -> bool:
        epochs, steps = trainer.max_epochs, trainer.max_steps
        over = 0 <= steps <= trainer.global_step or trainer.current_epoch + 1 == epochs
        if self._min_s is None or over or trainer.should_stop:
            return True
        waited = time.monotonic() - self._saved_at >= self._min_s
        return bool(max_over_processes(trainer, int(waited or signals.pending() > 0)))

    def _save_best(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._best_to_save = False
        self.save_last(trainer, pl_module)
        # a crash in between leaves an older best.ckpt: on_load_checkpoint sees and repairs it
        if trainer.is_global_zero:
            folder = folder_of(trainer)
            link(folder / LAST, folder / BEST)

    def save_before_validation(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """As `save_last`; the run that continues from it begins with the whole validation."""
        self._validation_to_come = True
        try:
            self.save_last(trainer, pl_module)
        finally:
            self._validation_to_come = False

    def save_last(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Replaces ``last.ckpt``; raises Diverged instead of saving a state with a NaN in it."""
        assert isinstance(pl_module, Classifier)
        pl_module.assert_finite()
        folder = folder_of(trainer)
        beside = folder / f".{LAST}.partial"
        # a second Ctrl-C must not cost the checkpoint that the first one asked for
        with signals.shielded():
            trainer.save_checkpoint(beside, weights_only=False)
            if trainer.is_global_zero:
                add_digest(beside)
                if (folder / LAST).exists():
                    link(folder / LAST, folder / PREVIOUS)
                os.replace(beside, folder / LAST)
                sync_folder(folder)
        self._saved_at = time.monotonic()

    def on_save_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Adds what Lightning forgets: the last metrics, and that early stopping wants the end."""
        checkpoint["run"] = {
            "epochs": trainer.current_epoch + int(self._epoch_over),
            "metrics": {key: float(value) for key, value in trainer.callback_metrics.items()},
            "should_stop": trainer.should_stop,
        }
        if self._validation_to_come:
            enter_validation(checkpoint)
        check_keepable(checkpoint, "callbacks.checkpoints")
        checkpoint.update(as_python(checkpoint))

    def on_load_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Puts ``best.ckpt`` in place where a crash came between it and ``last.ckpt``."""
        trainer.should_stop = checkpoint["run"]["should_stop"]
        ours = checkpoint["callbacks"][self.state_key]
        if ours["best_step"] == checkpoint["global_step"] and trainer.is_global_zero:
            link(Path(str(trainer.ckpt_path)), folder_of(trainer) / BEST)

    def state_dict(self) -> dict[str, Any]:
        """The best so far, and every global RNG."""
        best = ("best_value", "best_epoch", "best_step")
        return {**{name: getattr(self, name) for name in best}, "rng": rng_state()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restores the best so far; the RNGs are set when training starts."""
        self.best_value, self.best_epoch = state_dict["best_value"], state_dict["best_epoch"]
        self.best_step = state_dict["best_step"]
        self.restored_rng = state_dict["rng"]


def can_go_on_after(trainer: Trainer, batch_idx: int) -> bool:
    """Whether a checkpoint written at this batch's end would lose nothing.

    Lightning skips the validation that follows when it takes such a checkpoint up, and none holds
    the gradients that are still accumulated.
    """
    accumulated = (batch_idx + 1) % trainer.accumulate_grad_batches != 0
    return not accumulated and not validation_may_follow(trainer, batch_idx)


def folder_of(trainer: Trainer) -> Path:
    """Where a run's checkpoints are."""
    return Path(trainer.default_root_dir) / FOLDER
