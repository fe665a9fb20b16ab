"""Augmentation of whole batches with its own draw for every sample.

Every transform has two halves. `draw` makes all randomness for a number of samples, on the CPU and
from a Generator that is passed in; `apply` is a pure function of a batch and its slice of draws, on
any device. The loader draws once per epoch and slices by position, so what happens to sample i of
epoch e depends on (seed, e, i) alone: not on batch size, workers, devices or a saved RNG state.
(torchvision's v2 transforms apply one random crop to a whole batch: pytorch/vision#8484.)
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from enum import IntEnum
from functools import lru_cache
from typing import ClassVar, final

import numpy as np
import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from cifar_lab.data.arguments import check_choice, check_number, check_whole
from cifar_lab.data.dataset import Dataset
from cifar_lab.errors import InputError


class Stage(IntEnum):
    """What the images are when a transform meets them; a pipeline applies stages in this order."""

    BYTES = 0  # uint8
    UNIT = 1  # float32 in [0, 1]
    NORMALIZED = 2  # float32, mean about 0 and deviation about 1 per channel
    MIXED = 3  # the same; images and labels of two samples are mixed


class Transform(ABC):
    """One kind of augmentation of (B, 3, H, W) images and their labels.

    Attributes:
        stage: what the images are when it meets them.
        lasting: an image keeps its draw through the fit: `draw` has a generator that is the same
            in every epoch, and one row for each image as they are stored, instead of as they come.
    """

    stage: ClassVar[Stage]
    lasting: ClassVar[bool] = False

    def check_size(self, size: int) -> None:  # noqa: B027  # most take any
        """Raises InputError where images of `size` x `size` are too small for it."""

    @abstractmethod
    def draw(self, count: int, generator: Generator, size: int) -> Tensor:
        """All randomness for `count` images of `size` x `size`; a CPU tensor (count, ...)."""

    def in_epoch(self, draws: Tensor, epoch: int) -> Tensor:
        """What a lasting draw means in an epoch, from 0: the draws that `apply` gets."""
        return draws

    @abstractmethod
    def apply(self, images: Tensor, labels: Tensor, draws: Tensor) -> tuple[Tensor, Tensor]:
        """The augmented batch; `draws` is this batch's slice, on the images' device.

        From `Stage.UNIT` on, `images` may be changed in place. Labels are (B,) int64, and at
        `Stage.MIXED` (B, C) float32, the probability of each class.
        """


class _Flip(Transform):
    """Mirrors left to right where the draw, (count,) int64, is 1."""

    stage = Stage.BYTES

    def apply(self, images: Tensor, labels: Tensor, draws: Tensor) -> tuple[Tensor, Tensor]:
        """Mirrors the drawn images."""
        # Copying rows out of both versions takes 45 us for 100 images on 2 cores; torch.where,
        # whose uint8 kernel is not vectorized over a broadcast condition, takes 210 us.
        count = len(images)
        both = torch.cat([images, images.flip(-1)])
        rows = torch.arange(count, device=images.device) + count * draws
        return both.index_select(0, rows), labels


@final
class RandomFlip(_Flip):
    """Mirrors left to right with probability `p`."""

    def __init__(self, *, p: float) -> None:
        check_number("augment.transforms.flip.p", p, 0, 1)
        self.p = p

    def draw(self, count: int, generator: Generator, size: int) -> Tensor:
        """(count,) int64: 1 where the image is mirrored."""
        return (torch.rand(count, generator=generator) < self.p).long()


@final
class AlternatingFlip(_Flip):
    """Mirrors each image in every other epoch: half of them, drawn once, in the even ones.

    Any two epochs in a row show an image both ways, where independent draws show half of the images
    the same way twice. Source: arXiv:2404.00498, 3.6.
    """

    lasting = True

    def draw(self, count: int, generator: Generator, size: int) -> Tensor:
        """(count,) int64: 1 where the image is mirrored in epochs 0, 2, 4, ..."""
        return torch.randint(0, 2, (count,), generator=generator)

    def in_epoch(self, draws: Tensor, epoch: int) -> Tensor:
        """The other half in odd epochs."""
        return draws ^ (epoch % 2)


@final
class RandomCrop(Transform):
    """Pads every side by `padding` pixels, with zeros or by reflection, and crops back."""

    stage = Stage.BYTES

    def __init__(self, *, padding: int, mode: str) -> None:
        check_whole("augment.transforms.crop.padding", padding, 0)
        check_choice("augment.transforms.crop.mode", mode, ("zero", "reflect"))
        self.padding = padding
        self.mode = mode

    def check_size(self, size: int) -> None:
        """At most what a reflection has."""
        check_whole("augment.transforms.crop.padding", self.padding, 0, size - 1)

    def draw(self, count: int, generator: Generator, size: int) -> Tensor:
        """(count, 2) int64 in 0..2*padding: the window's first row and column."""
        return torch.randint(0, 2 * self.padding + 1, (count, 2), generator=generator)

    def apply(self, images: Tensor, labels: Tensor, draws: Tensor) -> tuple[Tensor, Tensor]:
        """Cuts the drawn window out of each padded image."""
        count, channels, height, width = images.shape
        padded = self._padded(images)
        # A window's row is one run of `width` bytes, so one index_select over all (overlapping)
        # runs cuts the whole batch: 70 us for 100 images on 2 cores, where indexing an unfolded
        # view takes 200 us, two gathers 420 us and a four-index gather 1,140 us.
        runs = padded.view(-1).as_strided((padded.numel() - width + 1, width), (1, 1))
        starts = draws[:, 0] * padded.shape[-1] + draws[:, 1]
        rows = _row_starts(count, channels, height, width, self.padding, images.device)
        cut = runs.index_select(0, (rows + starts[:, None]).view(-1))
        return cut.view(images.shape), labels

    def _padded(self, images: Tensor) -> Tensor:
        p = self.padding
        if self.mode == "zero":
            return F.pad(images, (p, p, p, p))
        # F.pad has no reflection for uint8
        for dim in (2, 3):
            last = images.shape[dim] - 1
            rows = torch.arange(-p, last + p + 1, device=images.device).abs()
            images = images.index_select(dim, last - (last - rows).abs())
        return images


