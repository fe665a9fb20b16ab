"""Accuracy under the 15 corruptions, each in five strengths."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from cifar_lab.data.datamodule import DataModule
from cifar_lab.data.dataset import Dataset, Split, digest_of, split_digest
from cifar_lab.inference.corruptions import CORRUPTIONS, STRENGTHS, corrupt, read_archive
from cifar_lab.inference.evaluation import Tester
from cifar_lab.inference.images import feed_of
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
        for dataset in _corrupted(run, data, name):
            values.append(tester.test(feed_of(run, dataset)).accuracy)
            done()
        accuracy[name] = tuple(values)
    return Robustness(accuracy, clean, isinstance(data, DataModule))


def _corrupted(run: Run, data: DataModule | Path, name: str) -> Iterator[Dataset]:
    """Whose test images are corrupted, in each strength."""
    if isinstance(data, DataModule):
        test = data.dataset.test
        for strength in STRENGTHS:
            images = corrupt(test.images, name, strength)
            yield replace(data.dataset, test=Split(images=images, labels=test.labels))
        return
    for _, test in read_archive(data, name):
        digest = digest_of(*[split_digest(test)] * 2)
        yield Dataset("the archive", "npy", False, digest, run.classes, train=test, test=test)
