"""The progress bar of one run: drawn by time and not by step, silent without a terminal.

A refresh never waits for the device: it starts a copy of the running sums and shows what the
refresh before it copied.
"""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass
from time import perf_counter
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ProgressBar as LightningProgressBar
from rich.console import Console
from torch import Tensor

from cifar_lab.formats import clock, epoch_rows, images_per_s, log_line, percent
from cifar_lab.training.callbacks.display import Display
from cifar_lab.training.callbacks.throughput import LaggedCopy, Rate, Sample
from cifar_lab.training.steps.multistep import KnowsBlocks, batches_done, batches_per_epoch

_log = logging.getLogger("cifar_lab.progress")


@dataclass
class _Epoch:
    number: int  # from 1
    first_batch: int  # above 0 after a resume in mid-epoch
    started: float
    training_s: float = 0.0  # without validation, up to ``running_since``
    running_since: float | None = None
    batches: int = 0
    images: float = 0.0  # of all ranks, since ``started``
    validated: bool = False

    def training_time_s(self) -> float:
        running = 0.0 if self.running_since is None else perf_counter() - self.running_since
        return self.training_s + running


class ProgressBar(LightningProgressBar, KnowsBlocks):
    """Epoch, batch, loss, accuracies, images/s and time left; a line stays for each epoch.

    Every finished epoch is also logged at INFO, terminal or not. The module gives
    ``running_train()``: [sum of loss * images, number correct, number of images] of this epoch so
    far, (3,) on the device; under DDP the loss below the bar is that of rank zero's share.

    Args:
        console: where to draw; None is standard error, or nowhere when that is no terminal.
    """

    def __init__(self, *, console: Console | None = None) -> None:
        super().__init__()
        self._display = Display(console)
        self._epoch: _Epoch | None = None
        self._finished: _Epoch | None = None
        self._header_shown = False
        self._val_acc: float | None = None
        self._best_val_acc: float | None = None
        self._sums: tuple[float, ...] = (0.0, 0.0, 0.0)
        self._copy = LaggedCopy()
        self._rate = Rate()
        self._done = Sample(0.0, 0, 0.0)  # finished epochs of this process
        self._overhead_s = 0.0  # validation, checkpoints: the last epoch beyond its training
        self._evaluated = 0

    def disable(self) -> None:
        """Draws nothing from now on (ranks above zero, learning rate finder)."""
        self._display.close()
        self._display.enabled = False

    def enable(self) -> None:
        """Draws again, where there is a terminal."""
        self._display.enabled = True

    @property
    def is_enabled(self) -> bool:
        """Whether `LightningModule.print` has to go through `print`."""
        return self._display.is_open

    def print(self, *args: Any, **kwargs: Any) -> None:
        """Prints above the bar (`Trainer.print`)."""
        if self._display.is_open:
            self._display.print_above(kwargs.get("sep", " ").join(map(str, args)))
        else:
            print(*args, **kwargs)

    def state_dict(self) -> dict[str, Any]:
        """The best validation accuracy so far: a resumed run goes on from it."""
        return {"best_val_acc": self._best_val_acc}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Takes up what `state_dict` gave."""
        self._best_val_acc = state_dict["best_val_acc"]

    # --- training -----------------------------------------------------------------------------

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Opens the display; a resume in mid-epoch gets no ``on_train_epoch_start``."""
        self._done, self._rate, self._header_shown = Sample(0.0, 0, 0.0), Rate(), False
        self._epoch = self._new_epoch(trainer)
        self._display.open(self._epoch_name(trainer), _total(batches_per_epoch(trainer)))

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """The epoch before has its metrics by now: its line is written."""
        self._epoch = self._new_epoch(trainer)
        self._set_training(trainer, self._epoch.first_batch)
        self._report(trainer)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """One comparison, and twice a second a refresh."""
        if perf_counter() >= self._display.due:
            batches = batches_done(trainer, batch_idx + 1)
            self._measure(trainer, pl_module, batches)
            self._set_training(trainer, batches)
            self._display.draw()

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """The epoch's own clock ends; its metrics are logged after this hook."""
        self._pause(trainer, pl_module)
        self._finished, self._epoch = self._epoch, None

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """The last epoch's line, and the terminal as it was."""
        self._report(trainer)
        self._display.close()

    # --- validation and test ------------------------------------------------------------------

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Training time stands still while validating."""
        self._evaluated = 0
        if trainer.state.fn == "validate":
            self._display.open("validating", _total(trainer.num_val_batches))
        elif self._epoch is not None:
            self._pause(trainer, pl_module)

    def on_validation_batch_end(self, trainer: Trainer, *_: Any, **__: Any) -> None:
        """Counts, and twice a second a refresh."""
        self._evaluated += 1
        if perf_counter() >= self._display.due:
            name = f"{self._epoch_name(trainer)} validating".strip()
            total = _total(trainer.num_val_batches)
            self._display.set(name, self._evaluated, total, figures=self._figures())
            self._display.draw()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Keeps the accuracy, and the best one."""
        if trainer.state.fn == "validate":
            self._display.close()
        elif self._epoch is not None:
            if (accuracy := trainer.callback_metrics.get("val/acc")) is not None:
                self._val_acc = float(accuracy)
                self._best_val_acc = max(self._val_acc, self._best_val_acc or 0.0)
            self._epoch.validated = True
            self._epoch.running_since = perf_counter()

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Opens the display again."""
        self._evaluated = 0
        self._display.open("testing", _total(trainer.num_test_batches))

    def on_test_batch_end(self, trainer: Trainer, *_: Any, **__: Any) -> None:
        """Counts, and twice a second a refresh."""
        self._evaluated += 1
        if perf_counter() >= self._display.due:
            self._display.set("testing", self._evaluated, _total(trainer.num_test_batches))
            self._display.draw()

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """The result itself is the closing table's."""
        self._display.close()

    # --- endings ------------------------------------------------------------------------------

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        """Ctrl-C, SIGTERM and errors: the terminal as it was, before anything is printed."""
        self._display.close()

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Whatever ended the stage, the cursor is back."""
        self._display.close()

    # --- inside -------------------------------------------------------------------------------

    def _new_epoch(self, trainer: Trainer) -> _Epoch:
        calls = trainer.fit_loop.epoch_loop.batch_progress.current.completed
        if calls >= trainer.num_training_batches:
            calls = 0  # the counters of the epoch before, not reset yet
        first_batch = batches_done(trainer, calls)
        self._sums = (0.0, 0.0, 0.0)
        self._copy.forget()
        now = perf_counter()
        return _Epoch(trainer.current_epoch + 1, first_batch, now, running_since=now)

    def _pause(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # Read and not copied: the clock has to stop when the device is done with the epoch, not
        # when its last step was queued. Once per epoch, where the metrics are read anyway.
        epoch = self._epoch
        if epoch is None or epoch.running_since is None:
            return
        self._sums = tuple(_running_train(pl_module).tolist())
        epoch.training_s = epoch.training_time_s()
        epoch.running_since = None
        calls = trainer.fit_loop.epoch_loop.batch_idx + 1
        epoch.batches = batches_done(trainer, calls) - epoch.first_batch
        epoch.images = self._images(trainer, epoch.batches)

    def _measure(self, trainer: Trainer, pl_module: LightningModule, batch: int) -> None:
        assert self._epoch is not None
        moment = Sample(self._epoch.training_time_s(), batch - self._epoch.first_batch, 0.0)
        if copied := self._copy.read(_running_train(pl_module), moment):
            values, then = copied
            self._sums = tuple(values)
            images = self._images(trainer, then.batches)
            self._rate.add(self._done.plus(then._replace(images=images)))

    def _images(self, trainer: Trainer, batches: int) -> float:
        # the sums hold the whole epoch, also what was done before a resume in mid-epoch
        assert self._epoch is not None
        share = batches / max(1, self._epoch.first_batch + batches)
        return self._sums[2] * share * trainer.world_size

    def _set_training(self, trainer: Trainer, batch: int) -> None:
        left_s = self._left_s(trainer, batch)
        left = "" if left_s is None else f"{clock(left_s)} left"
        total = _total(batches_per_epoch(trainer))
        self._display.set(self._epoch_name(trainer), batch, total, left, self._figures())

    def _epoch_name(self, trainer: Trainer) -> str:
        return "" if self._epoch is None else f"epoch {_of(self._epoch.number, trainer)}"

    def _figures(self) -> str:
        loss, correct, images = self._sums
        parts = []
        if images:
            parts += [f"loss {loss / images:.3f}", f"acc {percent(correct / images)}"]
        if self._val_acc is not None and self._best_val_acc is not None:
            parts += [f"val {percent(self._val_acc)} (best {percent(self._best_val_acc)})"]
        if rate := self._rate.per_s():
            parts += [images_per_s(rate[1])]
        return "  ".join(parts)

    def _left_s(self, trainer: Trainer, batch: int) -> float | None:
        rate = self._rate.per_s()
        if rate is None or self._epoch is None:
            return None
        left, epochs_left = math.inf, 0
        if trainer.max_epochs is not None and trainer.max_epochs > 0:
            epochs_left = trainer.max_epochs - self._epoch.number
            left = (epochs_left + 1) * batches_per_epoch(trainer) - batch
        if trainer.max_steps > 0:
            left = min(left, trainer.max_steps - trainer.global_step)
        if math.isinf(left):
            return None
        return max(0.0, left / rate[0] + self._overhead_s * (epochs_left + 1))

    def _report(self, trainer: Trainer) -> None:
        epoch, self._finished = self._finished, None
        if epoch is None or not trainer.is_global_zero:
            return
        self._done = self._done.plus(Sample(epoch.training_s, epoch.batches, epoch.images))
        self._rate.add(self._done)
        total_s = perf_counter() - epoch.started
        self._overhead_s = total_s - epoch.training_s
        # without a validation in this epoch the metrics still hold an older one's
        splits = ("train/", "val/") if epoch.validated else ("train/",)
        metrics = {k: float(v) for k, v in trainer.callback_metrics.items() if k.startswith(splits)}
        speed = epoch.images / epoch.training_s if epoch.training_s > 0 else 0.0
        number = _of(epoch.number, trainer)
        _log.info("epoch %s: %s", number, log_line(metrics, speed, total_s))
        best = self._best_val_acc is not None and metrics.get("val/acc") == self._best_val_acc
        rows = epoch_rows(number, metrics, speed, total_s, best=best)
        self._display.print_above(*(rows[1:] if self._header_shown else rows))
        self._header_shown = True


def _of(epoch: int, trainer: Trainer) -> str:
    total = trainer.max_epochs
    return f"{epoch}/{total}" if total is not None and total > 0 else str(epoch)


def _total(batches: float | list[int] | list[float]) -> float | None:
    total = sum(batches) if isinstance(batches, list) else batches
    return None if math.isinf(total) else total


def _running_train(pl_module: LightningModule) -> Tensor:
    sums: Tensor = pl_module.running_train()  # type: ignore[operator]
    return sums.detach()
