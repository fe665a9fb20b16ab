"""Residual networks for small images (He et al., arXiv:1512.03385), sized by a list of blocks.

The names differ between the original report and the literature, so the list is what counts:

=================  ==============  ===========  ==========================
num_blocks         weight layers   parameters   called
=================  ==============  ===========  ==========================
[1, 1, 1, 1]       10              4,903,242    ResNet-10 in the literature
[2, 2, 2, 2]       18              11,173,962   ResNet-18; "ResNet-10" in the original report
[2, 2, 2, 2, 2]    22              44,743,754   in the original report, whose code reads four
=================  ==============  ===========  ==========================

Weight layers count convolutions and the linear layer, without the shortcuts' 1x1 convolutions.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from cifar_lab.errors import InputError
from cifar_lab.model.options import apply_options
from cifar_lab.model.stochastic_depth import drop_branches

# oneDNN's gradient of strided 1x1 convolutions of fewer channels writes out of bounds with
# channels_last (uxlfoundation/oneDNN#6035, seen with 3.13 in torch 2.15): wrong numbers, or a
# corrupted heap or a hang at some later step.
ONEDNN_BLOCK = 16
# Of 32x32 images the map is 1x1 in the sixth stage and can't be halved again.
MAX_STAGES = 6


class BasicBlock(nn.Module):
    """Two 3x3 convolutions with BatchNorm around a shortcut (arXiv:1512.03385, figure 2).

    (B, in_channels, H, W) -> (B, out_channels, ceil(H / stride), ceil(W / stride)). The shortcut is
    the identity where the shape stays, else a 1x1 convolution with BatchNorm (their option B).
    """

    def __init__(
        self, in_channels: int, out_channels: int, *, stride: int, drop: nn.Module | None = None
    ) -> None:
        super().__init__()
        self.drop = drop or nn.Identity()
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.relu = nn.ReLU(inplace=True)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or in_channels != out_channels:
            self.shortcut = nn.Sequential(
                convolution_1x1(in_channels, out_channels, stride=stride),
                nn.BatchNorm2d(out_channels),
            )

    def forward(self, x: Tensor) -> Tensor:
        """The block's output for a map x (B, in_channels, H, W)."""
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.drop(self.bn2(self.conv2(out)))
        result: Tensor = self.relu(out + self.shortcut(x))
        return result


def convolution_1x1(in_channels: int, out_channels: int, *, stride: int) -> nn.Conv2d:
    """A shortcut's convolution, without bias, in the form that is right on every device.

    Args:
        in_channels: of the block's input.
        out_channels: of its output.
        stride: 1 or 2.
    """
    narrow = stride != 1 and in_channels < ONEDNN_BLOCK
    kind = _Subsampled if narrow else nn.Conv2d
    return kind(in_channels, out_channels, 1, stride=stride, bias=False)


class _Subsampled(nn.Conv2d):
    """A strided 1x1 convolution without bias that leaves pixels out first: the same numbers."""

    def forward(self, x: Tensor) -> Tensor:
        rows, columns = self.stride
        return nn.functional.conv2d(x[:, :, ::rows, ::columns], self.weight)


class GlobalAveragePool(nn.Module):
    """(B, C, H, W) -> (B, C): the mean over the map.

    As a sum whose gradient is one number per map: that of `nn.AdaptiveAvgPool2d` is a contiguous
    map, and the ReLU before it then reads two memory formats at once (3 to 7% of a narrow network's
    step on one CPU thread).
    """

    def forward(self, x: Tensor) -> Tensor:
        """Of each image and channel."""
        return x.sum((2, 3)) * (1 / (x.shape[2] * x.shape[3]))


class ResNet(nn.Module):
    """A 3x3 stem and 1 to 6 stages of `BasicBlock`, global average pooling, one linear layer.

    Images (B, 3, H, W) -> logits (B, num_classes). Stage i has ``num_blocks[i]`` blocks of
    ``width * 2**i`` channels; from the second stage on its first block has stride 2.
    ``stochastic_depth`` is the last block's, see `drop_branches`; ``bn_momentum``, ``train_scale``
    and ``identity``: `apply_options`.

    Raises:
        InputError: num_blocks is empty, longer than 6 or holds a number below 1; width below 1;
            stochastic_depth or bn_momentum outside [0, 1).
    """

    def __init__(
        self,
        *,
        num_blocks: Sequence[int],
        width: int,
        stochastic_depth: float = 0.0,
        bn_momentum: float = 0.9,
        train_scale: bool = True,
        identity: bool = False,
        num_classes: int = 10,
    ) -> None:
        super().__init__()
        if not 1 <= len(num_blocks) <= MAX_STAGES:
            raise InputError(
                f"num_blocks={list(num_blocks)}: must have 1 to {MAX_STAGES} stages, "
                f"e.g. [2,2,2,2]; this has {len(num_blocks)}"
            )
        if min(num_blocks) < 1:
            raise InputError(
                f"num_blocks={list(num_blocks)}: every stage needs at least 1 block, e.g. [1,1,1,1]"
            )
        if width < 1:
            raise InputError(
                f"width={width}: must be at least 1 (the original report's ResNet has 64)"
            )
        channels = width
        self.stem = nn.Sequential(
            nn.Conv2d(3, channels, 3, padding=1, bias=False),
            nn.BatchNorm2d(channels),
            nn.ReLU(inplace=True),
        )
        stages = []
        drops = iter(drop_branches(sum(num_blocks), stochastic_depth))
        for stage, blocks in enumerate(num_blocks):
            out_channels = width * 2**stage
            stride = 1 if stage == 0 else 2
            first = BasicBlock(channels, out_channels, stride=stride, drop=next(drops))
            rest = [
                BasicBlock(out_channels, out_channels, stride=1, drop=next(drops))
                for _ in range(blocks - 1)
            ]
            stages.append(nn.Sequential(first, *rest))
            channels = out_channels
        self.stages = nn.Sequential(*stages)
        self.pool = GlobalAveragePool()
        self.fc = nn.Linear(channels, num_classes)
        apply_options(
            self,
            self.stages,
            bn_momentum=bn_momentum,
            train_scale=train_scale,
            identity=identity,
        )

    def forward(self, images: Tensor) -> Tensor:
        """Logits (B, num_classes) of images (B, 3, H, W)."""
        logits: Tensor = self.fc(self.pool(self.stages(self.stem(images))))
        return logits
