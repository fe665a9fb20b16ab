"""Batches cut from images that lie whole on the training device: a batch is a slice of indices."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, final

import torch
from numpy.typing import NDArray
from torch import Tensor

from cifar_lab.data.augment import Normalization, Pipeline, resized
from cifar_lab.data.feed.epoch import Batch, EpochLoader, epoch_order, stream

# Left free on a GPU beside the images: a network trains there too.
_RESERVE_BYTES = 2 * 2**30


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
    # from pageable memory the copy would wait for all that the GPU still has to do, and so would
    # that of rows with gaps between them, a rank's share of an epoch
    return tensor.contiguous().pin_memory().to(device, non_blocking=True)


@dataclass(frozen=True)
class Plan:
    """All decisions of an epoch, for one rank; row i belongs to the i-th image it will see.

    Attributes:
        order: (n,) int64, rows of the split's images, where these are.
        labels: (n,) int64, on the training device.
        draws: per transform (n, ...), on the training device.
        side: pixels of a side that the images are resized to; None: they stay as they are.
    """

    order: Tensor
    labels: Tensor
    draws: dict[str, Tensor]
    side: int | None = None


@final
@dataclass(kw_only=True, eq=False, repr=False)
class BatchLoader(EpochLoader):
    """Whole-batch loading and augmentation.

    Yields images (B, 3, H, W) float32, normalized (smaller ones where the pipeline says so), and
    labels, (B,) int64 or, where the pipeline mixes samples, (B, C) float32; both on `device`.
    Nothing here waits for a GPU.

    Attributes:
        images: (N, 3, H, W) uint8 of a whole split, on `device` or in pinned memory (see `place`);
            never written to.
        labels: (N,) int64 of the whole split, on the CPU.
        pipeline: augmentation; with no transforms, images are only normalized.
        normalization: on `device`.
    """

    images: Tensor
    labels: Tensor
    pipeline: Pipeline
    normalization: Normalization

    def __post_init__(self) -> None:
        super().__post_init__()
        assert self.images.dtype == torch.uint8
        assert len(self.indices) == self.share.count

    def plan(self, epoch: int) -> Plan:
        """Draws the whole epoch at once; a function of (seed, epoch) and the rank."""
        share, size = self.share, self.images.shape[-1]
        order = epoch_order(share.count, seed=self.seed, epoch=epoch, shuffle=self.shuffle)
        rows = self.indices[share.of(order)]
        draws = self.pipeline.draw(share.count, stream(self.seed, epoch, "augment"), size)
        lasting = self.pipeline.draw_lasting(
            share.count, stream(self.seed, 0, "lasting"), size, epoch=epoch
        )
        draws |= {name: draw[order] for name, draw in lasting.items()}
        return Plan(
            order=_sent(rows, self.images.device),
            labels=_sent(self.labels[rows], self.device),
            draws={name: _sent(share.of(draw), self.device) for name, draw in draws.items()},
            side=self.pipeline.side(epoch),
        )

    def batch(self, plan: Plan, index: int) -> Batch:
        """Batch number `index` of a planned epoch; the same bits whenever it is asked for."""
        size = self.share.local_batch_size
        return self._cut(plan, slice(index * size, (index + 1) * size))

    def stack(self, plan: Plan, first: int, count: int) -> Batch:
        """`count` batches from number `first` on, stacked: the same bits as from `batch`.

        For steps so short that launching the feed's kernels for each would show: here they run
        once, unless samples are mixed.

        Args:
            plan: of the epoch.
            first: number of a batch.
            count: number of batches; the short last one may not be among them.

        Returns:
            images (count, B, 3, H, W) and labels (count, B) or (count, B, C).
        """
        size = self.share.local_batch_size
        assert (first + count) * size <= len(plan.order)
        if self.pipeline.mixes:
            batches = [self.batch(plan, index) for index in range(first, first + count)]
            images, labels = zip(*batches, strict=True)
            return torch.stack(images), torch.stack(labels)
        flat_images, flat_labels = self._cut(plan, slice(first * size, (first + count) * size))
        return flat_images.unflatten(0, (count, size)), flat_labels.unflatten(0, (count, size))

    def _cut(self, plan: Plan, part: slice) -> Batch:
        images, labels = self.pipeline.apply(
            self._gathered(plan.order[part]),
            plan.labels[part],
            {name: draw[part] for name, draw in plan.draws.items()},
            self.normalization,
            self.memory_format,
        )
        return resized(images, plan.side), labels

    def _gathered(self, rows: Tensor) -> Tensor:
        # by type: torch.device("cuda") is not equal to the cuda:0 that it names
        if self.images.device.type == self.device.type:
            return self.images.index_select(0, rows)
        # A buffer of its own for every batch: torch's pinned allocator does not hand it out again
        # before the copy out of it is over
        shape = (len(rows), *self.images.shape[1:])
        buffer = torch.empty(shape, dtype=torch.uint8, pin_memory=True)
        torch.index_select(self.images, 0, rows, out=buffer)
        return buffer.to(self.device, non_blocking=True)

    def _batches(self, epoch: int, first: int) -> Iterator[Batch]:
        plan = self.plan(epoch)
        if self.multistep is None:
            for index in range(first, self.num_batches):
                yield self.batch(plan, index)
            return
        while first < self.num_batches:
            end = self.multistep.end(epoch, first)
            if first < self.multistep.full:
                yield self.stack(plan, first, end - first)
            else:
                images, labels = self.batch(plan, first)
                yield images[None], labels[None]
            first = end
