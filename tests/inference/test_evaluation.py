"""Figures of an evaluation against plain references, and the laws of what is averaged."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import stats

from cifar_lab.errors import InputError
from cifar_lab.inference import evaluation
from cifar_lab.inference.evaluation import (
    Outputs,
    calibration,
    ensemble,
    fit_temperature,
    summarize,
)
from cifar_lab.inference.images import own_images
from cifar_lab.run.load import load_run


def drawn(count: int = 4000, classes: int = 5, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits whose probabilities are right: labels are drawn from them."""
    generator = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn(count, classes, generator=generator)
    labels = torch.multinomial(logits.softmax(1), 1, generator=generator).flatten()
    return logits, labels


def outputs(logits: torch.Tensor, labels: torch.Tensor) -> Outputs:
    right = int((logits.argmax(1) == labels).sum())
    return Outputs(logits, labels, None, right / len(labels))


@pytest.mark.parametrize("scale", [0.25, 1.0, 4.0])
def test_the_temperature_takes_a_scale_out_again(scale: float) -> None:
    logits, labels = drawn()
    assert fit_temperature(scale * logits, labels) == pytest.approx(scale, rel=0.05)
    honest = calibration(logits, labels)
    assert honest.ece < 0.02
    if scale != 1:
        assert calibration(scale * logits, labels).ece > 3 * honest.ece


def test_a_temperature_is_finite_where_every_answer_is_right() -> None:
    labels = torch.arange(10)
    assert 0.05 <= fit_temperature(10 * torch.eye(10), labels) < 1


def test_the_calibration_error_is_that_of_the_figures_bins() -> None:
    logits, labels = drawn()
    found = calibration(3 * logits, labels)
    assert sum(b.images for b in found.bins) == len(labels)
    gaps = [
        b.images * abs(b.accuracy - b.confidence)
        for b in found.bins
        if b.accuracy is not None and b.confidence is not None
    ]
    assert found.ece == pytest.approx(sum(gaps) / len(labels), rel=1e-4)
    assert all(b.low <= b.confidence <= b.high for b in found.bins if b.confidence is not None)


def test_recall_precision_matrix_and_interval() -> None:
    logits, labels = drawn(300)
    one = summarize("x", outputs(logits, labels), ("a", "b", "c", "d", "e"))
    said = logits.argmax(1)
    for index, its in enumerate(one.classes):
        assert its.recall == pytest.approx(float((said[labels == index] == index).float().mean()))
        assert its.precision == pytest.approx(
            float((labels[said == index] == index).float().mean())
        )
        assert its.images == int((labels == index).sum()) == one.matrix[index].sum()
    assert np.trace(one.matrix) / one.images == one.accuracy
    p, n, z = one.accuracy, one.images, stats.norm.ppf(0.975)
    middle = (p + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z / (1 + z**2 / n) * np.sqrt(p * (1 - p) / n + z**2 / (4 * n**2))
    assert one.low == pytest.approx(middle - half)
    assert one.high == pytest.approx(middle + half)
    assert one.temperature is None
    absent = summarize("x", outputs(logits[:, :2], labels * 0), ("a", "b"))
    assert absent.classes[1].recall is None


def test_an_ensemble_is_the_mean_of_the_probabilities() -> None:
    logits, labels = drawn(50)
    other, _ = drawn(50, seed=1)
    together = ensemble([outputs(logits, labels), outputs(other, labels)])
    mean = (logits.softmax(1) + other.softmax(1)) / 2
    torch.testing.assert_close(together.logits.softmax(1), mean)
    alone = ensemble([outputs(logits, labels)] * 3)
    torch.testing.assert_close(alone.logits.softmax(1), logits.softmax(1))
    with pytest.raises(InputError, match="no ensemble"):
        ensemble([outputs(logits, labels), outputs(other, labels.roll(1))])


def test_products_of_matrices_are_as_exact_as_the_run_had_them(finished: Path) -> None:
    run = load_run(finished)
    config = {**run.config, "matmul_precision": "medium"}
    run = replace(run, record=run.record.model_copy(update={"config": config}))
    seen: set[str] = set()
    run.model.network.register_forward_hook(
        lambda *_: seen.add(torch.get_float32_matmul_precision())
    )
    before = torch.get_float32_matmul_precision()
    evaluation.Tester(run).test(own_images(run))
    assert seen == {"medium"}
    assert torch.get_float32_matmul_precision() == before
