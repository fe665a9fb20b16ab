"""The bare loop: what PyTorch itself costs, and nothing else.

The whole training split lies on the device as normalized float32, so a batch costs one gather; no
metric is kept and no value is read. A loop that does less trains nothing. ``--tuned`` gives it the
memory format and the malloc settings of our own runs: what then is left between it and ours is the
price of all that ours does beside the step.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.programs.harness import Clock, Settings, StandIn, make_network, make_optimizer, run
from cifar_lab.training.steps.allocator import keep_freed_memory


def train(settings: Settings, clock: Clock) -> None:
    """Epochs in random order until the clock has seen its steps."""
    device = settings.device
    images, labels = training_split(settings)
    network = make_network(settings).to(device).train()
    memory_format = torch.channels_last if settings.tuned else torch.contiguous_format
    network.to(memory_format=memory_format)
    if settings.tuned and device.type == "cpu":
        keep_freed_memory()
    optimizer = make_optimizer(network)
    mixed = torch.autocast(device.type, torch.bfloat16, enabled=settings.precision == "bf16-mixed")
    while True:
        for rows in torch.randperm(len(images), device=device).split(settings.batch_size):
            # images[rows] copies element by element: a CNN's step takes 5% longer on 2 cores
            batch = images.index_select(0, rows).contiguous(memory_format=memory_format)
            optimizer.zero_grad(set_to_none=True)
            with mixed:
                loss = F.cross_entropy(network(batch), labels[rows])
            loss.backward()
            optimizer.step()
            if clock.step(len(rows)):
                return


def training_split(settings: Settings) -> tuple[Tensor, Tensor]:
    """Images (N, 3, 32, 32) float32 in [-1, 1] and labels (N,) int64, on the device."""
    data = StandIn(settings.data)
    pixels = torch.from_numpy(np.ascontiguousarray(data.data.transpose(0, 3, 1, 2)))
    images = pixels.to(settings.device).float().div_(127.5).sub_(1)
    return images, torch.tensor(data.targets, device=settings.device)


if __name__ == "__main__":
    run(train)
