"""Who is first, by what, on which data; which runs stand for a configuration."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cifar_lab.report.compare import (
    CONFUSIONS,
    Ranking,
    best_run,
    confusions,
    rank,
    selected_by,
    selection,
)
from cifar_lab.report.groups import group
from cifar_lab.report.read import Reader
from tests.report.conftest import write_run


def rankings_of(root: Path) -> list[Ranking]:
    return rank(group(Reader(root).read().runs)[0])


def write(root: Path, name: str, lr: float, **fields: Any) -> None:
    write_run(root / name, lr=lr, **fields)


def labels(ranking: Ranking) -> list[str]:
    return [one.label for one in ranking.ranked]


# the held-out accuracies and the test's order the three rates in opposite ways
RATES = {0.1: (0.5, 0.9), 0.2: (0.7, 0.7), 0.3: (0.6, 0.8)}


def test_the_held_out_accuracy_ranks(tmp_path: Path) -> None:
    for lr, (val, test) in RATES.items():
        write(tmp_path, f"{lr}", lr, val=(val,), test=test)
    [ranking] = rankings_of(tmp_path)
    assert ranking.held_out is True
    assert selected_by(ranking) == "val/acc"
    assert labels(ranking) == ["lr=0.2", "lr=0.3", "lr=0.1"]
    means = [selection(ranking, one) for one in ranking.ranked]
    assert [estimate and estimate.mean for estimate in means] == [0.7, 0.6, 0.5]
    assert [c.other.label for c in ranking.comparisons] == ["lr=0.3", "lr=0.1"]
    assert [c.difference for c in ranking.comparisons] == [
        pytest.approx(-0.1),
        pytest.approx(-0.2),
    ]


def test_the_tests_does_where_nothing_was_held_out(tmp_path: Path) -> None:
    for lr, (_, test) in RATES.items():
        write(tmp_path, f"{lr}", lr, val=(), test=test)
    [ranking] = rankings_of(tmp_path)
    assert ranking.held_out is False
    assert selected_by(ranking) == "test/acc"
    assert labels(ranking) == ["lr=0.1", "lr=0.3", "lr=0.2"]
    means = [selection(ranking, one) for one in ranking.ranked]
    assert [estimate and estimate.mean for estimate in means] == [0.9, 0.8, 0.7]


def test_who_can_not_be_compared_is_not_ranked(tmp_path: Path) -> None:
    write(tmp_path, "a", 0.1)
    write(tmp_path, "b", 0.2, val=())  # others have held something out
    write(tmp_path, "c", 0.3, status="failed", test=None)
    [ranking] = rankings_of(tmp_path)
    assert labels(ranking) == ["lr=0.1"]
    assert sorted(one.label for one in ranking.unranked) == ["lr=0.2", "lr=0.3"]
    assert ranking.comparisons == ()


def test_the_data_with_most_finished_runs_come_first_and_equal_names_are_told_apart(
    tmp_path: Path,
) -> None:
    synthetic = {"name": "synthetic", "digest": "5" * 64}
    other = {"name": "cifar10", "digest": "6" * 64}
    write(tmp_path, "a", 0.1)
    for seed in range(3):
        write(tmp_path, f"b{seed}", 0.1, seed=seed, data=synthetic)
    for seed in range(2):
        write(tmp_path, f"c{seed}", 0.2, seed=seed, data=other)
    for seed in range(4):  # what failed doesn't count
        write(tmp_path, f"d{seed}", 0.3, seed=seed, status="failed", test=None, data=other)
    rankings = rankings_of(tmp_path)
    assert [ranking.data_name for ranking in rankings] == [
        "synthetic",
        "cifar10 66666666",
        "cifar10 d7c0b9ac",
    ]
    assert [ranking.data for ranking in rankings] == ["5" * 64, "6" * 64, "d7c0b9ac" * 8]


def test_the_best_run_is_the_best_configurations_best_by_what_selects(tmp_path: Path) -> None:
    for seed, (val, test) in enumerate([(0.6, 0.5), (0.8, 0.3), (0.7, 0.9)]):
        write(tmp_path / "held out", f"a{seed}", 0.1, seed=seed, val=(val,), test=test)
        write(tmp_path / "not", f"a{seed}", 0.1, seed=seed, val=(), test=test)
    write(tmp_path / "held out", "b", 0.2, val=(0.69,), test=0.99)
    write(tmp_path / "not", "b", 0.2, val=(), test=0.5)
    [ranking] = rankings_of(tmp_path / "held out")
    assert best_run(ranking).name == "a1"
    [ranking] = rankings_of(tmp_path / "not")
    assert best_run(ranking).name == "a2"


def test_runs_without_a_seed_in_common_are_compared_by_their_first(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    for seed in (3, 1, 2):
        right = random.random(100) < 0.8
        write(tmp_path, f"a{seed}", 0.1, seed=seed, val=(0.9,), predictions=right)
    write(tmp_path, "b", 0.2, seed=7, val=(0.8,), predictions=random.random(100) < 0.7)
    [comparison] = rankings_of(tmp_path)[0].comparisons
    assert "seeds 1 and 7" in comparison.why


def test_confusions_are_of_the_first_few_that_saved_their_answers(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    for place in range(CONFUSIONS + 2):
        right = None if place == 1 else random.random(50) < 0.8
        for seed in (0, 1):
            val = (0.9 - 0.1 * place,)
            name = f"{place}-{seed}"
            write(tmp_path, name, place + 1.5, seed=seed, val=val, predictions=right)
    [ranking] = rankings_of(tmp_path)
    found = confusions(ranking)
    assert CONFUSIONS == 5
    assert [one.label for one in found] == ["lr=1.5", "lr=3.5", "lr=4.5", "lr=5.5"]
    for one in found:
        assert one.runs == 2
        assert one.counts.shape == (10, 10)
        assert one.counts.sum() == 100


def test_a_confusion_has_a_row_for_every_class_and_a_column_for_every_answer(
    tmp_path: Path,
) -> None:
    write(tmp_path, "a", 0.1, predictions=np.ones(10, bool))
    said, true = np.array([0, 0, 11, 3]), np.array([0, 2, 2, 10])
    logits = np.eye(12, dtype=np.float32)[said]
    np.savez(tmp_path / "a" / "predictions.npz", labels=true, logits=logits)
    [confusion] = confusions(rankings_of(tmp_path)[0])
    expected = np.zeros((12, 12), np.int64)
    for row, column in zip(true, said, strict=True):
        expected[row, column] += 1
    assert np.array_equal(confusion.counts, expected)
