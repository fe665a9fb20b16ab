"""What a person looks at after the test: confusions, accuracy per class, and the worst mistakes."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities import rank_zero_only
from numpy.typing import NDArray
from torch import Tensor

from cifar_lab.training.lightning_internals import datamodule_of, logged_step
from cifar_lab.training.loggers.tensorboard import decoration

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WORST = 36  # six rows of six can still be read on a laptop
FEW, MANY = 20, 100  # classes whose counts, and whose names, can be read
_COLUMNS = 6
_DPI = 110
# Of a mistake, in 32nds of the image's side: width and height with its caption, of which caption.
_CELL, _CAPTION = (44, 48), 15
_ZOOM = 4  # screen pixels per 32nd
_CELL_INCHES = (_ZOOM * _CELL[0] / _DPI, _ZOOM * _CELL[1] / _DPI)
_HEAD_INCHES = 0.6
# Okabe and Ito's blue and vermilion: told apart with any of the common colour blindnesses
_BLUE, _VERMILION = "#0072B2", "#D55E00"


class PredictionFigures(Callback):
    """Draws the test into TensorBoard; does nothing without one.

    Pictures ``test/confusion_matrix``, ``test/per_class_accuracy`` and ``test/worst_mistakes``, and
    a precision-recall curve per class, ``precision_recall/<class>``. What can't be drawn is left
    out, and the log says why.

    The module gives ``test_logits`` (N, C) and ``test_labels`` (N,) after its test epoch, in the
    order of ``trainer.datamodule.dataset.test.images``, of which N may be the first part.
    """

    @rank_zero_only
    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draws; matplotlib is imported here, at the end of the run, and nowhere before."""
        boards = [logger for logger in trainer.loggers if isinstance(logger, TensorBoardLogger)]
        if boards:
            with decoration("the pictures of the test"):
                _draw(trainer, pl_module, boards)


def _draw(trainer: Trainer, module: LightningModule, boards: Sequence[TensorBoardLogger]) -> None:
    logits, labels = module.test_logits, module.test_labels
    assert isinstance(logits, Tensor)
    assert isinstance(labels, Tensor)
    if not len(labels):
        return
    dataset = datamodule_of(trainer).dataset
    names = dataset.classes
    matrix = confusion_matrix(logits, labels)
    drawings: dict[str, Callable[[], Figure]] = {
        "test/confusion_matrix": lambda: draw_confusion_matrix(matrix, names),
        "test/per_class_accuracy": lambda: draw_per_class_accuracy(matrix, names),
        "test/worst_mistakes": lambda: draw_worst_mistakes(
            dataset.test.images, logits, labels, names
        ),
    }
    # the step of the test's own scalars
    step = logged_step(trainer)
    for name, draw in drawings.items():
        with decoration(name):
            pixels = rendered(draw())
            for board in boards:
                board.experiment.add_image(name, pixels, step, dataformats="HWC")
    for board in boards:
        with decoration("the precision-recall curves"):
            add_pr_curves(board, logits, labels, names, step)
        board.save()


def add_pr_curves(
    board: TensorBoardLogger, logits: Tensor, labels: Tensor, names: Sequence[str], step: int
) -> None:
    """Writes ``precision_recall/<class>`` for each class that has an image.

    Args:
        board: where to.
        logits: (N, C).
        labels: (N,) int64.
        names: of the C classes.
        step: of the curves.
    """
    probabilities, truth = logits.softmax(1).numpy(), labels.numpy()
    for index, name in enumerate(names):
        if (truth == index).any():  # without an image of the class there is no recall
            board.experiment.add_pr_curve(
                f"precision_recall/{name}", truth == index, probabilities[:, index], step
            )


def confusion_matrix(logits: Tensor, labels: Tensor) -> NDArray[np.int64]:
    """(C, C) counts: rows are true classes, columns predicted ones.

    Args:
        logits: (N, C).
        labels: (N,) int64.
    """
    from torchmetrics.functional.classification import multiclass_confusion_matrix

    counts = multiclass_confusion_matrix(logits, labels, num_classes=logits.shape[1])
    matrix: NDArray[np.int64] = counts.numpy().astype(np.int64)
    return matrix


