"""The dataset says how many classes there are, and what they are called."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from cifar_lab.data.augment import Mixup, Pipeline
from cifar_lab.data.datamodule import Synthetic
from cifar_lab.data.dataset import (
    Dataset,
    Split,
    channel_statistics,
    check_splits,
    label_type,
)
from cifar_lab.data.synthetic import make_synthetic
from cifar_lab.errors import InputError
from tests.conftest import FEED
from tests.support.images import numbered


def dataset(labels: list[int], classes: int) -> Dataset:
    split = Split(np.zeros((len(labels), 3, 32, 32), np.uint8), np.array(labels, np.int64))
    return Dataset(
        name="digits",
        layout="",
        official=False,
        digest="",
        classes=numbered(classes),
        train=split,
        test=split,
    )


def test_not_every_class_has_to_occur() -> None:
    check_splits(dataset([0, 3], 10))


@pytest.mark.parametrize("label", [10, -1])
def test_a_label_that_is_no_class_is_refused(label: int) -> None:
    with pytest.raises(InputError, match=rf"^data: digits holds labels in .*{label}.*; they must"):
        check_splits(dataset([0, label], 10))


PIXELS, TWO = np.zeros((2, 3, 32, 32), np.uint8), np.arange(2)


@pytest.mark.parametrize(
    ("images", "labels"),
    [
        (PIXELS.astype(np.float32), TWO),
        (PIXELS.transpose(0, 2, 3, 1), TWO),
        (PIXELS[:, :1], TWO),
        (PIXELS.repeat(2, 2).repeat(2, 3), TWO),
        (PIXELS, np.arange(3)),
        (PIXELS, np.arange(2.0)),
        (PIXELS, np.eye(2, dtype=np.int64)),
        (PIXELS[:0], TWO[:0]),
    ],
    ids=lambda array: f"{array.shape} {array.dtype}",
)
@pytest.mark.parametrize("in_train", [True, False])
def test_a_split_of_another_kind_is_refused(in_train: bool, images: Any, labels: Any) -> None:
    good, bad = dataset([0, 1], 10), Split(images, labels)
    other = replace(good, train=bad) if in_train else replace(good, test=bad)
    with pytest.raises(
        InputError, match=r"^data: digits holds images \(.* of one size, and \(N,\)"
    ):
        check_splits(other)


@pytest.mark.parametrize(("classes", "bytes_each"), [(2, 1), (256, 1), (257, 2), (1000, 2)])
def test_labels_take_as_many_bytes_as_they_need(classes: int, bytes_each: int) -> None:
    kind = label_type(classes)
    assert kind.itemsize == bytes_each
    assert int(np.array([classes - 1]).astype(kind)[0]) == classes - 1


def test_a_feed_whose_labels_are_no_classes_does_not_open(monkeypatch: pytest.MonkeyPatch) -> None:
    good = make_synthetic(train_size=20, test_size=10, data_seed=0)
    bad = replace(good, test=replace(good.test, labels=good.test.labels + 1))
    settings = {**FEED, "train_size": 20, "test_size": 10, "data_seed": 0, "batch_size": 5}
    pipeline = Pipeline(transforms={"mixup": Mixup(alpha=1.0, p=1.0)})
    feed = Synthetic(**settings, val_size=0, augment=pipeline, seed=0)
    monkeypatch.setattr(Synthetic, "_read", lambda self: bad)
    with pytest.raises(InputError, match=r"holds labels in 0\.\.10; they must lie in 0\.\.9"):
        feed.open()
    eleven = replace(bad, classes=numbered(11))
    monkeypatch.setattr(Synthetic, "_read", lambda self: eleven)
    feed.open()
    assert pipeline.num_classes == 11
    assert next(iter(feed.train_dataloader()))[1].shape == (5, 11)
    assert feed.facts["classes"] == list(numbered(11))


@pytest.mark.parametrize("shape", [(1, 3, 2, 3), (1001, 3, 5, 4)])
def test_channel_statistics_are_those_of_all_pixels(shape: tuple[int, ...]) -> None:
    images = np.random.default_rng(0).integers(0, 256, shape).astype(np.uint8)
    images[:, 1] //= 4
    found, scaled = channel_statistics(images), images / 255
    np.testing.assert_allclose(found.mean, scaled.mean((0, 2, 3)), rtol=1e-12)
    np.testing.assert_allclose(found.std, scaled.std((0, 2, 3)), rtol=1e-12)


def test_a_channel_of_one_value_can_not_be_divided_by() -> None:
    images = np.random.default_rng(0).integers(0, 256, (4, 3, 8, 8)).astype(np.uint8)
    images[:, 2] = 7
    with pytest.raises(InputError, match=r"one value everywhere; use data\.normalization=half"):
        channel_statistics(images)
