"""An exponential moving average of the weights, which is what validation and test see."""

from __future__ import annotations

from collections import defaultdict
from itertools import chain
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import WeightAveraging
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from cifar_lab.errors import InputError
from cifar_lab.training.layout import ChecksLayout, Layout
from cifar_lab.training.lightning_internals import average_model, swap_averages
from cifar_lab.training.steps.multistep import SupportsMultistep


class Ema(WeightAveraging, SupportsMultistep, ChecksLayout):
    """After every optimizer step ``average = decay * average + (1 - decay) * weights``.

    BatchNorm's running statistics are averaged too. A checkpoint's ``state_dict`` holds the
    averages, and ``current_model_state`` the weights that training goes on from. Source: Polyak and
    Juditsky, doi:10.1137/0330046; the form is that of arXiv:1703.01780.

    What is kept, and in checkpoints, is torch's `AveragedModel`. Its ``update_parameters`` reads
    its own counter from the device, twice a step (torch 2.11 to 2.15): here Python counts.

    Args:
        decay: in [0, 1); .99 looks about 100 steps back.
        start_step: optimizer steps before the average begins; it is the weights themselves so far.
    """

    def __init__(self, *, decay: float, start_step: int) -> None:
        if not 0 <= decay < 1:
            raise InputError(f"decay={decay}: must lie in [0, 1)")
        if start_step < 0:
            raise InputError(f"start_step={start_step}: must be at least 0")
        super().__init__()
        self._average = get_ema_multi_avg_fn(decay)
        self._start_step = start_step
        self._updated_step = 0  # optimizer steps made by the last update
        self._begun = False
        self._swapped = False

    def check_layout(self, trainer: Trainer, layout: Layout) -> None:
        """Raises InputError where the fit ends before the average begins."""
        if self._start_step >= layout.steps:
            raise InputError(
                f"start_step={self._start_step}: the fit ends after {layout.steps} optimizer "
                f"steps, and there would be no average; must be at most {layout.steps - 1}"
            )

    def should_update(self, step_idx: int | None = None, epoch_idx: int | None = None) -> bool:
        """After every step from ``start_step`` on; ``step_idx`` counts from 0."""
        return step_idx is not None and step_idx >= self._start_step

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Averages, where the batch ended with an optimizer step."""
        self.after_step(trainer, pl_module)

    def after_step(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Averages; a second call for one step does nothing."""
        step = trainer.global_step
        if step > self._updated_step and self.should_update(step - 1):
            self._update(pl_module)
            self._updated_step = step

    @torch.no_grad()
    def _update(self, module: LightningModule) -> None:
        # `AveragedModel.update_parameters` without its reads; the same sums in the same order
        model = average_model(self)
        by_type: dict[torch.dtype, tuple[list[Tensor], list[Tensor]]] = defaultdict(
            lambda: ([], [])
        )
        for average, weight in zip(_tensors(model.module), _tensors(module), strict=True):
            averages, weights = by_type[average.dtype]
            averages.append(average.detach())
            weights.append(weight.detach())
        for averages, weights in by_type.values():
            if self._begun:
                self._average(averages, weights, model.n_averaged)
            else:
                torch._foreach_copy_(averages, weights)
        model.n_averaged += 1
        self._begun = True

    def state_dict(self) -> dict[str, Any]:
        """The last update's step, under Lightning's own name for it."""
        return {"latest_update_step": self._updated_step}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Takes up what `state_dict` gave."""
        self._updated_step = state_dict["latest_update_step"]

    def on_load_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Takes the averages up; where the checkpoint has none they are its weights."""
        super().on_load_checkpoint(trainer, pl_module, checkpoint)
        self._begun = bool(checkpoint.get("averaging_state", {}).get("n_averaged", 0))

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
            swap_averages(self, pl_module)
            self._swapped = False
        self._follow(pl_module)
        super().on_save_checkpoint(trainer, pl_module, checkpoint)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """The module keeps the averages."""
        self._follow(pl_module)
        super().on_train_end(trainer, pl_module)

    def _follow(self, module: LightningModule) -> None:
        # before the average begins it is the weights; Lightning's is the untrained network so far
        if not self._begun:
            average_model(self).module.load_state_dict(module.state_dict())


def _tensors(module: nn.Module) -> chain[Tensor]:
    return chain(module.parameters(), module.buffers())