def worst_mistakes(
    logits: Tensor, labels: Tensor, count: int, *, confident: bool = False
) -> list[int]:
    """Indices of the wrongly classified images, worst first.

    Args:
        logits: (N, C).
        labels: (N,) int64.
        count: at most this many.
        confident: the worst are those with the highest probability, and not those with the loss.
    """
    losses = torch.nn.functional.cross_entropy(logits, labels, reduction="none")
    by = logits.softmax(1).amax(1) if confident else losses
    wrong = (logits.argmax(1) != labels).nonzero().flatten()
    return [int(i) for i in wrong[by[wrong].argsort(descending=True, stable=True)[:count]]]


def draw_confusion_matrix(matrix: NDArray[np.int64], classes: Sequence[str]) -> Figure:
    """Counts in the cells; the colour is the share of the true class, on a square-root scale.

    Beyond `FEW` classes there are no counts, and beyond `MANY` no names: nobody could read them,
    and of a thousand classes they would take hours to draw.
    """
    figure, axes = _figure(8.4, 7.6, left=0.14, right=0.98, bottom=0.14, top=0.94)
    share = matrix / np.maximum(1, matrix.sum(axis=1, keepdims=True))
    # the square root: confusions of 2% and of 10% have to look different beside a diagonal of 90%
    axes.imshow(np.sqrt(share), cmap="Blues", vmin=0.0, vmax=1.0, aspect="auto")
    cells = np.ndenumerate(matrix) if len(classes) <= FEW else ()
    for (row, column), count in cells:
        colour = "white" if share[row, column] > 0.3 else "#333333" if count else "#bbbbbb"
        weight = "bold" if row == column else "normal"
        axes.text(
            column, row, f"{count}", ha="center", va="center", color=colour, fontweight=weight
        )
    if len(classes) <= MANY:
        ticks = range(len(classes))
        size = _name_size(len(classes))
        names = [_plain(name) for name in classes]
        axes.set_xticks(
            ticks, names, rotation=40, ha="right", rotation_mode="anchor", fontsize=size
        )
        axes.set_yticks(ticks, names, fontsize=size)
    axes.set_xlabel("predicted class")
    axes.set_ylabel("true class")
    total, correct = int(matrix.sum()), int(np.trace(matrix))
    axes.set_title(f"{correct:,} of {total:,} test images correct ({100 * correct / total:.1f} %)")
    axes.tick_params(length=0)
    _bare(axes)
    return figure


def draw_per_class_accuracy(matrix: NDArray[np.int64], classes: Sequence[str]) -> Figure:
    """A bar per class, best first, the mean as a line; classes without images are left out.

    Beyond `FEW` classes the bars have no numbers, and beyond `MANY` no names.
    """
    figure, axes = _figure(8.0, 4.6, left=0.13, right=0.98, bottom=0.12, top=0.92)
    totals = matrix.sum(axis=1)
    present = [index for index in range(len(classes)) if totals[index]]
    accuracy = {index: 100 * matrix[index, index] / totals[index] for index in present}
    order = sorted(present, key=lambda index: accuracy[index])
    values = [accuracy[index] for index in order]
    axes.barh(range(len(order)), values, color=_BLUE, height=0.7)
    axes.set_yticks([])
    if len(order) <= MANY:
        names = [_plain(classes[index]) for index in order]
        axes.set_yticks(range(len(order)), names, fontsize=_name_size(len(order)))
    if len(order) <= FEW:
        for place, value in enumerate(values):
            axes.text(109, place, f"{value:.1f}", ha="right", va="center")
    mean = 100 * np.trace(matrix) / totals.sum()
    axes.axvline(mean, color=_VERMILION, linewidth=1.5, linestyle="--")
    axes.set_title(f"Accuracy per class (dashed: all images, {mean:.1f} %)")
    axes.set_xlabel("accuracy on the test images (%)")
    axes.set_xlim(0, 110)
    axes.set_xticks(range(0, 101, 20))
    axes.tick_params(axis="y", length=0)
    _bare(axes)
    return figure


