"""Training on the images of each batch that a small network finds hard."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from cifar_lab.data.feed.epoch import Batch
from cifar_lab.errors import InputError
from cifar_lab.training.momentum import keep_momentum_defined
from cifar_lab.training.optimizers import OptimizerFactory
from cifar_lab.training.schedules import FactorSchedule

Loss = Callable[[Tensor, Tensor], Tensor]


def kept(share: float, images: int) -> int:
    """How many images of a batch train."""
    return max(1, round(share * images))


def _of_each(loss: Loss) -> Loss:
    """The same loss, (B,): one number for each image."""
    if not isinstance(loss, nn.Module) or not hasattr(loss, "reduction"):
        raise InputError(
            f"hard_examples: ranks images by their own losses, and {type(loss).__name__} has no "
            "reduction=none; use loss=cross_entropy"
        )
    each = copy.copy(loss)  # which shares its class weights, wherever they are moved to
    each.reduction = "none"  # type: ignore[assignment]  # no submodule
    return each


class HardExamples:
    """Of each batch the share with the highest loss of a proxy, which is trained beside it.

    The proxy sees every batch, and steps on the images that it has chosen from every so many of
    them, with the run's own loss, optimizer and schedule. It knows nothing of the network that the
    images are for: this is what airbench96_faster does in two runs, one after the other, that see
    the same batches (github.com/KellerJordan/cifar10-airbench; the loss as the measure:
    arXiv:1511.06343).

    No part of a module: no optimizer and no average of weights has the proxy in it. It takes none
    of the run's random numbers.

    Attributes:
        proxy: the small network.
        chosen: what `choose` gave last.

    Args:
        proxy: images (B, 3, H, W) -> logits (B, C).
        loss: mean over a batch of logits and labels; one of torch's, whose ``reduction`` can be
            left out: images are ranked by their own losses.
        optimizer: makes the proxy's.
        schedule: (steps made, steps of the fit) -> factor on its learning rates.
        share: of a batch that is kept, in (0, 1); at least one image is.
        every: batches of which one is stepped on, at least 1.

    Raises:
        InputError: a number out of range, or a loss of whole batches alone.
    """

    def __init__(
        self,
        proxy: nn.Module,
        *,
        loss: Loss,
        optimizer: OptimizerFactory,
        schedule: Callable[[int, int], float],
        share: float,
        every: int,
    ) -> None:
        if not 0 < share < 1:
            raise InputError(f"hard_examples.share={share}: must lie in (0, 1), e.g. 0.5")
        if every < 1:
            raise InputError(f"hard_examples.every={every}: must be at least 1, e.g. 4")
        self.proxy = proxy
        self.chosen: Batch = torch.empty(0), torch.empty(0)
        self._loss = loss
        self._loss_of_each = _of_each(loss)
        self._make_optimizer, self._factor = optimizer, schedule
        self.share, self._every = share, every
        self._batches = 0
        self._optimizer: Optimizer | None = None
        self._schedule: FactorSchedule | None = None
        self._carried: Mapping[str, Any] | None = None

    def __deepcopy__(self, memo: dict[int, Any]) -> HardExamples:
        # a callback that averages weights copies the module that learns, and only that is averaged
        return self

    def start(self, device: torch.device, steps: int) -> None:
        """Begins a fit of so many steps, or goes on with the one that `load_state_dict` gave."""
        self.proxy.to(device)
        self._optimizer = self._make_optimizer(self.proxy)
        keep_momentum_defined(self._optimizer)
        self._schedule = FactorSchedule(self._optimizer, self._factor, steps)
        self._batches = 0
        if self._carried is not None:
            self.proxy.load_state_dict(self._carried["proxy"])
            self._optimizer.load_state_dict(self._carried["optimizer"])
            self._schedule.load_state_dict(self._carried["schedule"])
            self._batches, self._carried = self._carried["batches"], None
        begin = getattr(self._optimizer, "train", None)
        if callable(begin):  # a schedule-free one wants to be told
            begin()

    def choose(self, batch: Batch) -> Batch:
        """The images of a batch that are kept, in their order, with their labels.

        Args:
            batch: images (B, 3, H, W), labels (B,) int64 or (B, C) float.
        """
        assert self._optimizer is not None
        assert self._schedule is not None
        images, labels = batch
        steps = self._batches % self._every == 0
        self.proxy.train()
        dtype = next(p.dtype for p in self.proxy.parameters())
        on = [images.device] if images.device.type == "cuda" else []
        with torch.set_grad_enabled(steps), torch.random.fork_rng(devices=on):
            logits = self.proxy(images.to(dtype))
        wide = logits.to(torch.promote_types(logits.dtype, torch.float32))
        targets = labels.to(wide) if labels.ndim > 1 else labels
        with torch.no_grad():
            losses = self._loss_of_each(wide, targets)
            rows = losses.topk(kept(self.share, len(images))).indices.sort().values
        if steps:
            loss = self._loss(wide[rows], targets[rows])
            self._optimizer.zero_grad()
            # mixed precision is for the forward pass
            with torch.autocast(images.device.type, enabled=False):
                loss.backward()
                self._optimizer.step()
        self._schedule.step()
        self._batches += 1
        self.chosen = images[rows], labels[rows]
        return self.chosen

    def state_dict(self) -> dict[str, Any]:
        """All that a fit which goes on needs."""
        assert self._optimizer is not None
        assert self._schedule is not None
        return {
            "proxy": self.proxy.state_dict(),
            "optimizer": self._optimizer.state_dict(),
            "schedule": self._schedule.state_dict(),
            "batches": self._batches,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """What the next `start` goes on with."""
        self._carried = state
