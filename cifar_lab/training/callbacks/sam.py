"""Sharpness-aware minimization: the gradient of where the loss near the weights is highest."""

from __future__ import annotations

from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor
from torch.nn.utils import get_total_norm
from torch.optim import Optimizer

from cifar_lab.errors import InputError
from cifar_lab.training.classifier import Classifier
from cifar_lab.training.layout import ChecksLayout, Layout, layout_of

_TINY = 1e-12


class Sam(Callback, ChecksLayout):
    """Each step is made with the gradient at ``weights + rho * gradient / norm(gradient)``.

    Source: Foret et al., arXiv:2010.01412. A second pass over the same batch, with the same random
    numbers; BatchNorm's running statistics, ``train/loss`` and ``train/acc`` are of the first one,
    clipping is of the second one's gradient. A step takes twice as long: with ``start_fraction``
    only the fit's last part is made so (Andriushchenko and Flammarion, arXiv:2206.06232).

    In several processes the first gradient is that of all images, and so is the second.

    Args:
        rho: length of the step uphill, above 0.
        start_fraction: share of the fit before the first such step, in [0, 1).
    """

    def __init__(self, *, rho: float, start_fraction: float) -> None:
        if rho <= 0:
            raise InputError(f"rho={rho}: must be above 0, e.g. 0.05")
        if not 0 <= start_fraction < 1:
            raise InputError(f"start_fraction={start_fraction}: must lie in [0, 1)")
        self._rho = rho
        self._start_fraction = start_fraction
        self._first_step = 0
        self._batch: Any = None
        self._random: list[Tensor] = []

    def check_layout(self, trainer: Trainer, layout: Layout) -> None:
        """Raises InputError where the fit ends before the first step of this kind."""
        if self._first(layout) >= layout.steps:
            raise InputError(
                f"start_fraction={self._start_fraction}: of {layout.steps} optimizer steps none "
                "would be made so; begin earlier, or leave the callback out"
            )

    def had_no_part(self, trainer: Trainer, layout: Layout) -> str | None:
        """The fit ended before the first step of this kind."""
        late = trainer.global_step <= self._first(layout)
        return "no step was sharpness-aware" if late else None

    def _first(self, layout: Layout) -> int:
        return round(self._start_fraction * layout.steps)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Lays out the first step of this kind."""
        self._first_step = self._first(layout_of(trainer))

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Keeps the batch, and where the random numbers are."""
        if trainer.global_step >= self._first_step:
            self._batch, self._random = batch, _random_state(pl_module.device)

    def on_before_optimizer_step(
        self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer
    ) -> None:
        """Puts the gradients of the second pass in the place of the first one's."""
        if trainer.global_step < self._first_step:
            return
        assert isinstance(pl_module, Classifier)
        parameters = [
            parameter
            for group in optimizer.param_groups
            # where it is over for a group its gradients are none, or of no account
            if not ("until" in group and group["lr"] == 0)
            for parameter in group["params"]
            if parameter.grad is not None
        ]
        if not parameters:
            return
        weights = [parameter.detach().clone() for parameter in parameters]
        buffers = [(buffer, buffer.clone()) for buffer in pl_module.buffers()]
        after = _random_state(pl_module.device)
        with torch.no_grad():
            gradients = [parameter.grad for parameter in parameters]
            scale = self._rho / (get_total_norm(gradients) + _TINY)
            torch._foreach_mul_(gradients, scale)
            torch._foreach_add_(parameters, gradients)
        optimizer.zero_grad()
        _set_random_state(self._random, pl_module.device)
        with torch.enable_grad():
            with trainer.precision_plugin.forward_context():
                loss = pl_module.loss_again(self._batch)
            loss.backward()
        _set_random_state(after, pl_module.device)
        with torch.no_grad():
            torch._foreach_copy_(parameters, weights)
            for buffer, before in buffers:
                buffer.copy_(before)
            self._average_gradients(trainer, optimizer)
        self._batch, self._random = None, []

    def _average_gradients(self, trainer: Trainer, optimizer: Optimizer) -> None:
        # the second pass is none of DDP's: its hooks exchange what comes of its own forward
        if trainer.world_size == 1:
            return
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    mean = trainer.strategy.reduce(parameter.grad, reduce_op="mean")
                    assert isinstance(mean, Tensor)
                    parameter.grad = mean


def _random_state(device: torch.device) -> list[Tensor]:
    # of the CPU and of the device: neither waits for it
    states = [torch.get_rng_state()]
    if device.type in ("cuda", "mps"):
        states.append(torch.get_device_module(device).get_rng_state())
    return states


def _set_random_state(states: list[Tensor], device: torch.device) -> None:
    torch.set_rng_state(states[0])
    if len(states) > 1:
        torch.get_device_module(device).set_rng_state(states[1])
