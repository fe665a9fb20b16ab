"""The network of the CIFAR-10 speedruns: whitened patches, three groups of convolutions.

Source: K. Jordan, "94% on CIFAR-10 in 3.29 seconds on a single GPU" (arXiv:2404.00498) and the
scripts that follow it (github.com/KellerJordan/cifar10-airbench); whitening and the groups come
from D. Page's "How to train your ResNet" and T. Fern's hlb-CIFAR10. Written anew from there.

================  =====  ==========  =======================  ==================
widths            depth  parameters  FLOPs of a 32x32 image   there
================  =====  ==========  =======================  ==================
[64, 256, 256]    2      1,972,792   236,294,720              airbench94_muon
[128, 384, 512]   3      9,918,776   903,934,528              airbench96_faster
================  =====  ==========  =======================  ==================
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cifar_lab.errors import InputError

# Of an image's side: one less by the first convolution, then halved thrice.
SMALLEST_IMAGE = 9
_PATCH = 2


def whitening_filters(images: Tensor, *, size: int, eps: float) -> Tensor:
    """Filters that make a convolution's outputs uncorrelated, with a mean square of 1.

    The eigenvectors of the patches' second moments, each over the root of its eigenvalue, and the
    same with the other sign: a ReLU or GELU that follows loses nothing.

    Args:
        images: (N, C, H, W), normalized.
        size: of the square patches.
        eps: added to the eigenvalues, which are tiny where neighbouring pixels differ.

    Returns:
        (2 * C * size**2, C, size, size), in the images' dtype.
    """
    # in float64: of millions of patches the smallest eigenvalues are what rounding spoils
    patches = F.unfold(images.double(), size).transpose(1, 2).flatten(0, 1)
    moments = patches.T @ patches / len(patches)
    values, vectors = torch.linalg.eigh(moments)
    filters = (vectors / (values + eps).sqrt()).T.reshape(-1, images.shape[1], size, size)
    return torch.cat([filters, -filters]).to(images.dtype)


class SpeedNet(nn.Module):
    """Whitening 2x2 convolution, GELU, three `_Group`s, max-pooling, a linear layer without bias.

    Images (B, 3, H, W) of 9 x 9 or more -> logits (B, num_classes). Filters of 3x3 begin as the
    identity on the channels that they have (the rest as torch's); BatchNorm scales nothing
    (its weights are 1 and frozen) and its running statistics follow with ``1 - bn_momentum``.
    The whitening filters are frozen; until `initialize` they are torch's random ones. Each of these
    can be left out, to see what it is worth.

    Args:
        widths: channels of the three groups.
        depth: convolutions of a group, 2 or 3; with 3 a shortcut goes around the last two.
        bn_momentum: of the running statistics: the share of the old value that a step keeps, in
            [0, 1); torch's own name for 1 - x.
        whitening_eps: added to the eigenvalues of the patches' second moments.
        logit_scale: factor on the logits; None: 1 / widths[2].
        whitening: False: the first convolution begins and learns as any other.
        identity: False: the 3x3 filters begin as torch's.
        train_scale: BatchNorm's weights learn too.
        num_classes: of the dataset.
    """

    def __init__(
        self,
        *,
        widths: Sequence[int],
        depth: int,
        bn_momentum: float,
        whitening_eps: float,
        logit_scale: float | None,
        whitening: bool,
        identity: bool,
        train_scale: bool,
        num_classes: int = 10,
        image_size: int = 32,
    ) -> None:
        super().__init__()
        if len(widths) != 3 or min(widths) < 1:
            raise InputError(f"widths={list(widths)}: must be three numbers, each at least 1")
        if depth not in (2, 3):
            raise InputError(f"depth={depth}: must be 2 or 3")
        if not 0 <= bn_momentum < 1:
            raise InputError(f"bn_momentum={bn_momentum}: must lie in [0, 1)")
        if whitening_eps <= 0:
            raise InputError(f"whitening_eps={whitening_eps}: must be above 0")
        if image_size < SMALLEST_IMAGE:
            raise InputError(f"image_size={image_size}: must be at least {SMALLEST_IMAGE}")
        self._eps = whitening_eps if whitening else None
        self._scale = 1 / widths[2] if logit_scale is None else logit_scale
        channels = 2 * 3 * _PATCH**2
        self.whiten = nn.Conv2d(3, channels, _PATCH)
        self.whiten.weight.requires_grad_(not whitening)
        self.activation = nn.GELU()
        groups = []
        for width in widths:
            groups.append(_Group(channels, width, depth=depth))
            channels = width
        self.groups = nn.Sequential(*groups)
        for module in self.groups.modules():
            if isinstance(module, nn.BatchNorm2d):
                # an epsilon for numbers that are exactly alike; the variance is never near it
                module.eps, module.momentum = 1e-12, 1 - bn_momentum
                module.weight.requires_grad_(train_scale)
            elif isinstance(module, nn.Conv2d) and identity:
                nn.init.dirac_(module.weight.data[: module.in_channels])
        self.head = nn.Linear(channels, num_classes, bias=False)
        with torch.no_grad():
            self.head.weight /= self.head.weight.std()

    @torch.no_grad()
    def initialize(self, images: Tensor) -> None:
        """Sets the whitening filters; of the same images they are the same.

        Args:
            images: (N, 3, H, W) float32, normalized, of the training split.
        """
        if self._eps is not None:
            self.whiten.weight.copy_(whitening_filters(images, size=_PATCH, eps=self._eps))

    def forward(self, images: Tensor) -> Tensor:
        """Logits (B, num_classes) of images (B, 3, H, W)."""
        x = self.groups(self.activation(self.whiten(images)))
        x = F.max_pool2d(x, x.shape[2:]).flatten(1)
        logits: Tensor = self.head(x) * self._scale
        return logits


class _Group(nn.Module):
    """3x3 convolution, 2x2 max-pooling, then one or two more convolutions of the halved map.

    (B, in_channels, H, W) -> (B, out_channels, H // 2, W // 2). BatchNorm and GELU follow each.
    """

    def __init__(self, in_channels: int, out_channels: int, *, depth: int) -> None:
        super().__init__()
        self.pool = nn.MaxPool2d(2)
        self.activation = nn.GELU()
        self.conv1 = _convolution(in_channels, out_channels)
        self.norm1 = nn.BatchNorm2d(out_channels)
        self.conv2 = _convolution(out_channels, out_channels)
        self.norm2 = nn.BatchNorm2d(out_channels)
        self.conv3: nn.Module | None = None
        self.norm3: nn.Module | None = None
        if depth == 3:
            self.conv3 = _convolution(out_channels, out_channels)
            self.norm3 = nn.BatchNorm2d(out_channels)

    def forward(self, x: Tensor) -> Tensor:
        """The group's output for a map x (B, in_channels, H, W)."""
        x = self.activation(self.norm1(self.pool(self.conv1(x))))
        shortcut = x
        x = self.activation(self.norm2(self.conv2(x)))
        if self.conv3 is not None and self.norm3 is not None:
            x = self.activation(self.norm3(self.conv3(x)) + shortcut)
        return x


def _convolution(in_channels: int, out_channels: int) -> nn.Conv2d:
    return nn.Conv2d(in_channels, out_channels, 3, padding=1, bias=False)
