"""What every source of images becomes: two splits of uint8 arrays, and a digest that names them."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

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


def split_digest(split: Split) -> str:
    """SHA-256 over the split's pixels, then its labels, in stored order; 64 hexadecimal digits."""
    sha = hashlib.sha256(np.ascontiguousarray(split.images).data)
    sha.update(np.ascontiguousarray(split.labels).data)
    return sha.hexdigest()


def digest_of(train_digest: str, test_digest: str) -> str:
    """The digest of a dataset: SHA-256 over its splits' digests as ASCII, train first."""
    return hashlib.sha256((train_digest + test_digest).encode("ascii")).hexdigest()
