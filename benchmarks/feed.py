"""How much faster the feed is than per-sample PIL, alone and in training.

    python -m benchmarks.feed [--quick] [--batch 100] [--network cnn] [--json FILE]

Claim (goal of the project on 2 CPU cores, batch 100, flip + crop + normalize): the feed alone at
least 20 times per-sample PIL + DataLoader; and training with it costs what training on one batch
that never changes does. Variants take turns, several times over; figures are medians over the
turns, with least and greatest. Whole programs are compared by ``python -m benchmarks``.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from cifar_lab.data.augment import Normalization, Pipeline, RandomCrop, RandomFlip
from cifar_lab.data.dataset import CIFAR10_MEAN, CIFAR10_STD, Split
from cifar_lab.data.feed.device_loader import BatchLoader, as_tensor, place
from cifar_lab.data.feed.epoch import Batch, Share
from cifar_lab.data.synthetic import make_synthetic
from cifar_lab.training.steps.allocator import keep_freed_memory

_WARM_UP = 5  # batches before each turn, not timed; as many as two workers have ready
Consume = Callable[[Batch], object]


class _PilImages(Dataset[tuple[Tensor, int]]):
    """As torchvision's CIFAR10 class does it: one PIL image per sample, then its transforms."""

    def __init__(self, split: Split) -> None:
        from torchvision import transforms

        self._pixels = split.images.transpose(0, 2, 3, 1).copy()
        self._labels = split.labels
        self._transform = transforms.Compose(
            [
                transforms.RandomCrop(32, padding=4),
                transforms.RandomHorizontalFlip(),
                transforms.ToTensor(),
                transforms.Normalize(CIFAR10_MEAN, CIFAR10_STD),
            ]
        )

    def __len__(self) -> int:
        return len(self._labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        from PIL import Image

        image = self._transform(Image.fromarray(self._pixels[index]))
        return image, int(self._labels[index])


def our_feed(
    split: Split, batch_size: int, device: torch.device, *, channels_last: bool = False
) -> Iterator[Batch]:
    """Endless augmented batches from `BatchLoader`."""
    count = len(split)
    loader = BatchLoader(
        images=place(as_tensor(split.images), device),
        labels=as_tensor(split.labels).long(),
        indices=torch.arange(count),
        share=Share(count=count, batch_size=batch_size, drop_last=True, rank=0, world_size=1),
        pipeline=Pipeline(
            transforms={"flip": RandomFlip(p=0.5), "crop": RandomCrop(padding=4, mode="zero")}
        ),
        normalization=Normalization(mean=CIFAR10_MEAN, std=CIFAR10_STD, device=device),
        seed=0,
        shuffle=True,
        device=device,
        channels_last=channels_last,
    )
    return _endless(loader)


def pil_feed(
    split: Split, batch_size: int, device: torch.device, *, workers: int
) -> Iterator[Batch]:
    """Endless augmented batches from per-sample PIL transforms and torch's DataLoader."""
    loader = DataLoader(
        _PilImages(split),
        batch_size=batch_size,
        shuffle=True,
        drop_last=True,
        num_workers=workers,
        persistent_workers=workers > 0,
        pin_memory=device.type == "cuda",
    )
    return _moved(_endless(loader), device)


def _endless(loader: Iterable[Batch]) -> Iterator[Batch]:
    while True:
        yield from loader


def _moved(batches: Iterator[Batch], device: torch.device) -> Iterator[Batch]:
    for images, labels in batches:
        yield images.to(device, non_blocking=True), labels.to(device, non_blocking=True)


def training_step(network: nn.Module) -> Consume:
    """A bare step: forward, cross-entropy, backward, SGD."""
    optimizer = torch.optim.SGD(network.parameters(), lr=0.01, momentum=0.9)

    def step(batch: Batch) -> None:
        images, labels = batch
        optimizer.zero_grad(set_to_none=True)
        F.cross_entropy(network(images), labels).backward()
        optimizer.step()

    return step


def images_per_s(
    variants: dict[str, tuple[Iterator[Batch], Consume]],
    *,
    turns: int,
    turn_s: float,
    device: torch.device,
) -> dict[str, list[float]]:
    """One figure per variant and turn; a turn lasts about `turn_s`."""
    rates: dict[str, list[float]] = {name: [] for name in variants}
    for _ in range(turns):
        for name, (batches, consume) in variants.items():
            for _ in range(_WARM_UP):
                consume(next(batches))
            _synchronize(device)
            images, start = 0, time.perf_counter()
            while time.perf_counter() - start < turn_s:
                batch = next(batches)
                consume(batch)
                images += len(batch[1])
            _synchronize(device)
            rates[name].append(images / (time.perf_counter() - start))
    return rates


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _network(name: str) -> nn.Module:
    if name == "cnn":
        from cifar_lab.model.cnn import CNN

        return CNN(width=32, dropout=0.5)
    from cifar_lab.model.resnet import ResNet

    return ResNet(num_blocks=[2, 2, 2, 2], width=64)


def table(title: str, rates: dict[str, list[float]]) -> str:
    """Median, range and ours/variant for each variant."""
    ours = statistics.median(next(iter(rates.values())))
    lines = [title, f"{'':24}{'images/s':>12}{'least':>12}{'greatest':>12}{'ours / it':>12}"]
    for name, values in rates.items():
        median = statistics.median(values)
        lines.append(
            f"{name:24}{median:12,.0f}{min(values):12,.0f}{max(values):12,.0f}{ours / median:12.2f}"
        )
    return "\n".join(lines)


def main() -> None:
    """Measures, prints the tables, and writes the figures where --json says."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.feed", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="3 short turns: under a minute")
    parser.add_argument("--batch", type=int, default=100)
    parser.add_argument("--network", choices=["cnn", "resnet10"], default="cnn")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    turns, turn_s = (3, 1.0) if arguments.quick else (7, 4.0)

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    batch_size = arguments.batch
    split = make_synthetic(train_size=10_000, test_size=10, data_seed=0).train
    ours = our_feed(split, batch_size, device)
    pil = {f"PIL, {n} workers": pil_feed(split, batch_size, device, workers=n) for n in (0, 2)}
    lengths: dict[str, Any] = {"turns": turns, "turn_s": turn_s, "device": device}

    alone = images_per_s({n: (f, len) for n, f in {"ours": ours, **pil}.items()}, **lengths)
    print(table(f"feed alone, flip + crop, batch {batch_size}, {device}", alone))

    # against whole programs: python -m benchmarks
    network = _network(arguments.network).to(device).to(memory_format=torch.channels_last)
    if device.type == "cpu":
        keep_freed_memory()
    last, step = our_feed(split, batch_size, device, channels_last=True), training_step(network)
    # what training costs when the feed costs nothing
    still = _endless([next(last)])
    training = images_per_s({"ours": (last, step), "one batch in memory": (still, step)}, **lengths)
    print(table(f"\ntraining {arguments.network}, batch {batch_size}, {device}", training))
    if arguments.json:
        figures: dict[str, Any] = {"alone": alone, "training": training}
        arguments.json.write_text(json.dumps(figures | {"machine": _machine(device)}, indent=2))


def _machine(device: torch.device) -> dict[str, Any]:
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor()
    return {
        "device": name or platform.machine(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "python": platform.python_version(),
    }


if __name__ == "__main__":
    main()
