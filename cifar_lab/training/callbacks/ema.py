"""An exponential moving average of the weights, which is what validation and test see."""

from __future__ import annotations

from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import WeightAveraging
from torch.optim.swa_utils import get_ema_multi_avg_fn

from cifar_lab.errors import InputError


class Ema(WeightAveraging):
    """After every optimizer step ``average = decay * average + (1 - decay) * weights``.

    BatchNorm's running statistics are averaged too. A checkpoint's ``state_dict`` holds the
    averages, and ``current_model_state`` the weights that training goes on from. Source: Polyak and
    Juditsky, doi:10.1137/0330046; the form is that of arXiv:1703.01780.

    Args:
        decay: in [0, 1); .99 looks about 100 steps back.
        start_step: optimizer steps before the average begins; it is the weights themselves so far.
    """

    def __init__(self, *, decay: float, start_step: int) -> None:
        if not 0 <= decay < 1:
            raise InputError(f"decay={decay}: must lie in [0, 1)")
        if start_step < 0:
            raise InputError(f"start_step={start_step}: must be at least 0")
        super().__init__(multi_avg_fn=get_ema_multi_avg_fn(decay))
        self._start_step = start_step
        self._swapped = False

    def should_update(self, step_idx: int | None = None, epoch_idx: int | None = None) -> bool:
        """After every step from ``start_step`` on; ``step_idx`` counts from 0."""
        return step_idx is not None and step_idx >= self._start_step

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """The module gets the averages."""
        self._follow(pl_module)
        super().on_validation_epoch_start(trainer, pl_module)
        self._swapped = True

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """The module gets its weights back."""
        super().on_validation_epoch_end(trainer, pl_module)
        self._swapped = False

    def on_save_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """As everywhere, also when a signal ends the run inside a validation."""
        if self._swapped:
            # what the checkpoint refers to are the tensors that this puts right
            self._swap_models(pl_module)
            self._swapped = False
        self._follow(pl_module)
        super().on_save_checkpoint(trainer, pl_module, checkpoint)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """The module keeps the averages."""
        self._follow(pl_module)
        super().on_train_end(trainer, pl_module)

    def _follow(self, module: LightningModule) -> None:
        # before the average begins it is the weights; Lightning's is the untrained network so far
        assert self._average_model is not None
        if not int(self._average_model.n_averaged):
            self._average_model.module.load_state_dict(module.state_dict())
