"""Several optimizer steps per call of Lightning's loop, whose own work then counts once for all.

Lightning's loop costs .7 to 5 ms a call, a small network's step on a GPU less than that. With
``steps_per_call=16`` the loader hands out blocks of 16 batches, and the Classifier makes 16 steps
with them (manual optimization). Order, augmentation, learning rates, ``global_step`` and results
are those of single steps.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from typing import Any

from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import GradientAccumulationScheduler, StochasticWeightAveraging

from cifar_lab.data.datamodule import DataModule
from cifar_lab.data.feed.epoch import Blocks

log = logging.getLogger("cifar_lab")

# Where a step takes no longer than the loop around it. On a CPU it does, and Ctrl-C waits for it.
ON_CUDA = 16
_STEP_HOOKS = (
    *("on_train_batch_start", "on_train_batch_end", "on_before_zero_grad", "on_before_backward"),
    *("on_after_backward", "on_before_optimizer_step"),
)


class KnowsBlocks:
    """Mark of a callback whose hooks of a training batch are right for a block of them as well."""


def arrange(trainer: Trainer, data: DataModule, asked: int | None) -> Blocks | None:
    """The blocks of the fit to come, or None: one step per call.

    Something that has to see every step switches back to single ones, and that is said.

    Args:
        trainer: with all of its callbacks.
        data: told to hand out the blocks.
        asked: steps per call; None: what suits the device.
    """
    on_cuda = trainer.strategy.root_device.type == "cuda"
    size = asked or (ON_CUDA if on_cuda else 1)
    if size == 1:
        return None
    if reason := _obstacle(trainer, data):
        # what nobody asked for isn't missed, but for a callback that slows a GPU down
        if asked is not None or "callback" in reason:
            log.warning("steps_per_call=%d: %s; going on with one step per call", size, reason)
        return None
    batches = limited(trainer, data.train_dataloader().num_batches)
    if batches == 0:
        return None  # Lightning's to refuse
    full = min(batches, len(data.train_indices) // data.batch_size)
    bound = trainer.max_steps if trainer.max_steps > -1 else None
    blocks = Blocks(size=size, full=full, batches=batches, max_steps=bound)
    data.hand_out_blocks(blocks)
    trainer.limit_train_batches = 1.0  # of the blocks; the loader keeps the limit of the batches
    return blocks


def limited(trainer: Trainer, batches: int) -> int:
    """Of an epoch's batches those that ``trainer.limit_train_batches`` leaves."""
    limit = trainer.limit_train_batches
    return min(batches, limit) if isinstance(limit, int) else int(batches * limit)


def validates_within_epochs(trainer: Trainer) -> bool:
    """Whether a validation may come before an epoch's last batch."""
    interval = trainer.val_check_interval
    at_the_end = isinstance(interval, float) and interval == 1.0  # the integer 1 is one batch
    return not at_the_end or trainer.check_val_every_n_epoch is None


def _obstacle(trainer: Trainer, data: DataModule) -> str | None:
    """Why every step has to be a call of its own."""
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
    callbacks: Iterable[Callback] = trainer.callbacks  # type: ignore[attr-defined]  # set by a connector
    for callback in callbacks:
        if not isinstance(callback, KnowsBlocks) and _sees_steps(callback):
            return f"the callback {type(callback).__name__} looks at every step"
    return None


def _sees_steps(callback: Callback) -> bool:
    # these two change Lightning's own step
    if isinstance(callback, StochasticWeightAveraging | GradientAccumulationScheduler):
        return True
    # LambdaCallback has its hooks on the instance
    return any(
        hook in vars(callback) or getattr(type(callback), hook) is not getattr(Callback, hook)
        for hook in _STEP_HOOKS
    )


def blocks_of(trainer: Trainer) -> Blocks | None:
    """The blocks that the trainer's loader hands out."""
    return getattr(trainer.train_dataloader, "blocks", None)


def batches_done(trainer: Trainer, calls: int) -> int:
    """Batches of an epoch that are over when ``calls`` of Lightning's are."""
    blocks = blocks_of(trainer)
    return calls if blocks is None else blocks.position(calls)


def batches_per_epoch(trainer: Trainer) -> float:
    """Training batches of an epoch, ``limit_train_batches`` included."""
    blocks = blocks_of(trainer)
    return trainer.num_training_batches if blocks is None else blocks.batches


def translate_progress(checkpoint: dict[str, Any], blocks: Blocks | None) -> None:
    """Has a checkpoint's loops count in calls of this start, where ``steps_per_call`` changed."""
    if checkpoint["steps_per_call"] == size_of(blocks):
        return
    loops = checkpoint["loops"]["fit_loop"]
    batches = loops["state_dict"]["combined_loader"][0]["position"]
    calls = batches if blocks is None else blocks.index(batches)
    current = loops["epoch_loop.batch_progress"]["current"]
    # the last call may be in different stages of its completion
    loops["epoch_loop.batch_progress"]["current"] = {
        stage: calls - (current["ready"] - count) for stage, count in current.items()
    }
    # Lightning reads global_step from one of these, and each knows only its own steps
    steps = checkpoint["global_step"]
    counted = {key: {"ready": steps, "completed": steps} for key in ("total", "current")}
    loops["epoch_loop.automatic_optimization.optim_progress"]["optimizer"]["step"] = counted
    loops["epoch_loop.manual_optimization.optim_step_progress"] = counted


def size_of(blocks: Blocks | None) -> int:
    """Optimizer steps per call."""
    return 1 if blocks is None else blocks.size
