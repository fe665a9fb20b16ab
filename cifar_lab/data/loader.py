"""Batches cut from images that lie whole on the training device: a batch is a slice of indices."""

from __future__ import annotations

import warnings
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal, final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Generator, Tensor

from cifar_lab.data.augment import Normalization, Pipeline

Batch = tuple[Tensor, Tensor]
# Left free on a GPU beside the images: a network trains there too.
_RESERVE_BYTES = 2 * 2**30


def stream(seed: int, epoch: int, purpose: Literal["order", "augment"]) -> Generator:
    """A CPU generator for one purpose in one epoch.

    numpy's SeedSequence mixes the three numbers into 32 bits (more are lost: torch's Mersenne
    Twister is seeded with the low 32), so neighbouring seeds, epochs and purposes share nothing.
    """
    words = np.random.SeedSequence([seed, epoch, ("order", "augment").index(purpose)])
    return Generator().manual_seed(int(words.generate_state(1)[0]))


def epoch_order(count: int, *, seed: int, epoch: int, shuffle: bool) -> Tensor:
    """(count,) int64: the order of an epoch over all devices; depends on (seed, epoch) alone."""
    if not shuffle:
        return torch.arange(count)
    return torch.randperm(count, generator=stream(seed, epoch, "order"))


def as_tensor(array: NDArray[Any]) -> Tensor:
    """The array's own memory as a tensor that must not be written to."""
    with warnings.catch_warnings():
        # A cached split is a read-only map that processes share. torch cannot mark a tensor
        # read-only and warns; we only ever read from it (index_select).
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        return torch.from_numpy(array)


def place(images: Tensor, device: torch.device) -> Tensor:
    """The images on the device, or in pinned host memory when too little would be left free."""
    if device.type != "cuda":
        return images.to(device)
    free, _ = torch.cuda.mem_get_info(device)
    if images.nbytes + _RESERVE_BYTES <= free:
        return images.to(device)
    return images.pin_memory()


def _sent(tensor: Tensor, device: torch.device) -> Tensor:
    if device.type != "cuda":
        return tensor.to(device)
    # from pageable memory the copy would wait for all that the GPU still has to do
    return tensor.pin_memory().to(device, non_blocking=True)


