"""What the processes of a distributed fit decide together, so that none waits for the others."""

from __future__ import annotations

import torch
from lightning.pytorch import Trainer

# Batches between two exchanges: each waits for the device. One process exchanges nothing.
EVERY_N_BATCHES = 8


def is_exchange_batch(trainer: Trainer, batch_idx: int) -> bool:
    """Whether this batch is one after which all processes talk.

    Args:
        trainer: of the fit.
        batch_idx: from 0, within the epoch.
    """
    return trainer.world_size == 1 or (batch_idx + 1) % EVERY_N_BATCHES == 0


def max_over_processes(trainer: Trainer, value: int) -> int:
    """The largest ``value`` of all processes; every one of them has to call this."""
    if trainer.world_size == 1:
        return value
    mine = torch.tensor(value, device=trainer.strategy.root_device)
    largest = trainer.strategy.reduce(mine, reduce_op="max")
    assert isinstance(largest, torch.Tensor)
    return int(largest)