def draw_worst_mistakes(
    images: NDArray[np.uint8],
    logits: Tensor,
    labels: Tensor,
    classes: Sequence[str],
    *,
    confident: bool = False,
) -> Figure:
    """Up to `WORST` mistakes, worst first: true class, predicted class and its probability.

    One image with captions: 36 axes take eight times as long to draw.

    Args:
        images: (M, 3, S, S), of which the first N belong to the logits.
        logits: (N, C).
        labels: (N,) int64.
        confident: the worst are those with the highest probability, and not those with the loss.
    """
    worst = worst_mistakes(logits, labels, WORST, confident=confident)
    first = "probability" if confident else "loss"
    rows = max(1, math.ceil(len(worst) / _COLUMNS))
    height = rows * _CELL_INCHES[1] + _HEAD_INCHES
    figure, axes = _figure(
        _COLUMNS * _CELL_INCHES[0],
        height,
        left=0,
        right=1,
        bottom=0,
        top=1 - _HEAD_INCHES / height,
    )
    axes.set_axis_off()
    if not worst:
        figure.text(0.5, 0.5, f"No mistakes in {len(labels):,} test images", ha="center", size=14)
        return figure
    wrong = int((logits.argmax(1) != labels).sum())
    figure.text(
        0.5,
        1 - 0.5 * _HEAD_INCHES / height,
        f"{len(worst)} of {wrong:,} mistakes in {len(labels):,} test images, "
        f"highest {first} first\n"
        "true class → predicted class, and the probability it was given",
        ha="center",
        va="center",
        size=12,
    )
    side = images.shape[-1]
    nearest = side <= 32 * _ZOOM  # what is drawn smaller than it is needs the mean of its pixels
    axes.imshow(
        _sheet(images, worst, rows),
        interpolation="nearest" if nearest else "antialiased",
        aspect="auto",
    )
    width, height, caption = (side * part / 32 for part in (*_CELL, _CAPTION - 1.5))
    probabilities = logits[worst].softmax(1)
    for place, index in enumerate(worst):
        row, column = divmod(place, _COLUMNS)
        guess = int(probabilities[place].argmax())
        axes.text(
            (column + 0.5) * width - 0.5,
            row * height + caption,
            f"{_plain(classes[int(labels[index])])} →\n"
            f"{_plain(classes[guess])} {100 * float(probabilities[place, guess]):.0f} %",
            ha="center",
            va="bottom",
            fontsize=10,
        )
    return figure


def _sheet(images: NDArray[np.uint8], chosen: Sequence[int], rows: int) -> NDArray[np.uint8]:
    """(rows * 48, columns * 44, 3) of images of 32x32, else in proportion: the images in cells,
    with white room for a caption above.
    """
    side = images.shape[-1]
    width, height, caption = (round(side * part / 32) for part in (*_CELL, _CAPTION))
    sheet = np.full((rows * height, _COLUMNS * width, 3), 255, np.uint8)
    for place, index in enumerate(chosen):
        row, column = divmod(place, _COLUMNS)
        top, left = row * height + caption, column * width + (width - side) // 2
        sheet[top : top + side, left : left + side] = images[index].transpose(1, 2, 0)
    return sheet


def _plain(name: str) -> str:
    """A class's name as text: between two dollars matplotlib reads mathematics."""
    return name.replace("$", r"\$")


def rendered(figure: Figure) -> NDArray[np.uint8]:
    """(height, width, 3) uint8; draws in memory, without a display and without pyplot's state."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()


def _figure(width: float, height: float, **margins: float) -> tuple[Figure, Axes]:
    # fixed margins: a layout engine draws every text twice, which doubles the time
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=_DPI, facecolor="white")
    figure.subplots_adjust(**margins)
    return figure, figure.add_subplot()


def _name_size(count: int) -> float:
    return 10 if count <= FEW else 4  # points; 10 is matplotlib's own


def _bare(axes: Axes) -> None:
    for side in ("top", "right", "left", "bottom"):
        axes.spines[side].set_visible(False)
