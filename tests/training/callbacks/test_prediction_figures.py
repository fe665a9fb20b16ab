from __future__ import annotations

import io
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib.patches import Rectangle
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.util import tensor_util

from cifar_lab.data.dataset import CLASSES
from cifar_lab.training.callbacks import prediction_figures as pictures
from cifar_lab.training.callbacks.prediction_figures import (
    PredictionFigures,
    confusion_matrix,
    worst_mistakes,
)
from cifar_lab.training.loggers.metrics_csv import MetricsCsv
from cifar_lab.training.loggers.tensorboard import TensorBoard
from tests.support.toy import MakeData, MakeTrainer, Toy

TAGS = {"test/confusion_matrix", "test/per_class_accuracy", "test/worst_mistakes"}


def logits_for(predicted: list[int], confidence: float = 4.0) -> torch.Tensor:
    return confidence * torch.nn.functional.one_hot(torch.tensor(predicted), 10).float()


def some(count: int, *, wrong: int) -> tuple[np.ndarray, torch.Tensor, torch.Tensor]:
    labels = torch.arange(count) % 10
    predicted = [(int(y) + (i < wrong)) % 10 for i, y in enumerate(labels)]
    images = np.random.default_rng(0).integers(0, 256, (count, 3, 32, 32), np.uint8)
    return images, logits_for(predicted), labels


def test_rows_are_true_classes_and_columns_predicted_ones() -> None:
    matrix = confusion_matrix(logits_for([5, 5, 3]), torch.tensor([3, 3, 3]))
    assert matrix[3, 5] == 2
    assert matrix[3, 3] == 1
    assert matrix.sum() == 3


def test_worst_mistakes_are_wrong_and_sorted_by_loss() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(500, 10, generator=generator)
    labels = torch.randint(0, 10, (500,), generator=generator)
    worst = worst_mistakes(logits, labels, 36)
    losses = [float(torch.nn.functional.cross_entropy(logits[i], labels[i])) for i in worst]
    assert losses == sorted(losses, reverse=True)
    assert all(logits[i].argmax() != labels[i] for i in worst)
    wrong = (logits.argmax(1) != labels).nonzero().flatten().tolist()
    every = [float(torch.nn.functional.cross_entropy(logits[i], labels[i])) for i in wrong]
    assert losses == pytest.approx(sorted(every, reverse=True)[:36])


def test_worst_mistakes_never_has_more_than_there_are() -> None:
    _, logits, labels = some(50, wrong=3)
    assert sorted(worst_mistakes(logits, labels, 36)) == [0, 1, 2]


@pytest.mark.parametrize("wrong", [0, 1, 7, 50])
def test_the_sheet_has_a_caption_per_mistake_up_to_36(wrong: int) -> None:
    figure = pictures.draw_worst_mistakes(*some(50, wrong=wrong), CLASSES)
    (axes,) = figure.axes
    assert len(axes.texts) == min(36, wrong)
    assert pictures.rendered(figure).std() > 0


def test_a_mistake_is_captioned_with_both_classes_and_the_probability() -> None:
    images, logits, labels = some(10, wrong=1)
    (axes,) = pictures.draw_worst_mistakes(images, logits, labels, CLASSES).axes
    share = 100 * float(logits[0].softmax(0)[1])
    (caption,) = axes.texts
    assert caption.get_text() == f"airplane →\nautomobile {share:.0f} %"


def test_the_sheet_shows_the_mistakes_images_worst_first() -> None:
    images, logits, labels = some(50, wrong=7)
    logits *= torch.linspace(2, 1, 50)[:, None]  # the first one is the most confident mistake
    sheet = pictures.draw_worst_mistakes(images, logits, labels, CLASSES).axes[0].images[0]
    shown = np.asarray(sheet.get_array())
    width, height = shown.shape[1] // 6, shown.shape[0] // 2
    for place in range(7):
        row, column = divmod(place, 6)
        cell = shown[row * height : (row + 1) * height, column * width : (column + 1) * width]
        rows, columns = np.nonzero((cell != 255).any(axis=2))
        top, left = rows.min(), columns.min()
        picture = cell[top : top + 32, left : left + 32]
        assert np.array_equal(picture, images[place].transpose(1, 2, 0))


def test_no_text_is_cut_off_at_the_edge() -> None:
    images, logits, labels = some(50, wrong=50)
    matrix = confusion_matrix(logits, labels)
    for figure in (
        pictures.draw_confusion_matrix(1000 * matrix, CLASSES),
        pictures.draw_per_class_accuracy(matrix, CLASSES),
        pictures.draw_worst_mistakes(images, logits, labels, CLASSES),
    ):
        edges = np.concatenate([side.reshape(-1, 3) for side in border(pictures.rendered(figure))])
        assert (edges == 255).all()


