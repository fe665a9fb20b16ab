"""Stochastic weight averaging: the mean of the weights at the end of training."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim.swa_utils import get_swa_multi_avg_fn

from cifar_lab.data.feed.epoch import Batch
from cifar_lab.errors import InputError
from cifar_lab.training.callbacks.averages import Averages
from cifar_lab.training.classifier import Classifier
from cifar_lab.training.layout import ChecksLayout, Layout, layout_of
from cifar_lab.training.lightning_internals import average_model, datamodule_of


class WithoutStatistics(Averages):
    """Averages of weights alone: BatchNorm's running statistics are estimated anew for a look.

    Looked at are they in a validation, where an epoch ends, and at the end of training.

    Args:
        average: as `Averages`.
        bn_images: how many of the training images the statistics are estimated with; null: all. A
            sample that is the same throughout the fit.
    """

    averages_buffers = False

    def __init__(self, average: Callable[[Any, Any, Any], None], *, bn_images: int | None) -> None:
        if bn_images is not None and bn_images < 2:  # of one image there is no variance
            raise InputError(f"bn_images={bn_images}: must be at least 2, or null")
        super().__init__(average)
        self._bn_images = bn_images

    @abstractmethod
    def refresh(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Brings averages and statistics up to date; does nothing where they are."""

    def estimate(self, trainer: Trainer) -> None:
        """`estimate_statistics` of the averages with the sample of training images."""
        averages = average_model(self).module
        assert isinstance(averages, Classifier)
        batches = datamodule_of(trainer).sample_dataloader(self._bn_images)
        with trainer.precision_plugin.forward_context():
            estimate_statistics(averages.network, batches, frozen=averages.frozen)

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """The module gets the averages, with statistics of theirs."""
        self.refresh(trainer, pl_module)
        super().on_validation_epoch_start(trainer, pl_module)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """What the epoch's checkpoint holds is what would be tested."""
        self.refresh(trainer, pl_module)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """The module keeps the averages."""
        self.refresh(trainer, pl_module)
        super().on_train_end(trainer, pl_module)


class Swa(WithoutStatistics, ChecksLayout):
    """The plain mean of the weights after each epoch of the fit's last part.

    Source: Izmailov et al., arXiv:1803.05407. Between the averaged weights the learning rate should
    stay high enough to move: ``scheduler=constant``, or one with a ``final_factor``.

    BatchNorm's running statistics belong to no mean of weights: they are estimated anew, as torch's
    ``update_bn`` does, before a validation and where an epoch ends. With images that are not
    augmented, as validation and test are, and with dropout off.

    Args:
        start_fraction: share of the fit before the first average, in [0, 1).
        every_steps: optimizer steps from one average to the next; null: an epoch's. The fit's last
            weights are always among them.
        bn_images: as `WithoutStatistics`.
    """

    def __init__(
        self, *, start_fraction: float, every_steps: int | None, bn_images: int | None
    ) -> None:
        if not 0 <= start_fraction < 1:
            raise InputError(f"start_fraction={start_fraction}: must lie in [0, 1)")
        if every_steps is not None and every_steps < 1:
            raise InputError(f"every_steps={every_steps}: must be at least 1, or null")
        super().__init__(get_swa_multi_avg_fn(), bn_images=bn_images)
        self._start_fraction, self._every_steps = start_fraction, every_steps
        self._estimated = 0  # averaged weights when BatchNorm's statistics were estimated last
        self._is_due: Callable[[int], bool] = lambda step: False

    def check_layout(self, trainer: Trainer, layout: Layout) -> None:
        """Raises InputError where the mean would be of the last weights alone."""
        is_due = self._due(layout)
        if sum(map(is_due, range(1, layout.steps + 1))) < 2:
            raise InputError(
                f"start_fraction={self._start_fraction}: the mean would be of the last weights "
                f"alone ({layout.steps} optimizer steps, {layout.epochs} epochs); begin earlier, "
                "or set every_steps"
            )

    def _due(self, layout: Layout) -> Callable[[int], bool]:
        """(optimizer steps made) -> whether the weights are averaged then."""
        start = self._start_fraction * layout.steps
        every = self._every_steps or layout.steps_per_epoch
        return lambda step: step > start and (step % every == 0 or step == layout.steps)

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Lays out which steps are averaged."""
        super().setup(trainer, pl_module, stage)
        if stage == "fit":
            self._is_due = self._due(layout_of(trainer))

    def had_no_part(self, trainer: Trainer, layout: Layout) -> str | None:
        """The fit ended before the first average."""
        return "no weights were averaged" if self.averaged_none() else None

    def should_update(self, step_idx: int | None = None, epoch_idx: int | None = None) -> bool:
        """After the steps that are laid out; ``step_idx`` counts from 0."""
        return step_idx is not None and self._is_due(step_idx + 1)

    def refresh(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """The statistics are of the weights that were averaged last."""
        if self._estimated != self._count:
            self.estimate(trainer)
            self._estimated = self._count

    def state_dict(self) -> dict[str, Any]:
        """Also which averages the statistics are of."""
        return {**super().state_dict(), "estimated": self._estimated}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Takes up what `state_dict` gave."""
        super().load_state_dict(state_dict)
        self._estimated = state_dict["estimated"]


@torch.no_grad()
def estimate_statistics(
    network: nn.Module, batches: Iterable[Batch], *, frozen: Sequence[nn.Module] = ()
) -> None:
    """Sets BatchNorm's running statistics to the mean over batches, with the weights as they are.

    As torch's ``update_bn``, but everything else is in evaluation mode (no dropout, no random
    number), frozen layers keep what they have, and nothing is read from the device.

    Args:
        network: images (B, 3, H, W) -> logits.
        batches: of images and labels, on the network's device.
        frozen: layers of the network.
    """
    kept = set(frozen)
    norms = [
        module
        for module in network.modules()
        if isinstance(module, _BatchNorm) and module.running_mean is not None and module not in kept
    ]
    if not norms:
        return
    momenta = [norm.momentum for norm in norms]
    modes = [(module, module.training) for module in network.modules()]
    network.eval()
    for norm in norms:
        norm.reset_running_stats()
        norm.train()
    for index, (images, _) in enumerate(batches):
        for norm in norms:
            norm.momentum = 1 / (index + 1)  # with None torch reads a counter from the device
        network(images)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    for module, mode in modes:
        module.training = mode
