"""The report's loop: ToTensor and Normalize for each image, a DataLoader, ``.item()`` every step.

As a student writes it: torchvision's dataset, no workers, everything in the training process.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader

from benchmarks.programs.harness import (
    Clock,
    Settings,
    StandIn,
    make_network,
    make_optimizer,
    per_image,
    run,
)


def train(settings: Settings, clock: Clock) -> float:
    """Epochs until the clock has seen its steps; the mean loss of the last, unfinished one."""
    device = settings.device
    loader: DataLoader[Any] = DataLoader(
        StandIn(settings.data, transform=per_image()), batch_size=settings.batch_size, shuffle=True
    )
    network = make_network(settings).to(device)
    optimizer = make_optimizer(network)
    criterion = nn.CrossEntropyLoss()
    mixed = torch.autocast(device.type, torch.bfloat16, enabled=settings.precision == "bf16-mixed")
    while True:
        network.train()
        running_loss = 0.0
        for i, (images, labels) in enumerate(loader, 1):
            images, labels = images.to(device), labels.to(device)
            optimizer.zero_grad()
            with mixed:
                loss = criterion(network(images), labels)
            loss.backward()
            optimizer.step()
            running_loss += loss.item()
            if clock.step(len(labels)):
                return running_loss / i


if __name__ == "__main__":
    run(train)
