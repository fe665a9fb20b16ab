"""Stochastic depth: whole residual branches are left out at random while training."""

from __future__ import annotations

from torch import nn

from cifar_lab.errors import InputError


def drop_branches(count: int, last: float) -> list[nn.Module]:
    """What each of a network's residual branches goes through, from the first to the last.

    (B, C, H, W) -> the same. In training each image loses branch i with a probability that rises
    along a line to ``last`` for the last one, and what stays is scaled up; in evaluation nothing
    happens. Source: Huang et al., arXiv:1603.09382; torchvision's layer.

    Args:
        count: branches.
        last: in [0, 1); 0: all are `nn.Identity`, and nothing is drawn.

    Raises:
        InputError: last is out of range.
    """
    if not 0 <= last < 1:
        raise InputError(f"stochastic_depth={last}: must lie in [0, 1)")
    if not last:
        return [nn.Identity() for _ in range(count)]
    from torchvision.ops import StochasticDepth

    return [StochasticDepth(last * (i + 1) / count, mode="row") for i in range(count)]
