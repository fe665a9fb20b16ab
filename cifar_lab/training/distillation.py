"""Distillation: a network learns the softened answers of finished ones beside the labels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cifar_lab.errors import InputError


class Distillation:
    """``(1 - weight) * loss + weight * T^2 * KL(teacher || student)``, both softened by T.

    The teacher is the mean of the softened probabilities of one or several networks, which see the
    very images that the student sees, augmented and mixed, in evaluation and without a gradient.
    Source: Hinton, Vinyals and Dean, arXiv:1503.02531; the same images for both: arXiv:2106.05237.

    No part of a module: no checkpoint, optimizer or average of weights has the teachers in it.

    Args:
        teachers: normalized images (B, 3, H, W) -> logits (B, C); on any device.
        temperature: T, above 0; what it is well above 1 shows is how alike the other classes are.
        weight: of the teacher's part, in (0, 1].
        image_size: side of the images that the teachers know: smaller ones, of progressive
            resizing, are enlarged to it for them. None: they are as they come.

    Raises:
        InputError: a number out of range.
    """

    def __init__(
        self,
        teachers: Sequence[nn.Module],
        *,
        temperature: float,
        weight: float,
        image_size: int | None = None,
    ) -> None:
        if not temperature > 0:
            raise InputError(f"distill.temperature={temperature}: must be above 0, e.g. 4")
        if not 0 < weight <= 1:
            raise InputError(
                f"distill.weight={weight}: must lie in (0, 1]; with 0 the teacher has no part, and "
                "distill.from=null says so"
            )
        self.teachers = nn.ModuleList(teachers).eval().requires_grad_(False)
        self._temperature = temperature
        self._weight = weight
        self._image_size = image_size

    def __deepcopy__(self, memo: dict[int, Any]) -> Distillation:
        # a callback that averages weights copies the module that learns; this never changes
        return self

    def to(self, device: torch.device) -> None:
        """Moves the teachers."""
        self.teachers.to(device)

    def __call__(self, loss: Tensor, logits: Tensor, images: Tensor) -> Tensor:
        """The loss to minimize.

        Args:
            loss: scalar, of the labels.
            logits: (B, C) of the student.
            images: (B, 3, H, W) that they are of.
        """
        wide = torch.promote_types(logits.dtype, torch.float32)
        student = F.log_softmax(logits.to(wide) / self._temperature, dim=1)
        divergence = F.kl_div(student, self.targets(images).to(wide), reduction="batchmean")
        return (1 - self._weight) * loss + self._weight * self._temperature**2 * divergence

    @torch.no_grad()
    def targets(self, images: Tensor) -> Tensor:
        """(B, C) float32 or wider: what the teachers think, softened."""
        if self._image_size not in (None, images.shape[-1]):
            images = F.interpolate(images, size=self._image_size, mode="bilinear")
        mean: Tensor | None = None
        for teacher in self.teachers:
            dtype = next((p.dtype for p in teacher.parameters()), images.dtype)
            logits = teacher(images.to(dtype))
            wide = torch.promote_types(logits.dtype, torch.float32)
            one = (logits.to(wide) / self._temperature).softmax(1) / len(self.teachers)
            mean = one if mean is None else mean + one
        assert mean is not None
        return mean
