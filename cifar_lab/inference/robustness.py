"""Accuracy under the 15 corruptions, each in five strengths."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from cifar_lab.data.datamodule import DataModule
from cifar_lab.data.dataset import Dataset, Split, digest_of, split_digest
from cifar_lab.inference.corruptions import CORRUPTIONS, STRENGTHS, corrupt, read_archive
from cifar_lab.inference.evaluation import Tester
from cifar_lab.inference.images import feed_of, with_test_images
from cifar_lab.run.load import Run

DRAWN_HERE = (
    "drawn here from fixed seeds, with the strengths of CIFAR-10-C and a frost of its own: "
    "not comparable with figures of the published archive"
)


@dataclass(frozen=True)
class Robustness:
    """What corruptions do to a run.

    Attributes:
        accuracy: by corruption, of the five strengths.
        clean: accuracy on the images as they are; None of an archive, which has none.
        drawn_here: they were made by `corrupt`, and not read from the authors' archive.
    """

    accuracy: dict[str, tuple[float, ...]]
    clean: float | None
    drawn_here: bool

    @property
    def mean_error(self) -> float:
        """Mean corruption error: of 15 corruptions of five strengths each, not normalized.

        The paper divides by AlexNet's errors, which is of ImageNet; of CIFAR-10-C the plain mean is
        what is reported.
        """
        means = [sum(values) / len(values) for values in self.accuracy.values()]
        return 1 - sum(means) / len(means)


def measure(
    run: Run,
    tester: Tester,
    data: DataModule | Path,
    *,
    clean: float | None,
    done: Callable[[], object] = lambda: None,
) -> Robustness:
    """Tests a run on corrupted images.

    Args:
        run: as `load_run` gives it.
        tester: of the run.
        data: opened, whose test images are corrupted here; or the authors' archive, unpacked.
        clean: the accuracy on the images as they are.
        done: called after each of the 75 tests.
    """
    accuracy: dict[str, tuple[float, ...]] = {}
    for name in CORRUPTIONS:
        values = []
        for test in _splits(data, name):
            feed = (
                with_test_images(run, data, test)
                if isinstance(data, DataModule)
                else feed_of(run, _dataset(test, run))
            )
            values.append(tester.test(feed).accuracy)
            done()
        accuracy[name] = tuple(values)
    return Robustness(accuracy, clean, isinstance(data, DataModule))


def _splits(data: DataModule | Path, name: str) -> Iterator[Split]:
    if isinstance(data, Path):
        yield from (split for _, split in read_archive(data, name))
        return
    test = data.dataset.test
    for strength in STRENGTHS:
        yield Split(images=corrupt(test.images, name, strength), labels=test.labels)


def _dataset(test: Split, run: Run) -> Dataset:
    digest = split_digest(test)
    return Dataset(
        "the archive", "npy", False, digest_of(digest, digest), run.classes, train=test, test=test
    )