class EpochLoader(ABC):
    """Iterates over epochs of batches, and knows where in which epoch it is.

    Each `iter` is the next epoch unless `set_epoch` or `load_state_dict` said otherwise. Lightning
    finds `set_epoch` through `batch_sampler.sampler`, as with torch's own loader. (There is no
    `sampler` itself: `Trainer(overfit_batches=)` would warn that it turns shuffling off, and not
    do it. `data.shuffle=false` does.)
    """

    def __init__(self) -> None:
        self.epoch = 0
        self.position = 0
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
        if self.position >= len(self):
            self.epoch, self.position = self.epoch + 1, 0
        self._begun, self._resumed = False, True

    def __iter__(self) -> Iterator[Batch]:
        # A generator: nothing below runs before the first `next`, for Lightning calls `iter`
        # (twice) before it sets the epoch
        if self._begun:
            self.epoch, self.position = self.epoch + 1, 0
        self._begun, self._resumed = True, False
        first = self.position
        for index, batch in enumerate(self._batches(self.epoch, first), first):
            # before the yield: a checkpoint written after this batch's step must not repeat it
            self.position = index + 1
            yield batch

    @abstractmethod
    def __len__(self) -> int:
        """The number of batches of a whole epoch."""

    @abstractmethod
    def _batches(self, epoch: int, first: int) -> Iterator[Batch]:
        """The batches of an epoch from number `first` on."""


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
        batch_size: images per optimizer step over all devices; a multiple of world_size.
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
        """Batches, and optimizer steps, per epoch."""
        return -(-self.used // self.batch_size)

    def of(self, per_position: Tensor) -> Tensor:
        """This rank's part of a tensor with one row per position of the epoch, in batch order."""
        # world_size divides batch_size, so a step of world_size runs through all batches alike
        return per_position[self.rank : self.used : self.world_size]


@dataclass(frozen=True)
class Plan:
    """All decisions of an epoch, for one rank; row i belongs to the i-th image it will see.

    Attributes:
        order: (n,) int64, rows of the split's images, where these are.
        labels: (n,) int64, on the training device.
        draws: per transform (n, ...), on the training device.
    """

    order: Tensor
    labels: Tensor
    draws: dict[str, Tensor]


@final
class BatchLoader(EpochLoader):
    """Whole-batch loading and augmentation.

    Yields images (B, 3, H, W) float32, normalized, and labels, (B,) int64 or, where the pipeline
    mixes samples, (B, 10) float32; both on `device`. Nothing here waits for a GPU.

    Args:
        images: (N, 3, H, W) uint8 of a whole split, on `device` or in pinned memory (see `place`).
        labels: (N,) int64 of the whole split, on the CPU.
        indices: (n,) int64 on the CPU: the rows of the split to go through.
        share: cuts the n images into batches.
        pipeline: augmentation; with no transforms, images are only normalized.
        normalization: on `device`.
        seed: of order and augmentation.
        shuffle: a new order every epoch, or else that of `indices`.
        device: where the batches are wanted.
        channels_last: memory format of the images.
    """

    def __init__(
        self,
        *,
        images: Tensor,
        labels: Tensor,
        indices: Tensor,
        share: Share,
        pipeline: Pipeline,
        normalization: Normalization,
        seed: int,
        shuffle: bool,
        device: torch.device,
        channels_last: bool,
    ) -> None:
        super().__init__()
        assert images.dtype == torch.uint8
        assert len(indices) == share.count
        self.share = share
        self.device = device
        self._images = images
        self._labels = labels
        self._indices = indices
        self._pipeline = pipeline
        self._normalization = normalization
        self._seed = seed
        self._shuffle = shuffle
        self._memory_format = torch.channels_last if channels_last else torch.contiguous_format

    def __len__(self) -> int:
        return self.share.num_batches

    def plan(self, epoch: int) -> Plan:
        """Draws the whole epoch at once; a function of (seed, epoch) and the rank."""
        share, size = self.share, self._images.shape[-1]
        order = epoch_order(share.count, seed=self._seed, epoch=epoch, shuffle=self._shuffle)
        rows = self._indices[share.of(order)]
        draws = self._pipeline.draw(share.count, stream(self._seed, epoch, "augment"), size)
        return Plan(
            order=_sent(rows, self._images.device),
            labels=_sent(self._labels[rows], self.device),
            draws={name: _sent(share.of(draw), self.device) for name, draw in draws.items()},
        )

    def batch(self, plan: Plan, index: int) -> Batch:
        """Batch number `index` of a planned epoch; the same bits whenever it is asked for."""
        size = self.share.local_batch_size
        return self._cut(plan, slice(index * size, (index + 1) * size))

    def block(self, plan: Plan, first: int, count: int) -> Batch:
        """`count` batches from number `first` on, stacked: the same bits as from `batch`.

        For steps so short that launching the feed's kernels for each would show: here they run
        once, unless samples are mixed.

        Args:
            plan: of the epoch.
            first: number of a batch.
            count: number of batches; the short last one may not be among them.

        Returns:
            images (count, B, 3, H, W) and labels (count, B) or (count, B, 10).
        """
        size = self.share.local_batch_size
        assert (first + count) * size <= len(plan.order)
        if self._pipeline.mixes:
            batches = [self.batch(plan, index) for index in range(first, first + count)]
            images, labels = zip(*batches, strict=True)
            return torch.stack(images), torch.stack(labels)
        flat_images, flat_labels = self._cut(plan, slice(first * size, (first + count) * size))
        return flat_images.unflatten(0, (count, size)), flat_labels.unflatten(0, (count, size))

    def _cut(self, plan: Plan, part: slice) -> Batch:
        return self._pipeline.apply(
            self._gathered(plan.order[part]),
            plan.labels[part],
            {name: draw[part] for name, draw in plan.draws.items()},
            self._normalization,
            self._memory_format,
        )

    def _gathered(self, rows: Tensor) -> Tensor:
        if self._images.device == self.device or self.device.type != "cuda":
            return self._images.index_select(0, rows)
        # A buffer of its own for every batch: torch's pinned allocator does not hand it out again
        # before the copy out of it is over
        shape = (len(rows), *self._images.shape[1:])
        buffer = torch.empty(shape, dtype=torch.uint8, pin_memory=True)
        torch.index_select(self._images, 0, rows, out=buffer)
        return buffer.to(self.device, non_blocking=True)

    def _batches(self, epoch: int, first: int) -> Iterator[Batch]:
        plan = self.plan(epoch)
        for index in range(first, len(self)):
            yield self.batch(plan, index)
