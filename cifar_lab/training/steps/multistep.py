"""Several optimizer steps per call of Lightning's loop, whose own work then counts once for all.

Lightning's loop costs .7 to 5 ms a call, a small network's step on a GPU less than that. With
``steps_per_call=16`` the loader hands out 16 batches at a time, and the Classifier makes 16 steps
with them (manual optimization). Order, augmentation, learning rates, ``global_step`` and results
are those of single steps.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import GradientAccumulationScheduler, StochasticWeightAveraging

from cifar_lab.data.datamodule import DataModule
from cifar_lab.data.feed.epoch import Multistep
from cifar_lab.training.lightning_internals import (
    callbacks_of,
    set_calls_done,
    set_global_step,
    set_limit_train_batches,
    train_loader_state,
)

log = logging.getLogger("cifar_lab")

_STEP_HOOKS = (
    *("on_train_batch_start", "on_train_batch_end", "on_before_zero_grad", "on_before_backward"),
    *("on_after_backward", "on_before_optimizer_step"),
)


class SupportsMultistep:
    """Mark of a callback whose hooks of a training batch are right for several steps as well."""

    def after_step(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Called after each optimizer step of a call of several, before the call's own hooks."""


def followers(callbacks: Iterable[Callback]) -> list[SupportsMultistep]:
    """The callbacks that have something to do after each step of a call."""
    return [
        callback
        for callback in callbacks
        if isinstance(callback, SupportsMultistep)
        and type(callback).after_step is not SupportsMultistep.after_step
    ]


def arrange(
    trainer: Trainer, data: DataModule, size: int, *, singly: str | None = None
) -> Multistep | None:
    """How the fit to come is cut into calls, or None: one step per call.

    Something that has to see every step switches back to single ones, and that is said.

    Args:
        trainer: with all of its callbacks.
        data: told to hand out the multistep.
        size: steps per call.
        singly: why the network's own training has to see every step; None: it needn't.
    """
    if size == 1:
        return None
    if reason := obstacle(trainer, data, singly):
        log.warning("steps_per_call=%d: %s; going on with one step per call", size, reason)
        return None
    batches = limited(trainer, data.train_dataloader().num_batches)
    if batches == 0:
        return None  # Lightning's to refuse
    full = min(batches, len(data.train_indices) // data.batch_size)
    bound = trainer.max_steps if trainer.max_steps > -1 else None
    multistep = Multistep(size=size, full=full, batches=batches, max_steps=bound)
    data.use_multistep(multistep)
    set_limit_train_batches(trainer, 1.0)  # of the calls; the loader keeps that of the batches
    return multistep


def limited(trainer: Trainer, batches: int) -> int:
    """Of an epoch's batches those that ``trainer.limit_train_batches`` leaves."""
    limit = trainer.limit_train_batches
    return min(batches, limit) if isinstance(limit, int) else int(batches * limit)


def validates_within_epochs(trainer: Trainer) -> bool:
    """Whether a validation may come before an epoch's last batch."""
    interval = trainer.val_check_interval
    at_the_end = isinstance(interval, float) and interval == 1.0  # the integer 1 is one batch
    return not at_the_end or trainer.check_val_every_n_epoch is None


def obstacle(trainer: Trainer, data: DataModule, singly: str | None = None) -> str | None:
    """Why every step has to be a call of its own; None: it needn't.

    Args:
        trainer: made, with its callbacks.
        data: of the fit.
        singly: a reason that the classifier gives; None: it has none.
    """
    if singly:
        return singly
    if trainer.world_size > 1:
        return f"{trainer.world_size} processes share each step"
    if data.loader != "device":
        return f"data.loader={data.loader} hands out single batches"
    if trainer.accumulate_grad_batches != 1:
        return f"trainer.accumulate_grad_batches={trainer.accumulate_grad_batches}"
    if trainer.gradient_clip_val:
        return f"trainer.gradient_clip_val={trainer.gradient_clip_val}"
    if validates_within_epochs(trainer):
        return f"trainer.val_check_interval={trainer.val_check_interval} validates within epochs"
    for callback in callbacks_of(trainer):
        if not isinstance(callback, SupportsMultistep) and sees_steps(callback):
            return f"the callback {type(callback).__name__} looks at every step"
    return None


def sees_steps(callback: Callback) -> bool:
    """Whether a callback has a hook that Lightning calls at every step, or changes the step."""
    # these two change Lightning's own step
    if isinstance(callback, StochasticWeightAveraging | GradientAccumulationScheduler):
        return True
    # LambdaCallback has its hooks on the instance
    return any(
        hook in vars(callback) or getattr(type(callback), hook) is not getattr(Callback, hook)
        for hook in _STEP_HOOKS
    )


def multistep_of(trainer: Trainer) -> Multistep | None:
    """How the trainer's loader cuts an epoch into calls."""
    return getattr(trainer.train_dataloader, "multistep", None)


def batches_done(trainer: Trainer, calls: int) -> int:
    """Batches of an epoch that are over when ``calls`` of Lightning's are."""
    multistep = multistep_of(trainer)
    return calls if multistep is None else multistep.batches_done(calls)


def batches_per_epoch(trainer: Trainer) -> float:
    """Training batches of an epoch, ``limit_train_batches`` included."""
    multistep = multistep_of(trainer)
    return trainer.num_training_batches if multistep is None else multistep.batches


def translate_progress(checkpoint: dict[str, Any], multistep: Multistep | None) -> None:
    """Has a checkpoint's loops count in calls of this start, where ``steps_per_call`` changed."""
    if checkpoint["steps_per_call"] == steps_per_call(multistep):
        return
    batches = train_loader_state(checkpoint)["position"]
    set_calls_done(checkpoint, batches if multistep is None else multistep.calls_done(batches))
    set_global_step(checkpoint, checkpoint["global_step"])


def steps_per_call(multistep: Multistep | None) -> int:
    """Optimizer steps per call."""
    return 1 if multistep is None else multistep.size
