"""What the configuration lays out for a fit, and whether that is what ran.

A callback may change anything: the batch, the accumulation, the rates, the end, the weights.
Lightning's own that do are refused (`cifar_lab.run.compatibility`); another's is found out here.
"""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import WeightAveraging
from torch import nn

from cifar_lab.data.feed.epoch import EpochLoader
from cifar_lab.training.lightning_internals import call_index, callbacks_of, datamodule_of
from cifar_lab.training.schedules import FactorSchedule
from cifar_lab.training.steps.multistep import SupportsMultistep, limited

log = logging.getLogger("cifar_lab")

# What else of the configuration a callback can reach, by where it is: of the trainer, and of the
# optimizer's groups beside the rate, which the schedule tells.
_OF_TRAINER = ("gradient_clip_val", "gradient_clip_algorithm", "limit_val_batches")
# integers with the bits of a floating-point number, by its bytes
_BITS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
_OF_GROUPS = ("weight_decay", "momentum", "dampening", "betas", "eps")


@dataclass(frozen=True)
class Layout:
    """A fit as it is laid out.

    Attributes:
        steps: optimizer steps of the whole fit.
        epochs: of the whole fit, the last perhaps in part.
        batch_size: images of a batch, over all devices.
        accumulated: batches whose gradients are averaged for one optimizer step.
        images_per_step: images of an optimizer step, over all devices; the epoch's last may have
            fewer.
        steps_per_epoch: optimizer steps of a whole epoch.
    """

    steps: int
    epochs: int
    batch_size: int
    accumulated: int
    images_per_step: int
    steps_per_epoch: int


class ChecksLayout:
    """Mark of a callback that can tell from the layout that it would have no part in the fit."""

    def check_layout(self, trainer: Trainer, layout: Layout) -> None:
        """Raises InputError, with the name of its argument before, where it can't act."""

    def had_no_part(self, trainer: Trainer, layout: Layout) -> str | None:
        """Of a fit that is over, perhaps before its time: what it would have done and didn't."""
        return None


