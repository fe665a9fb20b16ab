from __future__ import annotations

import numpy as np
import pytest

from cifar_lab.data.dataset import Dataset, digest_of, split_digest
from cifar_lab.data.synthetic import SYNTHETIC_MEAN, SYNTHETIC_STD, make_synthetic


@pytest.fixture(scope="module")
def default() -> Dataset:
    """What conf/data/synthetic.yaml asks for."""
    return make_synthetic(train_size=10_000, test_size=2_000, data_seed=0)


def test_every_machine_draws_the_same_pixels(default: Dataset) -> None:
    # golden: runs on synthetic data are compared by this digest
    assert default.digest == "67c2fb0b6be31e0468eb1998a4921b55ef24917b9de17d541630ea87f1a42260"
    assert default.digest == digest_of(split_digest(default.train), split_digest(default.test))


def test_classes_are_balanced_and_arrays_are_as_a_split_promises(default: Dataset) -> None:
    for split, count in ((default.train, 10_000), (default.test, 2_000)):
        assert split.images.shape == (count, 3, 32, 32)
        assert split.images.dtype == split.labels.dtype == np.uint8
        assert split.images.flags.c_contiguous
        assert np.bincount(split.labels).tolist() == [count // 10] * 10


def test_an_image_does_not_depend_on_how_many_others_are_drawn(default: Dataset) -> None:
    few = make_synthetic(train_size=777, test_size=10, data_seed=0)
    assert np.array_equal(few.train.images, default.train.images[:777])
    assert np.array_equal(few.test.images, default.test.images[:10])


def test_other_seeds_and_the_other_split_are_other_images(default: Dataset) -> None:
    other = make_synthetic(train_size=100, test_size=100, data_seed=1)
    assert other.digest != make_synthetic(train_size=100, test_size=100, data_seed=0).digest
    pool = {image.tobytes() for image in default.train.images}
    assert len(pool) == 10_000
    assert not any(image.tobytes() in pool for image in (*default.test.images, *other.train.images))


def test_the_channel_statistics_are_those_of_the_images(default: Dataset) -> None:
    pixels = default.train.images / 255
    assert np.allclose(pixels.mean((0, 2, 3)), SYNTHETIC_MEAN, atol=1e-4)
    assert np.allclose(pixels.std((0, 2, 3)), SYNTHETIC_STD, atol=1e-4)


def test_colour_alone_is_right_for_about_four_images_in_five(default: Dataset) -> None:
    # nearest class by the most deviating colour; form has to be seen for the rest
    def colour(images: np.ndarray) -> np.ndarray:
        pixels = images.reshape(len(images), 3, -1).astype(np.float64)
        weight = (np.abs(pixels - 128).max(1) > 100)[:, None]
        mean: np.ndarray = (pixels * weight).sum(2) / np.maximum(weight.sum(2), 1)
        return mean

    train, test = colour(default.train.images), colour(default.test.images)
    centres = np.stack(
        [np.median(train[default.train.labels == label], axis=0) for label in range(10)]
    )
    nearest = np.linalg.norm(test[:, None] - centres, axis=2).argmin(1)
    assert 0.72 < (nearest == default.test.labels).mean() < 0.82
