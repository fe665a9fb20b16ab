"""The classes of a dataset: the one place that knows how many there are, and their names."""

from __future__ import annotations

from cifar_lab.data.dataset import CLASSES, Dataset
from cifar_lab.errors import InputError

_NAMED = ("cifar10", "synthetic")  # the datasets whose labels `CLASSES` names


def class_names(dataset: Dataset) -> tuple[str, ...]:
    """What the labels 0, 1, ... are called: where nobody has named them, their numbers.

    Raises:
        InputError: a label that is no class.
    """
    labels = [part.labels for part in (dataset.train, dataset.test) if len(part)]
    lowest, highest = min(int(part.min()) for part in labels), max(int(p.max()) for p in labels)
    names: tuple[str, ...] = CLASSES
    if dataset.name not in _NAMED:
        names = tuple(str(label) for label in range(highest + 1))
    if lowest < 0 or highest >= len(names):
        raise InputError(
            f"data: {dataset.name} holds labels in {lowest}..{highest}; "
            f"they must lie in 0..{len(names) - 1}"
        )
    return names
