"""What every source of images becomes: two splits of uint8 arrays, and a digest that names them."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

# Label i of the official archive is CLASSES[i] (batches.meta: label_names).
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


@dataclass(frozen=True)
class Split:
    """Images and labels in a fixed order.

    Attributes:
        images: (N, 3, 32, 32) uint8, RGB, C-contiguous, often a read-only memory map.
        labels: (N,) uint8 in 0..9, likewise.
    """

    images: NDArray[np.uint8]
    labels: NDArray[np.uint8]

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True)
class Dataset:
    """A training and a test split, and where they come from.

    Attributes:
        name: "cifar10" or "synthetic".
        layout: what was read, e.g. "archive", "pickles", "folders", "zip", "synthetic".
        official: True when the pixels are those of the official archive, byte for byte.
        digest: `digest_of` both splits, 64 hexadecimal digits.
    """

    name: str
    layout: str
    official: bool
    digest: str
    train: Split
    test: Split

    @cached_property
    def numbers(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """`number_images` of the training and of the test images; 0.1 s for 60,000, once."""
        train, test = number_images(self.train.images, self.test.images)
        return train, test


def number_images(*splits: NDArray[np.uint8]) -> list[NDArray[np.int64]]:
    """A number for every image: the same for those that are equal to the byte, and for no others.

    Args:
        splits: (N, ...) each, images of one size, C-contiguous.

    Returns:
        (N,) of each split.
    """
    flat = [images.reshape(len(images), -1) for images in splits]
    _, numbers, counts = np.unique(
        np.concatenate([_keys(rows) for rows in flat]), return_inverse=True, return_counts=True
    )
    # images with one key are nearly always equal; those with different keys never are
    bounds = np.cumsum([len(rows) for rows in flat])
    seen: dict[bytes, int] = {}
    for place in np.flatnonzero(counts[numbers] > 1):
        part = int(np.searchsorted(bounds, place, side="right"))
        image = flat[part][place - bounds[part]]  # counted from the split's end
        numbers[place] = seen.setdefault(image.tobytes(), len(counts) + len(seen))
    return np.split(numbers.astype(np.int64), bounds[:-1])


def _keys(rows: NDArray[np.uint8]) -> NDArray[np.uint64]:
    """A 64-bit key for each row: sums of its bytes, eight at a time, times odd random numbers."""
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
