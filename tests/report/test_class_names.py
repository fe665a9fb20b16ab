"""The report calls the classes what the dataset calls them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from cifar_lab.report.compare import Confusion, confusions, rank
from cifar_lab.report.figures import confusion_matrix
from cifar_lab.report.groups import group
from cifar_lab.report.read import Reader
from tests.report.conftest import write_run


@pytest.mark.parametrize("count", [2, 7, 21, 300])
def test_the_figure_names_them_while_names_can_be_read(count: int) -> None:
    names = tuple(f"${number}_${{" for number in range(count))  # no mathematics, whatever it says
    figure = confusion_matrix(Confusion("a", 1, np.eye(count, dtype=np.int64), names))
    figure.canvas.draw()
    axes = figure.axes[0]
    shown = [label.get_text().replace(r"\$", "$") for label in axes.get_yticklabels()]
    assert (shown == list(names)) is (count <= 100)


def test_matrices_of_many_classes_are_the_best_configurations_alone(tmp_path: Path) -> None:
    for count, expected in ((100, 2), (101, 1)):
        for name, lr in (("a", 0.1), ("b", 0.2)):
            folder = write_run(tmp_path / str(count) / name, lr=lr)
            classes = np.array([f"kind {number}" for number in range(count)])
            logits = np.eye(count)[np.arange(5)]
            np.savez(
                folder / "predictions.npz", labels=np.arange(5), logits=logits, classes=classes
            )
        groups, _ = group(Reader(tmp_path / str(count)).read().runs)
        [ranking] = rank(groups)
        found = confusions(ranking)
        assert len(found) == expected
        assert found[0].classes == tuple(classes)
        assert found[0].counts.shape == (count, count)
