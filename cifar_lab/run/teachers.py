"""The finished runs that a run learns from: read, held against its images, and made ready."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from cifar_lab.data.datamodule import DataModule
from cifar_lab.errors import InputError
from cifar_lab.records.record import Channels
from cifar_lab.run.load import Run, load_run
from cifar_lab.training.distillation import Distillation
from cifar_lab.training.steps.compile import prepare


class _Renormalized(nn.Module):
    """A network behind images that were normalized with another mean and deviation than its own."""

    scale: Tensor
    shift: Tensor

    def __init__(self, network: nn.Module, run: Run, mean: Channels, std: Channels) -> None:
        super().__init__()
        self.network = network
        dtype = next((p.dtype for p in network.parameters()), torch.float32)

        def channels(values: list[float]) -> Tensor:
            return torch.tensor(values, dtype=torch.float64).view(-1, 1, 1).to(dtype)

        both = list(zip(mean, std, run.mean, run.std, strict=True))
        self.register_buffer("scale", channels([s / its for _, s, _, its in both]))
        self.register_buffer("shift", channels([(m - n) / its for m, _, n, its in both]))

    def forward(self, images: Tensor) -> Tensor:
        """Logits (B, C)."""
        logits: Tensor = self.network(images * self.scale + self.shift)
        return logits


def distillation_from(
    node: Mapping[str, Any], data: DataModule, *, device: str, channels_last: bool
) -> Distillation:
    """What the resolved ``distill`` says, with its teachers loaded.

    Nothing is trusted that lies in their folders but code of the modules in ``distill.trust``
    (SECURITY.md). Their weights are those that they tested; a single view of each image is asked
    for, whatever they were tested with.

    Args:
        node: ``distill``, with the files and SHA-256 of its ``from``.
        data: opened.
        device: cuda, mps or cpu: for the memory format.
        channels_last: wanted.

    Raises:
        InputError: a run can't be loaded, has changed, or is of other classes or another size of
            images; a number out of range.
    """
    teachers = []
    for path, sha256 in zip(node["from"]["paths"], node["from"]["sha256"], strict=True):
        folder, file = Path(path).parents[1], Path(path)
        try:
            run = load_run(folder, file, trust=node.get("trust") or ())
        except InputError as error:
            text = str(error).replace("--trust ", "distill.trust=")
            raise InputError(f"distill.from={folder}: {text}") from error
        if run.digest != sha256:
            raise InputError(
                f"distill.from={folder}: has changed since this run was asked for "
                f"({run.digest[:12]} now, {sha256[:12]} then); start it again"
            )
        _check(run, data, folder)
        network = run.model.network
        prepare(network, device=device, channels_last=channels_last, mode="none")
        ours = (data.channel_mean, data.channel_std)
        same = (tuple(run.mean), tuple(run.std)) == (tuple(ours[0]), tuple(ours[1]))
        teachers.append(network if same else _Renormalized(network, run, *ours))
    return Distillation(
        teachers,
        temperature=node["temperature"],
        weight=node["weight"],
        image_size=data.dataset.image_size[-1],
    )


def _check(run: Run, data: DataModule, folder: Path) -> None:
    dataset = data.dataset
    if run.classes != tuple(dataset.classes):
        raise InputError(
            f"distill.from={folder}: knows {_named(run.classes)}, and the data has "
            f"{_named(dataset.classes)}; a teacher must know the same classes in the same order"
        )
    if tuple(run.image_size) != tuple(dataset.image_size[1:]):
        (height, width), (_, rows, columns) = run.image_size, dataset.image_size
        raise InputError(
            f"distill.from={folder}: knows images of {height}x{width}, and the data has "
            f"{rows}x{columns}; give a run on images of that size"
        )


def _named(classes: tuple[str, ...]) -> str:
    shown = ", ".join(classes[:3])
    return f"{len(classes)} classes ({shown}{', ...' if len(classes) > 3 else ''})"