def layout_of(trainer: Trainer, loader: EpochLoader | None = None) -> Layout:
    """The layout by the trainer's settings and its data's, as they are now.

    Args:
        trainer: of the fit.
        loader: of the training data, where the trainer has none yet.
    """
    loader = loader or train_loader(trainer)
    batches, size = limited(trainer, loader.num_batches), loader.share.batch_size
    accumulated = trainer.accumulate_grad_batches
    steps, per_epoch = fit_steps(trainer, batches), max(1, -(-batches // accumulated))
    return Layout(
        steps=steps,
        epochs=-(-steps // per_epoch),
        batch_size=size,
        accumulated=accumulated,
        images_per_step=min(size * min(accumulated, batches), loader.share.used),
        steps_per_epoch=per_epoch,
    )


def fit_steps(trainer: Trainer, batches: int) -> int:
    """Optimizer steps of the whole fit, given an epoch's batches.

    Not ``trainer.estimated_stepping_batches``: it sets the training loader up before Lightning
    hands it the position that a checkpoint holds, and a resumed epoch would begin again.
    """
    per_epoch = -(-batches // trainer.accumulate_grad_batches)
    bounds = [trainer.max_steps] if trainer.max_steps > -1 else []
    if trainer.max_epochs is not None and trainer.max_epochs > -1:
        bounds.append(trainer.max_epochs * per_epoch)
    return min(bounds)


def train_loader(trainer: Trainer) -> EpochLoader:
    """The loader that the fit has, or will have."""
    loader = trainer.train_dataloader
    if loader is None:
        loader = datamodule_of(trainer).train_dataloader()
    assert isinstance(loader, EpochLoader)
    return loader


def window_weight(trainer: Trainer) -> float:
    """The factor on the loss of the batch at hand that makes a step's gradient a mean over images.

    Lightning divides every loss by ``accumulate_grad_batches``, also where an epoch ends with fewer
    batches, or with one of fewer images. With this factor each of the step's images counts alike.
    """
    accumulated, index = trainer.accumulate_grad_batches, call_index(trainer)
    share = train_loader(trainer).share
    first = index - index % accumulated
    end = min(first + accumulated, int(trainer.num_training_batches))
    images = sum(share.images_of(other) for other in range(first, end))
    return accumulated * share.images_of(index) / images


class WatchLayout(Callback, SupportsMultistep):
    """Compares what runs with what was laid out; read once an epoch.

    Comes before all other callbacks, and so sees what they did in the hook before.

    Attributes:
        planned: by the configuration.
        ran: by what was seen last; equal to ``planned`` unless something changed it.
        trained: whether this start trained; a fit that was over when it was taken up does not.
        validated_step: optimizer steps made at the last validation; None before one.
        departures: one line for each thing that ran other than configured, by what it is about.
        changed_at_the_end: the weights are no longer those of the last checkpoint.
    """

    def __init__(self) -> None:
        self.planned = self.ran = Layout(0, 0, 0, 0, 0, 0)
        self.trained = False
        self.validated_step: int | None = None
        self.departures: dict[str, str] = {}
        self.changed_at_the_end = False
        self._first_lr: float | None = None
        self._scheduler: Any = None
        self._validated: list[int] | None = None
        self._last: list[int] | None = None
        self._to_test: list[int] | None = None
        self._settings: dict[str, Any] = {}

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Notes what is laid out, before another callback has a say."""
        if stage == "fit":
            self.planned = self.ran = layout_of(trainer)
        elif stage == "test":
            self._to_test = fingerprint(pl_module)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Notes what trainer and optimizer were made with."""
        self._settings = _settings(trainer)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Notes that there is training, and the schedule."""
        self.trained = True
        self._scheduler = trainer.lr_scheduler_configs[0].scheduler
        if self._first_lr is None and isinstance(self._scheduler, FactorSchedule):
            self._first_lr = float(self._scheduler.base_lrs[0])

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Notes which weights were validated, before a callback puts others in their place."""
        self._validated = fingerprint(pl_module)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Notes when; averages have given way to the weights by now, and are in the checkpoint."""
        if trainer.sanity_checking:
            self._validated = None
            return
        self.validated_step = trainer.global_step
        if _keeps_averages(trainer):
            self._validated = fingerprint(pl_module)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Compares the epoch before."""
        if trainer.current_epoch:
            self._compare(trainer, pl_module)

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Compares the rate that an epoch begins with: many a callback sets one there."""
        if batch_idx == 0:
            lr = float(trainer.optimizers[0].param_groups[0]["lr"])
            self._compare_lr(lr, trainer.global_step)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Compares the last one."""
        self._compare(trainer, pl_module)
        self._last = fingerprint(pl_module)

    def _compare(self, trainer: Trainer, pl_module: LightningModule) -> None:
        now, planned = layout_of(trainer), self.planned
        if now.images_per_step != planned.images_per_step:
            self.ran = now
            self._say(
                "images",
                f"{now.images_per_step} images per optimizer step instead of "
                f"{planned.images_per_step}: something changed data.batch_size to "
                f"{now.batch_size}, or trainer.accumulate_grad_batches to {now.accumulated}",
            )
        lr = trainer.callback_metrics.get("lr")
        if lr is not None:
            self._compare_lr(float(lr), trainer.global_step - 1)
        unmoved = self.validated_step == trainer.global_step
        if unmoved and not _same(self._validated, fingerprint(pl_module)):
            self._say(
                "validated",
                "the weights were changed after their validation and before the next step: what "
                "val/... says is of others",
            )

        for name, value in _settings(trainer).items():
            before = self._settings.get(name, value)
            if value != before:
                self._say(
                    name,
                    f"{name} was {_shown(value)} instead of {_shown(before)}: something changed it",
                )

    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Compares the weights of the test with those that were put in place for it."""
        if not _same(self._to_test, fingerprint(pl_module)):
            self._say(
                "tested",
                "the weights were changed for the test: what test/... says is of others than the "
                "checkpoint holds",
            )

    def _compare_lr(self, lr: float, step: int) -> None:
        """Held against the schedule: the rate with which step number ``step``, from 0, is made."""
        if self._first_lr is None:
            return
        planned = self._first_lr * self._scheduler.lr_lambdas[0](step)
        if not math.isclose(lr, planned, rel_tol=1e-5, abs_tol=1e-12):
            self._say(
                "lr",
                f"the learning rate of step {step + 1} was {lr:.6g} instead of {planned:.6g}: "
                "something changed what optimizer.lr and the scheduler say",
            )

    def finish(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Compares the length and the last weights, once the fit is over."""
        if trainer.global_step != self.planned.steps and not trainer.should_stop:
            self._say(
                "steps",
                f"{trainer.global_step} optimizer steps instead of the {self.planned.steps} that "
                "the learning rates are laid out for",
            )
        for callback in callbacks_of(trainer):
            if not isinstance(callback, ChecksLayout):
                continue
            if reason := callback.had_no_part(trainer, self.planned):
                self._say(
                    type(callback).__name__,
                    f"{reason}: the fit ended after {trainer.global_step} of "
                    f"{self.planned.steps} optimizer steps",
                )
        sizes = datamodule_of(trainer).augment.sizes
        epochs = -(-trainer.global_step // self.planned.steps_per_epoch)
        if sizes and epochs <= sizes[-1][0]:
            self._say(
                "sizes",
                f"images of {sizes[-1][1]} pixels, which are tested, were never trained on: the "
                f"fit ended in epoch {epochs}, and they come with epoch {sizes[-1][0] + 1}",
            )
        if not _keeps_averages(trainer) and not _same(self._last, fingerprint(pl_module)):
            self.changed_at_the_end = True
            self._say(
                "end",
                "the weights were changed when training was over: what a checkpoint holds is "
                "tested, and that change is not in one (callbacks=ema tests an average)",
            )

    def _say(self, about: str, text: str) -> None:
        if about not in self.departures:
            log.warning("not as asked: %s", text)
            self.departures[about] = text

    def state_dict(self) -> dict[str, Any]:
        """What a later start can't find out."""
        return {
            "departures": dict(self.departures),
            "validated_step": self.validated_step,
            "first_lr": self._first_lr,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Takes it up."""
        self.departures = dict(state_dict["departures"])
        self.validated_step, self._first_lr = state_dict["validated_step"], state_dict["first_lr"]


def _keeps_averages(trainer: Trainer) -> bool:
    return any(isinstance(callback, WeightAveraging) for callback in callbacks_of(trainer))


def _settings(trainer: Trainer) -> dict[str, Any]:
    """What keeps its value in a fit, by its name in the configuration."""
    settings = {f"trainer.{name}": getattr(trainer, name) for name in _OF_TRAINER}
    scheduler = trainer.lr_scheduler_configs[0].scheduler if trainer.lr_scheduler_configs else None
    if isinstance(scheduler, FactorSchedule):  # others may turn momentum, too
        groups = scheduler.optimizer.param_groups
        for name in _OF_GROUPS:
            values = [group[name] for group in groups if name in group]
            if values:
                settings[f"optimizer.{name}"] = [
                    tuple(value) if isinstance(value, list) else value for value in values
                ]
    return settings


def _shown(value: Any) -> str:
    if isinstance(value, list):  # of the optimizer's groups
        return ", ".join(str(one) for one in dict.fromkeys(value))
    return str(value)


def fingerprint(module: nn.Module) -> list[int]:
    """Of weights and running statistics, by tensor: the sum of their bits, read as integers.

    No rounding: it is the same on every device, and Lightning takes a network from the GPU to the
    CPU between the end of training and the test.
    """
    state = module.state_dict().values()  # what is no tensor is an extra state
    tensors = [t.detach() for t in state if isinstance(t, torch.Tensor) and t.is_floating_point()]
    sums = [t.view(_BITS[t.element_size()]).sum(dtype=torch.int64) for t in tensors]
    values: list[int] = torch.stack(sums).tolist() if sums else []
    return values


def _same(before: list[int] | None, now: list[int]) -> bool:
    return before is None or before == now  # None: nothing was noted before
