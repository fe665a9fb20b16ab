"""The corruptions against plain references; the authors' archive is read as it is."""

from __future__ import annotations

import colorsys
import io
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage

from cifar_lab.data.synthetic import make_synthetic
from cifar_lab.errors import InputError
from cifar_lab.inference import corruptions
from cifar_lab.inference.corruptions import (
    CORRUPTIONS,
    STRENGTHS,
    corrupt,
    is_archive,
    read_archive,
)
from tests.support.hostile import Payload

IMAGES = make_synthetic(train_size=20, test_size=12, data_seed=0).test.images
GENTLE_FIRST = (
    *("gaussian_noise", "shot_noise", "impulse_noise", "defocus_blur", "zoom_blur"),
    *("snow", "fog", "brightness", "contrast", "pixelate", "jpeg_compression"),
)


def floats() -> NDArray[np.float32]:
    return (IMAGES / 255).astype(np.float32)


def changed(name: str, strength: int) -> float:
    return float(np.abs(corrupt(IMAGES, name, strength).astype(int) - IMAGES).mean())


def test_there_are_the_fifteen_of_the_paper() -> None:
    assert len(CORRUPTIONS) == 15
    assert len(STRENGTHS) == 5


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_each_is_the_same_every_time_and_changes_every_image(name: str) -> None:
    before = IMAGES.copy()
    for strength in STRENGTHS:
        found = corrupt(IMAGES, name, strength)
        assert found.shape == IMAGES.shape
        assert found.dtype == np.uint8
        assert np.array_equal(found, corrupt(IMAGES, name, strength))
        assert (found != IMAGES).any((1, 2, 3)).all()
    assert np.array_equal(IMAGES, before)


@pytest.mark.parametrize("name", GENTLE_FIRST)
def test_the_strongest_changes_most(name: str) -> None:
    assert changed(name, 5) > changed(name, 3) > changed(name, 1)


def test_pieces_of_a_thousand_do_not_repeat_their_noise(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(corruptions, "_IMAGES_AT_A_TIME", 4)
    same = np.repeat(IMAGES[:1], 8, 0)
    found = corrupt(same, "gaussian_noise", 1)
    assert not np.array_equal(found[:4], found[4:])


def test_noise_has_the_papers_measure() -> None:
    grey = np.full((50, 3, 32, 32), 128, np.uint8)
    for strength, scale in enumerate((0.04, 0.06, 0.08, 0.09, 0.10), 1):
        assert corrupt(grey, "gaussian_noise", strength).std() / 255 == pytest.approx(
            scale, rel=0.02
        )
    for strength, photons in enumerate((500, 250, 100, 75, 50), 1):
        expected = (128 / 255 / photons) ** 0.5
        assert corrupt(grey, "shot_noise", strength).std() / 255 == pytest.approx(
            expected, rel=0.02
        )
    for strength, share in enumerate((0.01, 0.02, 0.03, 0.05, 0.07), 1):
        found = corrupt(grey, "impulse_noise", strength)
        assert (found != 128).mean() == pytest.approx(share, rel=0.05)
        assert (found == 0).sum() == pytest.approx((found == 255).sum(), rel=0.1)


def test_brightness_is_the_value_of_hsv() -> None:
    found = corrupt(IMAGES, "brightness", 3)
    for image, bright in zip(floats()[:3], found[:3], strict=True):
        for row in range(0, 32, 5):
            h, s, v = colorsys.rgb_to_hsv(*map(float, image[:, row, row]))
            expected = np.array(colorsys.hsv_to_rgb(h, s, min(1, v + 0.15))) * 255
            assert np.abs(bright[:, row, row] - expected).max() <= 1
    assert (corrupt(np.zeros((1, 3, 32, 32), np.uint8), "brightness", 5) == 76).all()


def test_contrast_keeps_the_means() -> None:
    found = corrupt(IMAGES, "contrast", 5)
    assert np.abs(found.mean((2, 3)) - IMAGES.mean((2, 3))).max() <= 1
    spread = found.std((2, 3)) / IMAGES.std((2, 3))
    assert np.abs(spread - 0.15).max() < 0.02


def test_jpeg_and_pixels_are_pillows() -> None:
    image = Image.fromarray(IMAGES[0].transpose(1, 2, 0))
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=40)
    expected = np.asarray(Image.open(buffer)).transpose(2, 0, 1)
    assert np.array_equal(corrupt(IMAGES, "jpeg_compression", 5)[0], expected)
    box = Image.Resampling.BOX
    coarse = np.asarray(image.resize((20, 20), box).resize((32, 32), box)).transpose(2, 0, 1)
    assert np.array_equal(corrupt(IMAGES, "pixelate", 5)[0], coarse)


@pytest.mark.parametrize("factor", [1.0, 1.05, 1.25, 2.25])
def test_zoom_is_scipys_linear_zoom(factor: float) -> None:
    part = int(np.ceil(32 / factor))
    at = (32 - part) // 2
    for image, found in zip(floats()[:2], corruptions.zoomed(floats(), factor), strict=False):
        middle = image[:, at : at + part, at : at + part]
        large = ndimage.zoom(middle, (1, factor, factor), order=1)
        trim = (large.shape[1] - 32) // 2
        np.testing.assert_allclose(found, large[:, trim : trim + 32, trim : trim + 32], atol=1e-5)


