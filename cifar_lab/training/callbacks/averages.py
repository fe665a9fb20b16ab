"""Averages of the weights, which are what validation and test see."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from itertools import chain
from typing import Any, ClassVar

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import WeightAveraging
from torch import Tensor, nn

from cifar_lab.training.lightning_internals import average_model, swap_averages
from cifar_lab.training.steps.multistep import SupportsMultistep


class Averages(WeightAveraging, SupportsMultistep):
    """Lightning's callback, exact where a run is stopped, and without reads of the device.

    A checkpoint's ``state_dict`` holds the averages, and ``current_model_state`` the weights that
    training goes on from. Before the average begins it is the weights themselves so far.

    What is kept, and in checkpoints, is torch's `AveragedModel`. Its ``update_parameters`` reads
    its own counter from the device, twice a step (torch 2.11 to 2.15): here Python counts.

    Attributes:
        averages_buffers: whether running statistics are averaged too; else the average has those
            that the weights had last.

    Args:
        average: (averages, weights, how many were averaged) -> None, in place.
    """

    averages_buffers: ClassVar[bool] = True

    def __init__(self, average: Callable[[Any, Any, Any], None]) -> None:
        super().__init__()
        self._average = average
        self._updated_step = 0  # optimizer steps made by the last update
        self._count = 0  # of averaged weights
        self._swapped = False

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """The averages are as wide as the weights will be, which the trainer widens after this."""
        super().setup(trainer, pl_module, stage)
        if stage == "fit":
            trainer.precision_plugin.convert_module(average_model(self))

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
        if not self.averages_buffers:
            for average, buffer in zip(model.module.buffers(), module.buffers(), strict=True):
                average.copy_(buffer)
        by_type: dict[torch.dtype, tuple[list[Tensor], list[Tensor]]] = defaultdict(
            lambda: ([], [])
        )
        pairs = zip(self._averaged(model.module), self._averaged(module), strict=True)
        for average, weight in pairs:
            averages, weights = by_type[average.dtype]
            averages.append(average.detach())
            weights.append(weight.detach())
        for averages, weights in by_type.values():
            if self._count:
                self._average(averages, weights, self._count)
            else:
                torch._foreach_copy_(averages, weights)
        model.n_averaged += 1
        self._count += 1

    def _averaged(self, module: nn.Module) -> chain[Tensor]:
        return chain(module.parameters(), module.buffers() if self.averages_buffers else ())

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
        self._count = int(checkpoint.get("averaging_state", {}).get("n_averaged", 0))

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

    def averaged_none(self) -> bool:
        """Whether the average is the weights themselves so far."""
        return not self._count

    def _follow(self, module: LightningModule) -> None:
        # before the average begins it is the weights; Lightning's is the untrained network so far
        if not self._count:
            average_model(self).module.load_state_dict(module.state_dict())
