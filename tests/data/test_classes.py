"""How many classes there are, and what they are called, is said in one place."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from cifar_lab.data.augment import Mixup, Pipeline
from cifar_lab.data.classes import class_names
from cifar_lab.data.datamodule import Synthetic
from cifar_lab.data.dataset import CLASSES, Dataset, Split
from cifar_lab.data.synthetic import make_synthetic
from cifar_lab.errors import InputError
from tests.conftest import FEED


def dataset(name: str, labels: list[int]) -> Dataset:
    split = Split(np.zeros((len(labels), 3, 32, 32), np.uint8), np.array(labels))
    return Dataset(name=name, layout="", official=False, digest="", train=split, test=split)


@pytest.mark.parametrize("name", ["cifar10", "synthetic"])
def test_our_datasets_have_ten_named_classes_whichever_of_them_occur(name: str) -> None:
    assert class_names(dataset(name, [0, 3])) == CLASSES


def test_the_classes_of_others_are_called_by_their_numbers() -> None:
    assert class_names(dataset("digits", [2, 0, 9])) == tuple("0123456789")
    assert len(class_names(dataset("flowers", [101, 0]))) == 102


@pytest.mark.parametrize(("name", "label"), [("cifar10", 10), ("digits", -1), ("synthetic", -1)])
def test_a_label_that_is_no_class_is_refused(name: str, label: int) -> None:
    with pytest.raises(InputError, match=rf"^data: {name} holds labels in .*{label}.*; they must"):
        class_names(dataset(name, [0, label]))


def test_a_feed_whose_labels_are_no_classes_does_not_open(monkeypatch: pytest.MonkeyPatch) -> None:
    good = make_synthetic(train_size=20, test_size=10, data_seed=0)
    bad = replace(good, test=replace(good.test, labels=good.test.labels + 1))
    settings = {**FEED, "train_size": 20, "test_size": 10, "data_seed": 0, "batch_size": 5}
    pipeline = Pipeline(transforms={"mixup": Mixup(alpha=1.0, p=1.0)})
    feed = Synthetic(**settings, val_size=0, augment=pipeline, seed=0)
    monkeypatch.setattr(Synthetic, "_read", lambda self: bad)
    with pytest.raises(InputError, match=r"holds labels in 0\.\.10; they must lie in 0\.\.9"):
        feed.open()
    others = replace(bad, name="others")
    monkeypatch.setattr(Synthetic, "_read", lambda self: others)
    feed.open()
    assert pipeline.num_classes == 11
    assert next(iter(feed.train_dataloader()))[1].shape == (5, 11)
