"""torch's fused SGD on a CPU, which in half precision leaves most elements where they are.

So in torch 2.11 to 2.13 (github.com/pytorch/pytorch/issues/191763): whole vectors are skipped, and
their momentum is memory that nobody wrote. It is right in 2.15; one step tells.
"""

from __future__ import annotations

from functools import cache

import torch
from torch import nn
from torch.optim import SGD, Optimizer

from cifar_lab.errors import InputError


@cache
def moves_all(dtype: torch.dtype) -> bool:
    """Whether the CPU's fused SGD moves every element of such a parameter."""
    parameter = nn.Parameter(torch.zeros(100, dtype=dtype))  # whole vectors and a rest
    parameter.grad = torch.ones_like(parameter)
    SGD([parameter], lr=1.0, fused=True).step()
    return bool((parameter == -1).all())


def check(optimizer: Optimizer, *, device: str, precision: str) -> None:
    """Raises InputError where a fused SGD would train nothing.

    Args:
        optimizer: of the network before the trainer converts it.
        device: kind of what will train.
        precision: the trainer's.
    """
    if device != "cpu" or not isinstance(optimizer, SGD):
        return
    converted = {"bf16-true": torch.bfloat16, "16-true": torch.float16}.get(precision)
    for group in optimizer.param_groups:
        dtypes = {converted or parameter.dtype for parameter in group["params"]}
        if group["fused"] and not all(moves_all(dtype) for dtype in dtypes if dtype.itemsize == 2):
            raise InputError(
                f"optimizer.fused=true: with trainer.precision={precision} on a CPU torch "
                f"{torch.__version__} leaves most weights where they are; "
                "set optimizer.fused=false, or use torch 2.15"
            )