@final
class Cutout(Transform):
    """Sets a `size` x `size` square to 0 once normalized: to what normalization takes for the mean.

    Its centre is any pixel, so that it may reach over the edge (arXiv:1708.04552); with `inside`
    it lies anywhere within the image, and always blanks as much (arXiv:2404.00498).
    """

    stage = Stage.NORMALIZED

    def __init__(self, *, size: int, inside: bool = False) -> None:
        check_whole("augment.transforms.cutout.size", size, 0)
        check_choice("augment.transforms.cutout.inside", inside, (True, False))
        self.size = size
        self.inside = inside

    def check_size(self, size: int) -> None:
        """At most what blanks all of the image from any centre."""
        most = size if self.inside else 2 * size
        check_whole("augment.transforms.cutout.size", self.size, 0, most)

    def draw(self, count: int, generator: Generator, size: int) -> Tensor:
        """(count, 2) int64 in 0..size-1: the centre's row and column."""
        if self.inside:
            first = torch.randint(0, size - self.size + 1, (count, 2), generator=generator)
            return first + self.size // 2
        return torch.randint(0, size, (count, 2), generator=generator)

    def apply(self, images: Tensor, labels: Tensor, draws: Tensor) -> tuple[Tensor, Tensor]:
        """Blanks the square around each drawn centre."""
        first = draws - self.size // 2
        box = torch.cat([first, first + self.size], dim=1)
        return images.masked_fill_(_box_mask(box, images), 0.0), labels


@final
class ColorJitter(Transform):
    """Scales brightness, contrast and saturation, in this order, each by 1 - x to 1 + x.

    torchvision's transform of this name also shuffles the order.
    """

    stage = Stage.UNIT
    _luma: ClassVar = (0.2989, 0.587, 0.114)  # as torchvision's rgb_to_grayscale

    def __init__(self, *, brightness: float, contrast: float, saturation: float) -> None:
        check_number("augment.transforms.jitter.brightness", brightness, 0, 1)
        check_number("augment.transforms.jitter.contrast", contrast, 0, 1)
        check_number("augment.transforms.jitter.saturation", saturation, 0, 1)
        self.strength = (brightness, contrast, saturation)

    def draw(self, count: int, generator: Generator, size: int) -> Tensor:
        """(count, 3) float32: factors of brightness, contrast and saturation."""
        return 1 + torch.tensor(self.strength) * (2 * torch.rand(count, 3, generator=generator) - 1)

    def apply(self, images: Tensor, labels: Tensor, draws: Tensor) -> tuple[Tensor, Tensor]:
        """Blends each image with black, its mean grey and its own grey version."""
        brightness, contrast, saturation = (f.view(-1, 1, 1, 1) for f in draws.unbind(1))
        images = images.mul_(brightness).clamp_(0, 1)
        mean_grey = self._grey(images).mean(dim=(1, 2, 3), keepdim=True)
        images = images.mul_(contrast).add_(mean_grey * (1 - contrast)).clamp_(0, 1)
        grey = self._grey(images)
        return images.mul_(saturation).add_(grey * (1 - saturation)).clamp_(0, 1), labels

    def _grey(self, images: Tensor) -> Tensor:
        red, green, blue = self._luma
        channels: tuple[Tensor, ...] = images.split(1, dim=1)
        return channels[0] * red + channels[1] * green + channels[2] * blue


