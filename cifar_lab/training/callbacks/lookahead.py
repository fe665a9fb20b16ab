"""Lookahead: slow weights that follow the optimizer's by a share, every few steps."""

from __future__ import annotations

from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from cifar_lab.errors import InputError
from cifar_lab.training.layout import layout_of
from cifar_lab.training.steps.multistep import SupportsMultistep


class Lookahead(Callback, SupportsMultistep):
    """Every ``every_steps`` steps ``slow += alpha * (weights - slow)``, and the weights are these.

    Source: Zhang et al., arXiv:1907.08610, with the optimizer's state maintained and BatchNorm's
    statistics left alone. It is counted within an epoch, and done after the epoch's last step too:
    so validation, test and the epoch's checkpoint see slow weights, as there.

    Attributes:
        every_steps: as given.

    Args:
        alpha: the share, in (0, 1).
        every_steps: k there, at least 1.
        power: 0: the share is the same throughout. Above: it falls from 1 to alpha over the fit,
            ``1 - (1 - alpha) * (step / steps) ** power``, so that the slow weights come to stand
            still; 3 in the speedruns (github.com/KellerJordan/cifar10-airbench, legacy/).
    """

    def __init__(self, *, alpha: float, every_steps: int, power: float = 0.0) -> None:
        if not 0 < alpha < 1:
            raise InputError(f"alpha={alpha}: must lie in (0, 1), e.g. 0.5")
        if every_steps < 1:
            raise InputError(f"every_steps={every_steps}: must be at least 1, e.g. 5")
        if power < 0:
            raise InputError(f"power={power}: must be at least 0, e.g. 3")
        self._alpha, self.every_steps, self._power = alpha, every_steps, power
        self._weights: list[Tensor] = []
        self._slow: list[Tensor] = []
        self._synced_step = 0  # optimizer steps made by the last time
        self._per_epoch = self._last = 1

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """The slow weights begin as the weights, or as a checkpoint has them."""
        layout = layout_of(trainer)
        self._per_epoch, self._last = layout.steps_per_epoch, layout.steps
        self._weights = [p.detach() for p in pl_module.parameters() if p.requires_grad]
        carried = self._slow or self._weights
        pairs = zip(carried, self._weights, strict=True)
        self._slow = [slow.to(weight, copy=True) for slow, weight in pairs]

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Follows, where the batch ended with an optimizer step."""
        self.after_step(trainer, pl_module)

    def after_step(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Follows where it is time; a second call for one step does nothing."""
        step = trainer.global_step
        if step <= self._synced_step or not self._is_due(step):
            return
        self._synced_step = step
        with torch.no_grad():
            share = 1 - (1 - self._alpha) * (step / self._last) ** self._power
            torch._foreach_lerp_(self._slow, self._weights, share)
            torch._foreach_copy_(self._weights, self._slow)

    def _is_due(self, step: int) -> bool:
        # 0: an epoch's last step
        return step % self._per_epoch % self.every_steps == 0 or step == self._last

    def state_dict(self) -> dict[str, Any]:
        """The slow weights."""
        return {"slow": list(self._slow), "synced_step": self._synced_step}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Takes up what `state_dict` gave."""
        self._slow, self._synced_step = state_dict["slow"], state_dict["synced_step"]
