"""Accuracy under the 15 corruptions, each in five strengths."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from cifar_lab.data.datamodule import DataModule
from cifar_lab.data.dataset import CLASSES, Dataset, Split, digest_of, split_digest
from cifar_lab.data.fetch.cifar100 import FINE_CLASSES
from cifar_lab.inference.corruptions import CORRUPTIONS, STRENGTHS, corrupt, read_archive
from cifar_lab.inference.evaluation import Tester
from cifar_lab.inference.images import feed_of
from cifar_lab.run.load import Run

DRAWN_HERE = (
    "drawn here from fixed seeds, with the strengths of CIFAR-10-C and a frost of its own: "
    "not comparable with figures of the published archive"
)
_NO_NAMES = (
    "names no classes, and this run's are neither CIFAR-10's nor CIFAR-100's: label i is taken for "
    "the run's class i"
)


@dataclass(frozen=True)
class Robustness:
    """What corruptions do to a run.

    Attributes:
        accuracy: by corruption, of the five strengths.
        clean: accuracy on the images as they are; None of an archive, which has none.
        drawn_here: they were made by `corrupt`, and not read from the authors' archive.
        notes: what else a reader has to know, a line each.
    """

    accuracy: dict[str, tuple[float, ...]]
    clean: float | None
    drawn_here: bool
    notes: tuple[str, ...] = ()

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
    drawn_here = isinstance(data, DataModule)
    notes = () if drawn_here or _known(run) else (f"{data}: {_NO_NAMES}",)
    for name in CORRUPTIONS:
        values = []
        for dataset in _corrupted(run, data, name):
            values.append(tester.test(feed_of(run, dataset)).accuracy)
            done()
        accuracy[name] = tuple(values)
    return Robustness(accuracy, clean, drawn_here, notes)


def _known(run: Run) -> tuple[str, ...]:
    """The classes of the authors' archive that has this run's, in their order; else none."""
    for classes in (CLASSES, FINE_CLASSES):
        if set(classes) == set(run.classes):
            return classes
    return ()


def _corrupted(run: Run, data: DataModule | Path, name: str) -> Iterator[Dataset]:
    """Whose test images are corrupted, in each strength."""
    if isinstance(data, DataModule):
        test = data.dataset.test
        for strength in STRENGTHS:
            images = corrupt(test.images, name, strength)
            yield replace(data.dataset, test=Split(images=images, labels=test.labels))
        return
    classes = _known(run) or run.classes
    for _, test in read_archive(data, name):
        digest = digest_of(*[split_digest(test)] * 2)
        yield Dataset("the archive", "npy", False, digest, classes, train=test, test=test)