@final
class Mixup(Transform):
    """Blends each sample with the next one of its batch, share ~ Beta(alpha, alpha).

    Source: arXiv:1710.09412, with a share of its own for every sample.
    """

    stage = Stage.MIXED

    def __init__(self, *, alpha: float, p: float) -> None:
        check_number("augment.transforms.mixup.alpha", alpha, 1e-3, 1e3)
        check_number("augment.transforms.mixup.p", p, 0, 1)
        self.alpha = alpha
        self.p = p

    def draw(self, count: int, generator: Generator, size: int) -> Tensor:
        """(count,) float32 in [0, 1]: the share of the sample itself, 1 where it is left alone."""
        share = _beta(self.alpha, count, generator)
        return torch.where(torch.rand(count, generator=generator) < self.p, share, 1.0)

    def apply(self, images: Tensor, labels: Tensor, draws: Tensor) -> tuple[Tensor, Tensor]:
        """Blends images and label probabilities alike."""
        mixed = torch.lerp(images.roll(1, 0), images, draws.view(-1, 1, 1, 1))
        return mixed, torch.lerp(labels.roll(1, 0), labels, draws.view(-1, 1))


@final
class CutMix(Transform):
    """Pastes a box of the next sample of the batch; its area is ~ 1 - Beta(alpha, alpha).

    Labels mix by the share of pixels really pasted. Source: arXiv:1905.04899.
    """

    stage = Stage.MIXED

    def __init__(self, *, alpha: float, p: float) -> None:
        check_number("augment.transforms.cutmix.alpha", alpha, 1e-3, 1e3)
        check_number("augment.transforms.cutmix.p", p, 0, 1)
        self.alpha = alpha
        self.p = p

    def draw(self, count: int, generator: Generator, size: int) -> Tensor:
        """(count, 4) int64 in 0..size: first row, first column, end row, end column of the box."""
        share = _beta(self.alpha, count, generator)
        centre = torch.randint(0, size, (count, 2), generator=generator)
        active = torch.rand(count, generator=generator) < self.p
        half = (size * (1 - share).sqrt() / 2).long() * active
        box = torch.cat([centre - half[:, None], centre + half[:, None]], dim=1)
        return box.clamp_(0, size)

    def apply(self, images: Tensor, labels: Tensor, draws: Tensor) -> tuple[Tensor, Tensor]:
        """Pastes the boxes, and mixes label probabilities by the area."""
        mixed = torch.where(_box_mask(draws, images), images.roll(1, 0), images)
        area = ((draws[:, 2] - draws[:, 0]) * (draws[:, 3] - draws[:, 1])).float()
        kept = 1 - area.view(-1, 1) / (images.shape[-2] * images.shape[-1])
        return mixed, torch.lerp(labels.roll(1, 0), labels, kept)


@final
class Normalization:
    """(x / 255 - mean) / std per channel, for uint8 images, on one device."""

    def __init__(
        self, *, mean: tuple[float, ...], std: tuple[float, ...], device: torch.device
    ) -> None:
        self.mean = torch.tensor(mean, dtype=torch.float64).view(-1, 1, 1)
        self.std = torch.tensor(std, dtype=torch.float64).view(-1, 1, 1)
        self._bytes = self._constants(255.0, device)
        self._unit = self._constants(1.0, device)

    def _constants(self, scale: float, device: torch.device) -> tuple[Tensor, Tensor]:
        # rounded to float32 on the CPU: MPS has no float64
        offset, factor = (self.mean * scale).float(), (1 / (self.std * scale)).float()
        return offset.to(device), factor.to(device)

    def of_bytes_(self, images: Tensor) -> Tensor:
        """Normalizes float32 images in [0, 255], in place."""
        return images.sub_(self._bytes[0]).mul_(self._bytes[1])

    def of_unit_(self, images: Tensor) -> Tensor:
        """Normalizes float32 images in [0, 1], in place."""
        return images.sub_(self._unit[0]).mul_(self._unit[1])


