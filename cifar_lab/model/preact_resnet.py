"""Residual networks whose blocks begin with normalization, and the wide ones of three stages.

===============  ===========  ==========  ==========================================
network          size         parameters  as in
===============  ===========  ==========  ==========================================
PreActResNet     [2,2,2,2]    11,172,170  18 weight layers (arXiv:1603.05027)
PreActResNet     [3,4,6,3]    21,280,330  34 weight layers
WideResNet       16, 4         2,748,890  WRN-16-4 (arXiv:1605.07146)
WideResNet       28, 10       36,479,194  WRN-28-10, "36.5M" there
WideResNet       40, 2         2,243,546  WRN-40-2, "2.2M" there
===============  ===========  ==========  ==========================================
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from cifar_lab.errors import InputError
from cifar_lab.model.options import apply_options
from cifar_lab.model.resnet import MAX_STAGES, GlobalAveragePool, convolution_1x1
from cifar_lab.model.stochastic_depth import drop_branches


class PreActBlock(nn.Module):
    """Twice BatchNorm, ReLU, 3x3 convolution; the sum with the shortcut stays as it is.

    (B, in_channels, H, W) -> (B, out_channels, ceil(H / stride), ceil(W / stride)). Where the shape
    changes the shortcut is a 1x1 convolution of the normalized input (arXiv:1603.05027, figure 1b).
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        stride: int,
        dropout: float = 0.0,
        drop: nn.Module,
    ) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(in_channels)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride=stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.dropout = nn.Dropout(dropout) if dropout else nn.Identity()
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)
        self.relu = nn.ReLU(inplace=True)
        self.drop = drop
        self.shortcut: nn.Module | None = None
        if stride != 1 or in_channels != out_channels:
            self.shortcut = convolution_1x1(in_channels, out_channels, stride=stride)

    def forward(self, x: Tensor) -> Tensor:
        """The block's output for a map x (B, in_channels, H, W)."""
        active = self.relu(self.bn1(x))
        branch = self.conv2(self.dropout(self.relu(self.bn2(self.conv1(active)))))
        result: Tensor = self.drop(branch) + (x if self.shortcut is None else self.shortcut(active))
        return result


class _Stages(nn.Module):
    """A 3x3 stem, stages of `PreActBlock`, BatchNorm and ReLU, mean over the map, linear layer."""

    def __init__(
        self,
        *,
        stem: int,
        stages: Sequence[tuple[int, int]],
        dropout: float,
        stochastic_depth: float,
        bn_momentum: float,
        train_scale: bool,
        identity: bool,
        num_classes: int,
    ) -> None:
        # stages: (blocks, channels) of each; from the second on the map is halved
        super().__init__()
        self.stem = nn.Conv2d(3, stem, 3, padding=1, bias=False)
        drops = iter(drop_branches(sum(blocks for blocks, _ in stages), stochastic_depth))
        channels, built = stem, []
        for index, (blocks, out_channels) in enumerate(stages):
            parts = []
            for block in range(blocks):
                stride = 2 if index and not block else 1
                parts.append(
                    PreActBlock(
                        channels, out_channels, stride=stride, dropout=dropout, drop=next(drops)
                    )
                )
                channels = out_channels
            built.append(nn.Sequential(*parts))
        self.stages = nn.Sequential(*built)
        self.norm = nn.BatchNorm2d(channels)
        self.relu = nn.ReLU(inplace=True)
        self.pool = GlobalAveragePool()
        self.fc = nn.Linear(channels, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        apply_options(
            self,
            self.stages,
            bn_momentum=bn_momentum,
            train_scale=train_scale,
            identity=identity,
        )

    def forward(self, images: Tensor) -> Tensor:
        """Logits (B, num_classes) of images (B, 3, H, W)."""
        logits: Tensor = self.fc(self.pool(self.relu(self.norm(self.stages(self.stem(images))))))
        return logits


class PreActResNet(_Stages):
    """`ResNet` with normalization and ReLU before each convolution (He et al., arXiv:1603.05027).

    Images (B, 3, H, W) -> logits (B, num_classes). Stage i has ``num_blocks[i]`` blocks of
    ``width * 2**i`` channels; from the second stage on its first block has stride 2.
    ``bn_momentum``, ``train_scale`` and ``identity``: `apply_options`.

    Raises:
        InputError: num_blocks is empty, longer than 6 or holds a number below 1; width below 1;
            stochastic_depth or bn_momentum outside [0, 1).
    """

    def __init__(
        self,
        *,
        num_blocks: Sequence[int],
        width: int,
        stochastic_depth: float,
        bn_momentum: float = 0.9,
        train_scale: bool = True,
        identity: bool = False,
        num_classes: int = 10,
    ) -> None:
        if not 1 <= len(num_blocks) <= MAX_STAGES or min(num_blocks) < 1:
            raise InputError(
                f"num_blocks={list(num_blocks)}: must be 1 to {MAX_STAGES} numbers of at least 1, "
                "e.g. [2,2,2,2]"
            )
        if width < 1:
            raise InputError(f"width={width}: must be at least 1")
        super().__init__(
            stem=width,
            stages=[(blocks, width * 2**i) for i, blocks in enumerate(num_blocks)],
            dropout=0.0,
            stochastic_depth=stochastic_depth,
            bn_momentum=bn_momentum,
            train_scale=train_scale,
            identity=identity,
            num_classes=num_classes,
        )


class WideResNet(_Stages):
    """Three stages of 16, 32 and 64 times ``width`` channels (Zagoruyko et al., arXiv:1605.07146).

    Images (B, 3, H, W) -> logits (B, num_classes). WRN-28-10 is ``depth=28 width=10``.

    Args:
        depth: weight layers without the shortcuts': 6 n + 4, of n blocks a stage.
        width: the factor on the channels.
        dropout: between the two convolutions of a block, in [0, 1); 0.3 there where it is used.
        stochastic_depth: `drop_branches`.
        bn_momentum: `apply_options`, as the next two.
        train_scale: False: BatchNorm's weights stay 1.
        identity: True: filters begin as the identity.
        num_classes: of the dataset.

    Raises:
        InputError: a number out of range.
    """

    def __init__(
        self,
        *,
        depth: int,
        width: int,
        dropout: float,
        stochastic_depth: float,
        bn_momentum: float = 0.9,
        train_scale: bool = True,
        identity: bool = False,
        num_classes: int = 10,
    ) -> None:
        if depth < 10 or depth % 6 != 4:
            raise InputError(f"depth={depth}: must be 6 n + 4, e.g. 10, 16, 22, 28 or 40")
        if width < 1:
            raise InputError(f"width={width}: must be at least 1")
        if not 0 <= dropout < 1:
            raise InputError(f"dropout={dropout}: must lie in [0, 1)")
        blocks = (depth - 4) // 6
        super().__init__(
            stem=16,
            stages=[(blocks, 16 * width), (blocks, 32 * width), (blocks, 64 * width)],
            dropout=dropout,
            stochastic_depth=stochastic_depth,
            bn_momentum=bn_momentum,
            train_scale=train_scale,
            identity=identity,
            num_classes=num_classes,
        )
