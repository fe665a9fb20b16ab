"""Test-time augmentation: the logits of several views of an image, averaged.

Source: the evaluation of github.com/KellerJordan/cifar10-airbench (arXiv:2404.00498), whose six
views and weights these are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

# of each: how many views it looks at
VIEWS = {"none": 1, "flip": 2, "flip+shift": 6}


def views(images: Tensor, tta: str) -> Iterator[tuple[float, Tensor]]:
    """The views of a batch with their weights, which are 1 in all; the first is the batch itself.

    ``flip``: as it is and mirrored. ``flip+shift``: both, and with half of the weight both shifted
    by a pixel down and to the right, and up and to the left, over a reflection of the edge. (By one
    of 32 pixels: in larger images by as many as that share.)

    Args:
        images: (B, 3, H, W).
        tta: one of `VIEWS`.
    """
    if tta == "none":
        yield 1.0, images
        return
    shifted = []
    if tta == "flip+shift":
        height, width = images.shape[2:]
        by = max(1, round(width / 32))
        padded = F.pad(images, (by, by, by, by), mode="reflect")
        shifted = [padded[:, :, :height, :width], padded[:, :, 2 * by :, 2 * by :]]
    weight = 0.25 if shifted else 0.5
    for view in (images, images.flip(-1)):
        yield weight, view
    for moved in shifted:
        for view in (moved, moved.flip(-1)):
            yield weight / 2, view


def averaged_logits(
    network: Callable[[Tensor], Tensor], images: Tensor, tta: str
) -> tuple[Tensor, Tensor]:
    """Logits (B, C) of the images as they are, and the weighted mean over all views.

    The mean is taken in float32 or wider: in bfloat16 it would have three digits, and ties.

    Args:
        network: images (B, 3, H, W) -> logits (B, C), in evaluation.
        images: (B, 3, H, W), normalized.
        tta: one of `VIEWS`; ``none``: both results are the same tensor.
    """
    if tta == "none":
        logits = network(images)
        return logits, logits
    plain = mean = None
    for weight, view in views(images, tta):
        # a copy: in a CUDA graph the next view's logits come to lie where these do
        logits = network(view.contiguous(memory_format=_format_of(images))).clone()
        plain = logits if plain is None else plain
        wide = logits.to(torch.promote_types(logits.dtype, torch.float32))
        mean = weight * wide if mean is None else mean + weight * wide
    assert plain is not None
    assert mean is not None
    return plain, mean


def _format_of(images: Tensor) -> torch.memory_format:
    contiguous = images.is_contiguous() or not images.is_contiguous(
        memory_format=torch.channels_last
    )
    return torch.contiguous_format if contiguous else torch.channels_last