def border(pixels: np.ndarray) -> list[np.ndarray]:
    return [pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]]


def test_the_confusion_matrix_names_classes_and_shows_every_count() -> None:
    matrix = confusion_matrix(*some(50, wrong=7)[1:])
    figure = pictures.draw_confusion_matrix(matrix, CLASSES)
    (axes,) = figure.axes
    assert [int(text.get_text()) for text in axes.texts] == matrix.flatten().tolist()
    assert [label.get_text() for label in axes.get_yticklabels()] == list(CLASSES)
    assert axes.get_title() == "43 of 50 test images correct (86.0 %)"


def test_classes_without_test_images_have_no_bar() -> None:
    matrix = confusion_matrix(*some(5, wrong=1)[1:])
    (axes,) = pictures.draw_per_class_accuracy(matrix, CLASSES).axes
    assert len(axes.patches) == 5
    bars = [patch for patch in axes.patches if isinstance(patch, Rectangle)]
    assert sorted(bar.get_width() for bar in bars) == [0, 100, 100, 100, 100]


def test_a_real_test_draws_three_pictures_at_the_step_of_its_scalars(
    tmp_path: Path, toy: Toy, toy_data: MakeData, make_trainer: MakeTrainer
) -> None:
    trainer = make_trainer(logger=TensorBoard(save_dir=tmp_path), callbacks=[PredictionFigures()])
    trainer.fit(toy, datamodule=toy_data())
    trainer.test(toy, datamodule=toy_data(), verbose=False)
    read = EventAccumulator(str(tmp_path / "tensorboard"))
    read.Reload()
    assert set(read.Tags()["images"]) == TAGS
    curves = {tag for tag in read.Tags()["tensors"] if tag.startswith("precision_recall/")}
    labels = {CLASSES[label] for label in toy.test_labels.tolist()}
    assert curves == {f"precision_recall/{name}" for name in labels}
    for tag in TAGS:
        (event,) = read.Images(tag)
        assert event.step == read.Scalars("test/acc")[0].step
        assert Image.open(io.BytesIO(event.encoded_image_string)).size > (400, 100)


def test_a_precision_recall_curve_counts_what_lies_above_its_thresholds(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    logits = 2 * torch.randn(500, 10, generator=generator)
    labels = torch.randint(0, 10, (500,), generator=generator)
    board = TensorBoard(save_dir=tmp_path)
    pictures.add_pr_curves(board, logits, labels, CLASSES, 7)
    board.save()
    read = EventAccumulator(str(tmp_path / "tensorboard"), size_guidance={"tensors": 0})
    read.Reload()
    (event,) = read.Tensors("precision_recall/cat")
    tp, fp, _, _, precision, recall = tensor_util.make_ndarray(event.tensor_proto)
    index, probability = CLASSES.index("cat"), logits.softmax(1)[:, CLASSES.index("cat")]
    for place in (1, 30, 60, 90):
        chosen = (probability * 126).floor() >= place
        hits = int((chosen & (labels == index)).sum())
        assert precision[place] == pytest.approx(hits / int(chosen.sum()))
        assert recall[place] == pytest.approx(hits / int((labels == index).sum()))
        assert (tp[place], fp[place]) == (hits, int(chosen.sum()) - hits)


def test_limited_test_batches_are_drawn_with_their_own_images(
    tmp_path: Path, toy: Toy, toy_data: MakeData, make_trainer: MakeTrainer
) -> None:
    board = TensorBoard(save_dir=tmp_path)
    trainer = make_trainer(logger=board, callbacks=[PredictionFigures()], limit_test_batches=1)
    trainer.test(toy, datamodule=toy_data(), verbose=False)
    read = EventAccumulator(str(tmp_path / "tensorboard"))
    read.Reload()
    assert set(read.Tags()["images"]) == TAGS


def test_without_a_tensorboard_nothing_is_drawn(
    tmp_path: Path,
    toy: Toy,
    toy_data: MakeData,
    make_trainer: MakeTrainer,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(pictures, "rendered", lambda figure: pytest.fail("drew"))
    for logger in (False, MetricsCsv(save_dir=tmp_path)):
        trainer = make_trainer(logger=logger, callbacks=[PredictionFigures()])
        trainer.test(toy, datamodule=toy_data(), verbose=False)
        toy.outputs = []


def test_an_empty_test_draws_nothing(tmp_path: Path, toy: Toy) -> None:
    toy.test_logits, toy.test_labels = torch.empty(0, 10), torch.empty(0, dtype=torch.int64)
    board = TensorBoard(save_dir=tmp_path / "run")
    trainer: Any = SimpleNamespace(loggers=[board])
    PredictionFigures().on_test_end(trainer, toy)
    assert not (tmp_path / "run").exists()
