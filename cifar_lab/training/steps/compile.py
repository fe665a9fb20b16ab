"""The network as the device likes it best: memory format and compilation."""

from __future__ import annotations

import os
import shutil
from typing import Any

import torch
from torch import nn

from cifar_lab.errors import InputError
from cifar_lab.model.resnet import ONEDNN_BLOCK

_TRITON_NEEDS = ("CC", "cc", "gcc", "clang")


def prepare(network: nn.Module, *, device: str, channels_last: bool, mode: str) -> bool:
    """Sets the memory format and compiles, both in place: the checkpoint's keys stay the same.

    Args:
        network: images (B, 3, H, W) -> logits.
        device: cuda, mps or cpu.
        channels_last: for convolutions; MPS is left alone, whose kernels want contiguous images,
            and so is a network on a CPU that oneDNN would write out of bounds with.
        mode: ``none``, ``default`` (torch.compile) or ``max`` (its ``max-autotune-no-cudagraphs``).
            Compilation happens at the first step.

    Returns:
        Whether the memory format is channels_last; the images' must be the same.

    Raises:
        InputError: compiling needs a compiler of C (CUDA) or C++ (CPU), and there is none.
    """
    channels_last = channels_last and device != "mps"
    channels_last = channels_last and not (device == "cpu" and _overflows(network))
    if channels_last:
        network.to(memory_format=torch.channels_last)
    if mode == "none":
        return channels_last
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
        # inductor's own CUDA graphs keep gradients in memory that the validation's forward pass
        # takes over (torch/_inductor/cudagraph_trees.py), and `GradNorm` reads them after that
        options["mode"] = "max-autotune-no-cudagraphs"
    network.compile(**options)
    return channels_last


def _overflows(network: nn.Module) -> bool:
    # our ResNet knows what not to ask of oneDNN; networks from elsewhere may not
    return any(
        type(m) is nn.Conv2d  # a class derived from it may make something else of it
        and m.kernel_size == (1, 1)
        and max(m.stride) > 1
        and m.in_channels // m.groups < ONEDNN_BLOCK
        for m in network.modules()
    )
