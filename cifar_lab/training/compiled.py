"""The network as the device likes it best: memory format and compilation."""

from __future__ import annotations

import os
import shutil
from typing import Any

import torch
from torch import nn

from cifar_lab.errors import InputError

_TRITON_NEEDS = ("CC", "cc", "gcc", "clang")


def prepare(network: nn.Module, *, device: str, channels_last: bool, mode: str) -> None:
    """Sets the memory format and compiles, both in place: the checkpoint's keys stay the same.

    Args:
        network: images (B, 3, 32, 32) -> logits.
        device: cuda, mps or cpu.
        channels_last: for convolutions; MPS is left alone, whose kernels want contiguous images.
        mode: ``none``, ``default`` (torch.compile) or ``max`` (its ``max-autotune``, which uses
            CUDA graphs on a GPU). Compilation happens at the first step.

    Raises:
        InputError: compiling needs a compiler of C (CUDA) or C++ (CPU), and there is none.
    """
    if channels_last and device != "mps":
        network.to(memory_format=torch.channels_last)
    if mode == "none":
        return
    variable, *usual = ("CXX", "c++", "g++", "clang++") if device == "cpu" else _TRITON_NEEDS
    names = [os.environ.get(variable), *usual]
    if device != "mps" and not any(shutil.which(name) for name in names if name):
        raise InputError(
            f"compile={mode}: needs a compiler and finds none of {', '.join(usual)}; install "
            f"{usual[1]}, or set compile=none"
        )
    # two shapes occur, the short last batch's being the second: each gets kernels of its own
    options: dict[str, Any] = {"dynamic": False}
    if mode == "max":
        options["mode"] = "max-autotune"
    network.compile(**options)