def test_samples_are_scipys_linear_ones_with_a_mirror() -> None:
    random = np.random.default_rng(0)
    x, rows, columns = floats()[:2], *np.mgrid[:32, :32].astype(float)
    down, right = random.uniform(-4, 4, (2, 2, 32, 32))
    modes: list[tuple[bool, Literal["reflect", "mirror"]]] = [(False, "reflect"), (True, "mirror")]
    for corners, mode in modes:
        found = corruptions.sampled(x, columns + right, rows + down, corners=corners)
        for i in range(2):
            at = np.stack((rows + down[i], columns + right[i]))
            expected = ndimage.map_coordinates(x[i, 1], at, order=1, mode=mode)
            np.testing.assert_allclose(found[i, 1], expected, atol=1e-4)


def test_an_elastic_transform_without_wobble_is_affine() -> None:
    """A ramp of brightness stays one: what strength 1 does, whose wobble is 0."""
    ramp = np.tile(np.linspace(60, 190, 32), (3, 32, 1)).astype(np.uint8)[None]
    found = corrupt(np.repeat(ramp, 3, 0), "elastic_transform", 1).astype(float)
    inner = found[:, :, 10:22, 10:22]
    assert np.abs(np.diff(inner, 2, axis=-1)).max() <= 2
    assert np.abs(np.diff(inner, 2, axis=-2)).max() <= 2


def test_blurs_leave_an_even_image_and_keep_its_light() -> None:
    grey = np.full((2, 3, 32, 32), 100, np.uint8)
    for name in ("defocus_blur", "glass_blur", "motion_blur", "zoom_blur"):
        for strength in STRENGTHS:
            assert np.abs(corrupt(grey, name, strength).astype(int) - 100).max() <= 1
    point = np.zeros((1, 1, 32, 32), np.float32)
    point[0, 0, 16, 16] = 1
    moved = corruptions.motion_blurred(point, 6, 2, np.array([0.0]))
    assert moved.sum() == pytest.approx(1)
    assert (moved[0, 0, 16] > 0).sum() == 13  # half a Gaussian, on one side
    assert moved[0, 0, :16].sum() == 0


@pytest.mark.parametrize("side", [16, 20, 32, 48])
def test_terrain_fills_the_square(side: int) -> None:
    terrain = corruptions.terrain(4, side, 2.0, np.random.default_rng(0))
    assert terrain.shape == (4, side, side)
    assert terrain.min() >= 0
    assert terrain.max() <= 1
    assert (terrain.std((1, 2)) > 0.05).all()


def test_other_sizes_are_corrupted_and_tiny_ones_refused() -> None:
    large = np.random.default_rng(0).integers(0, 256, (2, 3, 48, 48), np.uint8)
    for name in CORRUPTIONS:
        assert corrupt(large, name, 5).shape == large.shape
    with pytest.raises(InputError, match="must have at least 16x16"):
        corrupt(large[:, :, :8, :8].copy(), "fog", 1)


# --- the authors' archive -------------------------------------------------------------------------


def test_the_archive_is_read_strength_by_strength(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    images = random.integers(0, 256, (20, 32, 32, 3), np.uint8)
    labels = np.tile(np.arange(4), 5).astype(np.uint8)
    assert not is_archive(tmp_path)
    np.save(tmp_path / "labels.npy", labels)
    np.save(tmp_path / "fog.npy", images)
    assert is_archive(tmp_path)
    found = list(read_archive(tmp_path, "fog"))
    assert [strength for strength, _ in found] == [1, 2, 3, 4, 5]
    for index, (_, split) in enumerate(found):
        assert split.labels.tolist() == [0, 1, 2, 3]
        part = images[4 * index : 4 * index + 4].transpose(0, 3, 1, 2)
        assert np.array_equal(split.images, part)
    with pytest.raises(InputError, match=r"snow\.npy: is missing"):
        list(read_archive(tmp_path, "snow"))


@pytest.mark.parametrize(
    ("images", "labels", "said"),
    [
        (np.zeros((21, 32, 32, 3), np.uint8), np.zeros(21, int), r"must be uint8 \(5 N"),
        (np.zeros((20, 32, 32, 3)), np.zeros(20, int), "must be uint8"),
        (np.zeros((20, 3, 32, 32), np.uint8), np.zeros(20, int), "must be uint8"),
        (np.zeros((20, 32, 32, 3), np.uint8), np.zeros(19, int), "must be 20 whole numbers"),
        (np.zeros((20, 32, 32, 3), np.uint8), np.full(20, -1), "must be 20 whole numbers"),
        (np.zeros((20, 32, 32, 3), np.uint8), np.zeros(20), "must be 20 whole numbers"),
    ],
)
def test_other_arrays_are_refused(tmp_path: Path, images: Any, labels: Any, said: str) -> None:
    np.save(tmp_path / "labels.npy", labels)
    np.save(tmp_path / "fog.npy", images)
    with pytest.raises(InputError, match=said):
        list(read_archive(tmp_path, "fog"))


def test_an_archive_is_not_unpickled(tmp_path: Path) -> None:
    np.save(tmp_path / "labels.npy", np.zeros(5, int))
    evil = np.array([Payload(tmp_path / "pwned")], object)
    np.save(tmp_path / "fog.npy", evil, allow_pickle=True)
    with pytest.raises(InputError, match="no array that can be read safely"):
        list(read_archive(tmp_path, "fog"))
    assert not (tmp_path / "pwned").exists()
