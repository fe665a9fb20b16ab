"""What validation and test see of a schedule-free optimizer: the average that it keeps."""

from __future__ import annotations

from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from torch.optim.swa_utils import get_swa_multi_avg_fn

from cifar_lab.training.callbacks.swa import WithoutStatistics
from cifar_lab.training.lightning_internals import average_model


class ScheduleFree(WithoutStatistics):
    """The averages are the optimizer's ``x``, made of the weights ``y`` and its ``z`` when wanted.

    Source: Defazio et al., arXiv:2405.15682. The optimizer stays in its training mode, whose
    ``eval`` and ``train`` would round the weights at each look, and a run that was stopped would go
    on otherwise. BatchNorm's statistics are estimated anew, as `Swa` does.

    Args:
        bn_images: as `WithoutStatistics`.
    """

    def __init__(self, *, bn_images: int | None) -> None:
        super().__init__(get_swa_multi_avg_fn(), bn_images=bn_images)
        self._made_step = self._estimated_step = -1  # optimizer steps made by then

    def should_update(self, step_idx: int | None = None, epoch_idx: int | None = None) -> bool:
        """Never: the optimizer averages."""
        return False

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """The optimizer wants to be told that training begins."""
        optimizer: Any = trainer.optimizers[0]
        optimizer.train()

    def refresh(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Averages and statistics are of the step that was made last."""
        self._follow(pl_module)
        if self._estimated_step != trainer.global_step:
            self.estimate(trainer)
            self._estimated_step = trainer.global_step

    @torch.no_grad()
    def _follow(self, module: LightningModule) -> None:
        step = module.trainer.global_step
        if self._made_step == step:
            return
        self._made_step = step
        averages = average_model(self).module
        averages.load_state_dict(module.state_dict())
        average_of = dict(zip(module.parameters(), averages.parameters(), strict=True))
        optimizer = module.trainer.optimizers[0]
        for group in optimizer.param_groups:
            momentum = group["momentum"] if "momentum" in group else group["betas"][0]
            for parameter in group["params"]:
                if "z" in optimizer.state[parameter]:
                    z = optimizer.state[parameter]["z"]
                    average_of[parameter].lerp_(z, 1 - 1 / momentum)  # as its `eval` does

    def state_dict(self) -> dict[str, Any]:
        """Also of which step the averages and their statistics are."""
        steps = {"made_step": self._made_step, "estimated_step": self._estimated_step}
        return {**super().state_dict(), **steps}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Takes up what `state_dict` gave."""
        super().load_state_dict(state_dict)
        self._made_step = state_dict["made_step"]
        self._estimated_step = state_dict["estimated_step"]
