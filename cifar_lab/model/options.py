"""What the residual networks can borrow from the speedruns' network (arXiv:2404.00498)."""

from __future__ import annotations

from torch import nn

from cifar_lab.errors import InputError


def apply_options(
    network: nn.Module,
    blocks: nn.Module,
    *,
    bn_momentum: float,
    train_scale: bool,
    identity: bool,
) -> None:
    """Changes a network that has just been made, in place; draws no random number.

    Args:
        network: whose BatchNorm layers are meant.
        blocks: the part of it whose 3x3 convolutions are.
        bn_momentum: of BatchNorm's running statistics: the share of the old value that a step
            keeps, in [0, 1); torch's own name for 1 - x.
        train_scale: False: BatchNorm's weights stay 1.
        identity: True: filters begin as the identity on the channels that they have, and the rest
            stays as it is (`torch.nn.init.dirac_`).

    Raises:
        InputError: bn_momentum is out of range.
    """
    if not 0 <= bn_momentum < 1:
        raise InputError(f"bn_momentum={bn_momentum}: must lie in [0, 1)")
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            # 1 - 0.9 is not quite torch's 0.1
            module.momentum = round(1 - bn_momentum, 12)
            module.weight.requires_grad_(train_scale)
    for module in blocks.modules():
        if identity and isinstance(module, nn.Conv2d) and module.kernel_size == (3, 3):
            nn.init.dirac_(module.weight.data[: module.in_channels])
