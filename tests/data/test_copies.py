"""Exact copies are counted, all of them and nothing else, and what they do is said."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest

from cifar_lab.data.copies import count_copies, lines_of, warnings_of
from cifar_lab.data.dataset import CLASSES, Dataset, Split, number_images, row_keys
from cifar_lab.data.synthetic import make_synthetic
from cifar_lab.records.record import Data
from tests.data.conftest import random_split


def dataset(train: Split, test: Split, official: bool = False) -> Dataset:
    return Dataset("cifar10", "zip", official, "0" * 64, CLASSES, train, test)


@pytest.mark.parametrize("shape", [(3, 32, 32), (1, 28, 28), (3, 5, 5), (1, 2, 2)], ids=str)
def test_images_have_one_number_exactly_where_they_are_equal(shape: tuple[int, ...]) -> None:
    rng = np.random.default_rng(0)
    different = rng.integers(0, 256, (20, *shape), dtype=np.uint8)
    splits = [different[rng.integers(0, 20, count)] for count in (50, 30, 1)]
    numbers = np.concatenate(number_images(*splits))
    contents = [image.tobytes() for split in splits for image in split]
    assert [len(part) for part in number_images(*splits)] == [50, 30, 1]
    for i, content in enumerate(contents):
        equal = np.array([content == other for other in contents])
        np.testing.assert_array_equal(numbers == numbers[i], equal)


def test_images_with_one_key_that_differ_are_no_copies() -> None:
    # the highest bytes of two words, so that the sum of both, times the weights, is 0 modulo 2**64
    first, second = (int(word) % 256 for word in np.random.PCG64(0).random_raw(2) | np.uint64(1))
    images = np.zeros((3, 3, 32, 32), np.uint8)
    flat = images.reshape(3, -1)
    flat[1, [7, 15]] = second, 256 - first
    keys = row_keys(flat)
    assert keys[0] == keys[1]
    (numbers,) = number_images(images)
    assert numbers[0] == numbers[2] != numbers[1]


def test_the_counts_are_those_of_a_plain_comparison() -> None:
    rng = np.random.default_rng(1)
    train, test = random_split(60, rng), random_split(40, rng)
    train.images[30:35] = train.images[:5]
    test.images[:7] = train.images[3:10]
    test.images[20] = test.images[21]
    train.labels[30] = (train.labels[0] + 1) % 10
    train.labels[31:35] = train.labels[1:5]
    test.labels[:7] = train.labels[3:10]
    test.labels[20] = test.labels[21]
    val, rest = np.arange(0, 10), np.arange(10, 60)
    pixels = [image.tobytes() for image in train.images], [image.tobytes() for image in test.images]
    labels: dict[bytes, set[int]] = {}
    for split, contents in zip((train, test), pixels, strict=True):
        for content, label in zip(contents, split.labels, strict=True):
            labels.setdefault(content, set()).add(int(label))
    trained = {pixels[0][row] for row in rest}
    assert count_copies(dataset(train, test), rest, val) == {
        "test_in_train": sum(content in pixels[0] for content in pixels[1]),
        "val_in_train": sum(pixels[0][row] in trained for row in val),
        "train": 60 - len(set(pixels[0])),
        "test": 40 - len(set(pixels[1])),
        "contradicting": sum(len(found) > 1 for found in labels.values()),
    }
    assert count_copies(dataset(train, test), rest, val)["test_in_train"] == 7
    assert lines_of(dataset(train, test)) == [
        "7 of the 40 test images are also training images (exact copies): the test accuracy will "
        "be too high, by up to 17.5 points",
        "5 of the 60 training images repeat another of them",
        "1 of the 40 test images repeat another of them",
        "1 different images occur with more than one label",
    ]


def test_of_the_official_images_facts_are_told_and_no_verdict() -> None:
    train, test = (
        random_split(20, np.random.default_rng(0)),
        random_split(10, np.random.default_rng(1)),
    )
    test.images[0] = train.images[0]
    test.labels[0] = train.labels[0]
    official = dataset(train, test, official=True)
    assert lines_of(official) == ["1 of the 10 test images are also training images (exact copies)"]
    facts = {
        "images": {"train": 15, "val": 5, "test": 10},
        "duplicates": count_copies(official, np.arange(15), np.arange(15, 20)),
    }
    assert warnings_of(Data.model_validate({**facts, "official": True})) == []
    assert len(warnings_of(Data.model_validate({**facts, "official": False}))) == 1


def test_a_record_of_an_older_version_has_nothing_to_say() -> None:
    assert warnings_of(Data.model_validate({"digest": "0" * 64, "official": False})) == []


def test_images_drawn_by_code_are_all_different() -> None:
    data = make_synthetic(train_size=300, test_size=100, data_seed=0)
    assert lines_of(data) == []
    numbers = np.sort(np.concatenate(data.numbers))
    assert all(a < b for a, b in pairwise(numbers))
