"""What every source of images becomes: two splits of arrays, their classes, a digest of both."""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from cifar_lab.errors import InputError

# Of CIFAR-10, and of the synthetic images. Label i of the official archive is CLASSES[i]
# (batches.meta: label_names).
CLASSES = (
    "airplane",
    "automobile",
    "bird",
    "cat",
    "deer",
    "dog",
    "frog",
    "horse",
    "ship",
    "truck",
)
# Channel statistics of the official 50,000 training images scaled to [0, 1].
CIFAR10_MEAN = (0.4914, 0.4822, 0.4465)
CIFAR10_STD = (0.2470, 0.2435, 0.2616)
_IMAGES_AT_A_TIME = 1000


def label_type(classes: int) -> np.dtype[np.unsignedinteger]:
    """Of the labels of so many classes, on disk too: one byte, or two with the low one first."""
    return np.dtype(np.uint8 if classes <= 256 else "<u2")


@dataclass(frozen=True)
class Split:
    """Images and labels in a fixed order.

    Attributes:
        images: (N, 3, H, W) uint8, RGB, C-contiguous, often a read-only memory map.
        labels: (N,) of `label_type`, 0 for the first class.
    """

    images: NDArray[np.uint8]
    labels: NDArray[np.unsignedinteger]

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True)
class Channels:
    """Mean and deviation of each channel over all pixels of the images, scaled to [0, 1]."""

    mean: tuple[float, float, float]
    std: tuple[float, float, float]


@dataclass(frozen=True)
class Dataset:
    """A training and a test split, and where they come from.

    Attributes:
        name: "cifar10", "cifar100", "folders", "synthetic", ...
        layout: what was read, e.g. "archive", "pickles", "folders", "zip", "synthetic".
        official: True when the pixels are those of the official archive, byte for byte.
        digest: `digest_of` both splits, 64 hexadecimal digits.
        classes: what the labels 0, 1, ... are called.
        channels: of the training images, where they are known; else `channel_statistics` of them.
    """

    name: str
    layout: str
    official: bool
    digest: str
    classes: tuple[str, ...]
    train: Split
    test: Split
    channels: Channels | None = None

    @property
    def image_size(self) -> tuple[int, ...]:
        """(3, H, W)."""
        return self.train.images.shape[1:]

    @cached_property
    def statistics(self) -> Channels:
        """Channel mean and deviation of the training images; where nobody knew them, computed."""
        return self.channels or channel_statistics(self.train.images)

    @cached_property
    def numbers(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """`number_images` of the training and of the test images; 0.1 s for 60,000, once."""
        train, test = number_images(self.train.images, self.test.images)
        return train, test


def check_splits(dataset: Dataset) -> None:
    """Raises InputError for images or labels that `Split` has not, and for one that is no class."""
    parts = (dataset.train, dataset.test)
    for images, labels in ((part.images, part.labels) for part in parts):
        shape = (len(labels), 3, *dataset.image_size[1:])
        kinds = images.dtype == np.uint8 and labels.dtype.kind in "iu"
        if (
            not kinds
            or images.ndim != 4
            or images.shape != shape
            or labels.ndim != 1
            or not shape[0]
        ):
            raise InputError(
                f"data: {dataset.name} holds images {images.shape} of {images.dtype} and labels "
                f"{labels.shape} of {labels.dtype}; both splits must have (N, 3, H, W) of uint8, "
                "of one size, and (N,) of integers"
            )
    found = [part.labels for part in parts]
    lowest, highest = min(int(part.min()) for part in found), max(int(p.max()) for p in found)
    if lowest < 0 or highest >= len(dataset.classes):
        raise InputError(
            f"data: {dataset.name} holds labels in {lowest}..{highest}; "
            f"they must lie in 0..{len(dataset.classes) - 1}"
        )


def channel_statistics(images: NDArray[np.uint8]) -> Channels:
    """Of (N, 3, H, W) uint8, from exact sums: the same numbers on every machine.

    Raises:
        InputError: a channel has one value everywhere, which nothing can be divided by.
    """
    counts = np.zeros((3, 256), np.int64)
    for start in range(0, len(images), _IMAGES_AT_A_TIME):
        part = images[start : start + _IMAGES_AT_A_TIME]
        for channel in range(3):
            counts[channel] += np.bincount(part[:, channel].ravel(), minlength=256)
    values, pixels = np.arange(256), int(counts[0].sum())
    sums, squares = counts @ values, counts @ values**2
    # in whole numbers up to the root: no rounding of a mean enters the deviation
    spread = [pixels * int(s2) - int(s1) ** 2 for s1, s2 in zip(sums, squares, strict=True)]
    if not all(spread):
        raise InputError(
            "data.normalization=channel: a colour channel of the training images has one value "
            "everywhere; use data.normalization=half"
        )
    scale = 255 * pixels
    red, green, blue = (
        (int(s) / scale, math.sqrt(v) / scale) for s, v in zip(sums, spread, strict=True)
    )
    return Channels((red[0], green[0], blue[0]), (red[1], green[1], blue[1]))


def number_images(*splits: NDArray[np.uint8]) -> list[NDArray[np.int64]]:
    """A number for every image: the same for those that are equal to the byte, and for no others.

    Args:
        splits: (N, ...) each, images of one size, C-contiguous.

    Returns:
        (N,) of each split.
    """
    flat = [images.reshape(len(images), -1) for images in splits]
    _, numbers, counts = np.unique(
        np.concatenate([row_keys(rows) for rows in flat]), return_inverse=True, return_counts=True
    )
    # images with one key are nearly always equal; those with different keys never are
    bounds = np.cumsum([len(rows) for rows in flat])
    seen: dict[bytes, int] = {}
    for place in np.flatnonzero(counts[numbers] > 1):
        part = int(np.searchsorted(bounds, place, side="right"))
        image = flat[part][place - bounds[part]]  # counted from the split's end
        numbers[place] = seen.setdefault(image.tobytes(), len(counts) + len(seen))
    return np.split(numbers.astype(np.int64), bounds[:-1])


def row_keys(rows: NDArray[np.uint8]) -> NDArray[np.uint64]:
    """A 64-bit key for each row: sums of its bytes, eight at a time, times odd random numbers.

    Args:
        rows: (N, bytes) uint8, contiguous; what is left beside a multiple of 8 isn't read.
    """
    whole = rows.shape[1] // 8
    weights = np.random.PCG64(0).random_raw(whole) | np.uint64(1)
    keys: NDArray[np.uint64] = rows[:, : 8 * whole].view(np.uint64) @ weights
    return keys


def split_digest(split: Split) -> str:
    """SHA-256 over the split's pixels, then its labels, in stored order; 64 hexadecimal digits."""
    sha = hashlib.sha256(np.ascontiguousarray(split.images).data)
    sha.update(np.ascontiguousarray(split.labels).data)
    return sha.hexdigest()


def digest_of(train_digest: str, test_digest: str) -> str:
    """The digest of a dataset: SHA-256 over its splits' digests as ASCII, train first."""
    return hashlib.sha256((train_digest + test_digest).encode("ascii")).hexdigest()