@final
class Pipeline:
    """The named transforms of a training split, in the order of their stages, then of the mapping.

    A name whose value is None is left out, so that `augment.transforms.crop=null` works.

    Attributes:
        mixes: whether labels become (B, num_classes) float32.
        sizes: (first epoch, side in pixels) of progressive resizing, ascending, from epoch 0 on:
            what the batches of an epoch are resized to, after everything else; empty: they are as
            large as the data's, as the last entry is too. Source: Howard's fast.ai entry to
            DAWNBench (2018); arXiv:2104.00298, 4.
        num_classes: of the dataset that it has been fitted to.
    """

    def __init__(
        self,
        *,
        transforms: Mapping[str, Transform | None],
        sizes: Sequence[Sequence[int]] | None = None,
    ) -> None:
        chosen = [(name, t) for name, t in transforms.items() if t is not None]
        for name, transform in chosen:
            if not isinstance(transform, Transform):
                raise InputError(
                    f"augment.transforms.{name}={transform!r}: must be a transform of "
                    "cifar_lab.data.augment, given by its _target_, or null"
                )
        self.transforms: dict[str, Transform] = dict(sorted(chosen, key=lambda c: c[1].stage))
        self.mixes = any(t.stage is Stage.MIXED for t in self.transforms.values())
        self.sizes = _checked_sizes(sizes or ())
        self.num_classes = 0
        self._in_unit_range = any(t.stage is Stage.UNIT for t in self.transforms.values())

    def fit_to(self, dataset: Dataset) -> None:
        """Takes over the number of classes; raises InputError where the images don't fit."""
        _, height, width = dataset.image_size
        if height != width:
            raise InputError(
                f"data: {dataset.name} has images of {height}x{width} pixels; they must be square"
            )
        for transform in self.transforms.values():
            transform.check_size(height)
        if self.sizes and (last := self.sizes[-1][1]) != height:
            raise InputError(
                f"augment.sizes={_shown(self.sizes)}: ends with images of {last} pixels, and the "
                f"data's are {height}, which are tested; must end with {height}"
            )
        self.num_classes = len(dataset.classes)

    def side(self, epoch: int) -> int | None:
        """What the batches of an epoch, from 0, are resized to; None: they stay as they are."""
        return next((side for first, side in reversed(self.sizes) if first <= epoch), None)

    def draw(self, count: int, generator: Generator, size: int) -> dict[str, Tensor]:
        """All randomness for `count` samples (an epoch, usually), by transform, on the CPU.

        Row i is of the i-th sample to come; the transforms that are `lasting` are left out.
        """
        return {
            name: transform.draw(count, generator, size)
            for name, transform in self.transforms.items()
            if not transform.lasting
        }

    def draw_lasting(
        self, count: int, generator: Generator, size: int, *, epoch: int
    ) -> dict[str, Tensor]:
        """What `draw` leaves out; row i is of the i-th image of the split as it is stored.

        Args:
            count: images of the split.
            generator: in the same state for every epoch.
            size: of the images.
            epoch: from 0.
        """
        return {
            name: transform.in_epoch(transform.draw(count, generator, size), epoch)
            for name, transform in self.transforms.items()
            if transform.lasting
        }

    def apply(
        self,
        images: Tensor,
        labels: Tensor,
        draws: Mapping[str, Tensor],
        normalization: Normalization,
        memory_format: torch.memory_format = torch.contiguous_format,
    ) -> tuple[Tensor, Tensor]:
        """Augments and normalizes a batch; `images` are left as they were.

        Args:
            images: (B, 3, H, W) uint8.
            labels: (B,) int64.
            draws: this batch's slice of what `draw` returned, on the images' device.
            normalization: on the images' device.
            memory_format: of the result.

        Returns:
            images (B, 3, H, W) float32 and labels, (B,) int64, or (B, num_classes) float32 where
            samples are mixed.
        """
        images, labels = self._stage(Stage.BYTES, images, labels, draws)
        images = images.to(torch.float32, memory_format=memory_format)
        if self._in_unit_range:
            images, labels = self._stage(Stage.UNIT, images.div_(255), labels, draws)
            images = normalization.of_unit_(images)
        else:
            images = normalization.of_bytes_(images)
        images, labels = self._stage(Stage.NORMALIZED, images, labels, draws)
        if self.mixes:
            labels = class_probabilities(labels, self.num_classes)
        return self._stage(Stage.MIXED, images, labels, draws)

    def _stage(
        self, stage: Stage, images: Tensor, labels: Tensor, draws: Mapping[str, Tensor]
    ) -> tuple[Tensor, Tensor]:
        for name, transform in self.transforms.items():
            if transform.stage is stage:
                images, labels = transform.apply(images, labels, draws[name])
        return images, labels


