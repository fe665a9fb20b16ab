"""The gradient's norm, once an epoch."""

from __future__ import annotations

import math
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import nn

from cifar_lab.training.classifier import Classifier


class GradNorm(Callback):
    """Logs ``grad_norm``: the L2 norm over all parameters of the epoch's last optimizer step.

    Read from ``p.grad`` where the epoch ends, as the optimizer got them: averaged over the ranks
    and over accumulated batches, unscaled under ``16-mixed``, after ``trainer.gradient_clip_val``.
    Nothing happens in a step. Where there are no gradients (they were set to None after the step)
    or the norm isn't finite (a step that ``16-mixed`` skipped) nothing is logged.
    """

    def __init__(self) -> None:
        self._carried: float | None = None

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Logs it in one row with the epoch's metrics."""
        norm = self._last(pl_module)
        self._carried = None
        if norm is not None and math.isfinite(norm):
            assert isinstance(pl_module, Classifier)
            pl_module.log_with_epoch({"grad_norm": norm})

    def on_save_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Gradients are in no checkpoint: their norm travels along."""
        checkpoint["grad_norm"] = self._last(pl_module)

    def on_load_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Takes it up again."""
        self._carried = checkpoint.get("grad_norm")

    def _last(self, module: nn.Module) -> float | None:
        # in float32 or wider: in bfloat16 a norm has three digits, and float16 ends at 65,504
        grads = [
            p.grad.to(torch.promote_types(p.grad.dtype, torch.float32))
            for p in module.parameters()
            if p.grad is not None
        ]
        if not grads:  # no step yet: a checkpoint of an epoch's last step was taken up
            return self._carried
        return float(nn.utils.get_total_norm(grads))
