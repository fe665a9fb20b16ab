"""Images that occur more than once: how many, and what that does to an accuracy.

Exact copies alone, pixel for pixel. What was encoded anew, shifted or cropped is not found:
CIFAR-10 itself has such near-duplicates (Barz and Denzler 2020, Do We Train on Test Data?).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
from numpy.typing import NDArray

from cifar_lab.data.dataset import Dataset
from cifar_lab.records.record import Data


def count_copies(
    data: Dataset, train_rows: NDArray[np.int64], val_rows: NDArray[np.int64]
) -> dict[str, int]:
    """How many images occur twice.

    Args:
        data: both splits.
        train_rows: the rows of the training split that train.
        val_rows: those that are held out.

    Returns:
        test_in_train: test images that the training split, held-out images included, holds too.
        val_in_train: held-out images that are also among those that train.
        train: images of the training split that repeat another of it.
        test: images of the test split that repeat another of it.
        contradicting: images, each counted once, that occur with more than one label.
    """
    train, test = data.numbers
    numbers = np.concatenate([train, test])
    labels = np.concatenate([data.train.labels, data.test.labels])
    classes = len(data.classes)
    labelled = np.unique(numbers * classes + labels)
    return {
        "test_in_train": int(np.isin(test, train).sum()),
        "val_in_train": int(np.isin(train[val_rows], train[train_rows]).sum()),
        "train": len(train) - len(np.unique(train)),
        "test": len(test) - len(np.unique(test)),
        "contradicting": int((np.unique(labelled // classes, return_counts=True)[1] > 1).sum()),
    }


def lines_of(data: Dataset) -> list[str]:
    """What there is to say of a data set's copies, held-out images apart; empty without any."""
    rows = np.arange(len(data.train))
    copies = count_copies(data, rows, rows[:0])
    images = {"train": len(data.train), "val": 0, "test": len(data.test)}
    lines = [
        fact if data.official else f"{fact}: {verdict}" for fact, verdict in _shared(images, copies)
    ]
    for split, name in (("train", "training"), ("test", "test")):
        if count := copies[split]:
            lines.append(f"{count:,} of the {images[split]:,} {name} images repeat another of them")
    if count := copies["contradicting"]:
        lines.append(f"{count:,} different images occur with more than one label")
    return lines


def warnings_of(data: Data) -> list[str]:
    """What makes an accuracy too high, one line each; nothing of the official images.

    Those are the benchmark, and their accuracies are compared as they are.

    Args:
        data: of a record; that of an older version has no such counts, and nothing to say.
    """
    if data.official or not data.images or not data.duplicates:
        return []
    return [f"{fact}: {verdict}" for fact, verdict in _shared(data.images, data.duplicates)]


def _shared(images: Mapping[str, int], copies: Mapping[str, int]) -> Iterator[tuple[str, str]]:
    """(what is so, what follows) of images that train and are evaluated."""
    for split, name, which, accuracy in (
        ("test", "test", "training images", "test"),
        ("val", "held-out", "among those that train", "validation"),
    ):
        count, total = copies[f"{split}_in_train"], images[split]
        if count:
            yield (
                f"{count:,} of the {total:,} {name} images are also {which} (exact copies)",
                f"the {accuracy} accuracy will be too high, by up to "
                f"{100 * count / total:.3g} points",
            )