def resized(images: Tensor, side: int | None) -> Tensor:
    """(B, 3, side, side) of float (B, 3, H, H): each pixel the mean of the area that it covers."""
    if side is None or side == images.shape[-1]:
        return images
    smaller = F.interpolate(images, size=(side, side), mode="area")
    channels_last = images.is_contiguous(memory_format=torch.channels_last)
    return smaller.contiguous(
        memory_format=torch.channels_last if channels_last else torch.contiguous_format
    )


def _checked_sizes(sizes: Sequence[Sequence[int]]) -> tuple[tuple[int, int], ...]:
    text = f"augment.sizes={_shown(sizes)}"
    whole = [
        isinstance(pair, Sequence)
        and len(pair) == 2
        and all(isinstance(n, int) and not isinstance(n, bool) and n >= 0 for n in pair)
        for pair in sizes
    ]
    if not all(whole):
        raise InputError(
            f"{text}: must be a list of [first epoch, pixels of a side], as in "
            "augment.sizes=[[0,16],[6,24],[12,32]]"
        )
    firsts, sides = [first for first, _ in sizes], [side for _, side in sizes]
    if sizes and (firsts[0] != 0 or sorted(set(firsts)) != firsts):
        raise InputError(f"{text}: must begin with epoch 0, and go on with later ones")
    if sizes and (sorted(set(sides)) != sides or len(sides) < 2):
        raise InputError(f"{text}: must name two sizes at least, each larger than the one before")
    if sides and sides[0] < 4:
        raise InputError(f"{text}: must be at least 4 pixels")
    return tuple(zip(firsts, sides, strict=True))


def _shown(sizes: Sequence[Sequence[int]]) -> str:
    return str([list(p) if isinstance(p, Sequence) else p for p in sizes]).replace(" ", "")


def class_probabilities(labels: Tensor, num_classes: int) -> Tensor:
    """(B,) int64 labels in 0..num_classes-1 as (B, num_classes) float32 rows of one 1 each."""
    # F.one_hot may look at the labels' values, which on a GPU is a synchronization
    return (labels[:, None] == torch.arange(num_classes, device=labels.device)).float()


def _box_mask(box: Tensor, images: Tensor) -> Tensor:
    """(B, 1, H, W) bool, true inside [first row, first column, end row, end column)."""
    rows = torch.arange(images.shape[-2], device=box.device)
    columns = torch.arange(images.shape[-1], device=box.device)
    in_rows = (rows >= box[:, 0, None]) & (rows < box[:, 2, None])
    in_columns = (columns >= box[:, 1, None]) & (columns < box[:, 3, None])
    return (in_rows[:, :, None] & in_columns[:, None, :])[:, None]


@lru_cache(maxsize=8)
def _row_starts(
    count: int, channels: int, height: int, width: int, padding: int, device: torch.device
) -> Tensor:
    """(count, channels * height): where row y of each padded plane starts, in bytes."""
    stride = width + 2 * padding
    plane = stride * (height + 2 * padding)
    planes = torch.arange(count * channels, device=device) * plane
    return (planes[:, None] + torch.arange(height, device=device) * stride).view(count, -1)


def _beta(alpha: float, count: int, generator: Generator) -> Tensor:
    # torch draws Beta only from its global generators
    seed = int(torch.randint(0, 2**32, (1,), generator=generator))
    return torch.from_numpy(np.random.RandomState(seed).beta(alpha, alpha, count)).float()
