"""Which image comes when, and on which device: the order, shares and position of an epoch."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Generator, Tensor

# images (B, 3, H, W) and labels (B, ...); of a call: (K, B, 3, H, W) and (K, B, ...)
Batch = tuple[Tensor, Tensor]


def batches_in(batch: Batch) -> int:
    """1, or K that are stacked for one call."""
    images, _ = batch
    return len(images) if images.ndim == 5 else 1


def images_in(batch: Batch) -> int:
    """Images of a batch, or of several that are stacked."""
    images, _ = batch
    return len(images) * images.shape[1] if images.ndim == 5 else len(images)


def stream(seed: int, epoch: int, purpose: Literal["order", "augment", "lasting"]) -> Generator:
    """A CPU generator for one purpose in one epoch; what lasts through all of them has that of 0.

    numpy's SeedSequence mixes the three numbers into 32 bits (more are lost: torch's Mersenne
    Twister is seeded with the low 32), so neighbouring seeds, epochs and purposes share nothing.
    """
    words = np.random.SeedSequence([seed, epoch, ("order", "augment", "lasting").index(purpose)])
    return Generator().manual_seed(int(words.generate_state(1)[0]))


def epoch_order(count: int, *, seed: int, epoch: int, shuffle: bool) -> Tensor:
    """(count,) int64: the order of an epoch over all devices; depends on (seed, epoch) alone."""
    if not shuffle:
        return torch.arange(count)
    return torch.randperm(count, generator=stream(seed, epoch, "order"))


@dataclass(kw_only=True, eq=False, repr=False)
class EpochLoader(ABC):
    """Iterates over epochs of batches, and knows where in which epoch it is.

    Each `iter` is the next epoch unless `set_epoch` or `load_state_dict` said otherwise. Lightning
    finds `set_epoch` through `batch_sampler.sampler`, as with torch's own loader. (There is no
    `sampler` itself: `Trainer(overfit_batches=)` would warn that it turns shuffling off, and not
    do it. `data.shuffle=false` does.)

    Attributes:
        epoch: from 0.
        position: batches of it that were handed out.
        share: how the epoch is cut into batches, and which part of each is handed out here.
        indices: (n,) int64 on the CPU: the rows of the split to go through.
        seed: of order and augmentation.
        shuffle: a new order every epoch, or else that of `indices`.
        device: where the batches are wanted.
        channels_last: memory format of the images.
        multistep: how several batches at a time are handed out, stacked; None: one by one.
    """

    share: Share
    indices: Tensor
    seed: int
    shuffle: bool
    device: torch.device
    channels_last: bool

    def __post_init__(self) -> None:
        self.epoch = 0
        self.position = 0
        self.multistep: Multistep | None = None
        self._begun = False
        self._resumed = False

    @property
    def batch_sampler(self) -> _EpochSetter:
        """Where Lightning looks for `sampler.set_epoch`."""
        return _EpochSetter(self)

    def set_epoch(self, epoch: int) -> None:
        """The next `iter` starts this epoch, or continues it right after `load_state_dict`."""
        # Lightning sets the epoch also right after it restored our state, in a resumed epoch
        if not (self._resumed and epoch == self.epoch):
            self.epoch, self.position = epoch, 0
        self._begun = self._resumed = False

    def state_dict(self) -> dict[str, int]:
        """The epoch and the number of batches of it that were handed out."""
        return {"epoch": self.epoch, "position": self.position}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """The next `iter` hands out the batches that the saved epoch still had to come."""
        self.epoch, self.position = state["epoch"], state["position"]
        if self.position >= self.num_batches:
            self.epoch, self.position = self.epoch + 1, 0
        self._begun, self._resumed = False, True

    def __iter__(self) -> Iterator[Batch]:
        # A generator: nothing below runs before the first `next`, for Lightning calls `iter`
        # (twice) before it sets the epoch
        if self._begun:
            self.epoch, self.position = self.epoch + 1, 0
        self._begun, self._resumed = True, False
        for batch in self._batches(self.epoch, self.position):
            # before the yield: a checkpoint written after this batch's step must not repeat it
            self.position += batches_in(batch)
            yield batch

    def __len__(self) -> int:
        """What a whole epoch hands out: batches, or stacks of them."""
        return self.num_batches if self.multistep is None else self.multistep.calls_per_epoch

    @property
    def num_batches(self) -> int:
        """Batches of an epoch, on every rank."""
        return self.share.num_batches if self.multistep is None else self.multistep.batches

    @property
    def memory_format(self) -> torch.memory_format:
        """Of the images."""
        return torch.channels_last if self.channels_last else torch.contiguous_format

    @abstractmethod
    def _batches(self, epoch: int, first: int) -> Iterator[Batch]:
        """The batches (or stacks of them) of an epoch from batch number `first` on."""


@dataclass(frozen=True)
class Multistep:
    """An epoch cut into calls of `size` steps, on a grid that begins with the epoch.

    A call gets the batches of its steps, stacked; a short last batch has a call of its own. An
    epoch that is taken up inside a call goes on to that call's end, so that a run may change its
    `size` between two starts.

    Attributes:
        size: steps, and batches, of a call.
        full: batches of an epoch that have all their images.
        batches: full ones, and the short last one where it is used.
        max_steps: batches of the whole fit, at which a call ends; None: no bound.
    """

    size: int
    full: int
    batches: int
    max_steps: int | None

    def __post_init__(self) -> None:
        assert self.size > 0
        assert 0 <= self.full <= self.batches <= self.full + 1

    @property
    def calls_per_epoch(self) -> int:
        """Calls of an epoch."""
        return self.calls_done(self.batches)

    def calls_done(self, position: int) -> int:
        """Calls that are over when `position` batches are; begun ones don't count."""
        if position < self.full:
            return position // self.size
        return -(-self.full // self.size) + position - self.full

    def batches_done(self, calls: int) -> int:
        """Batches that are over when `calls` calls are."""
        whole = -(-self.full // self.size)
        return min(calls * self.size, self.full) + max(0, calls - whole)

    def end(self, epoch: int, position: int) -> int:
        """Where the call ends that goes on from `position`."""
        if position >= self.full:
            return position + 1
        end = min(self.full, (position // self.size + 1) * self.size)
        if self.max_steps is not None and epoch * self.batches + position < self.max_steps:
            end = min(end, self.max_steps - epoch * self.batches)
        return end


@dataclass(frozen=True)
class _EpochSetter:
    sampler: EpochLoader


@dataclass(frozen=True)
class Share:
    """How an epoch of `count` images is cut into batches, and which part of each this rank takes.

    Rank r of w takes batch[r::w] of every global batch. A short last batch is dropped, or cut to a
    multiple of w, so that all ranks make the same number of steps.

    Attributes:
        count: images in the split.
        batch_size: images of a batch over all devices; a multiple of world_size.
        drop_last: drop the short last batch.
        rank: 0..world_size-1.
        world_size: number of training processes.
    """

    count: int
    batch_size: int
    drop_last: bool
    rank: int
    world_size: int

    def __post_init__(self) -> None:
        assert 0 <= self.rank < self.world_size
        assert self.batch_size > 0
        assert self.batch_size % self.world_size == 0

    @property
    def used(self) -> int:
        """Images of an epoch that are used, over all ranks."""
        return self.count - self.count % (self.batch_size if self.drop_last else self.world_size)

    @property
    def local_batch_size(self) -> int:
        """Images per batch on this rank, the last one aside."""
        return self.batch_size // self.world_size

    @property
    def num_batches(self) -> int:
        """Batches per epoch."""
        return -(-self.used // self.batch_size)

    def images_of(self, index: int) -> int:
        """Images of batch number `index` on this rank, and on every other."""
        left = self.used // self.world_size - index * self.local_batch_size
        return min(self.local_batch_size, left)

    def of(self, per_position: Tensor) -> Tensor:
        """This rank's part of a tensor with one row per position of the epoch, in batch order."""
        # world_size divides batch_size, so a step of world_size runs through all batches alike
        return per_position[self.rank : self.used : self.world_size]
