"""The 15 corruptions and 5 strengths of CIFAR-10-C (Hendrycks and Dietterich, arXiv:1903.12261).

The strengths are those of the authors' ``make_cifar_c.py``, and so are the formulas; the code is
for whole batches, and draws from generators with fixed seeds. Published figures are of the authors'
archive, other draws of the same noise, which `read_archive` reads. Frost is another one: theirs
lies over photographs of frosted panes, which aren't here, and ours is drawn. So the figures of
`corrupt` compare networks with each other, and with nothing published.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage
from torch import nn

from cifar_lab.data.dataset import Split
from cifar_lab.errors import InputError

# NDArray[np.float32] in [0, 1], (N, C, H, W); numpy's stubs lose that at the first mean
Floats = Any
STRENGTHS = (1, 2, 3, 4, 5)
_IMAGES_AT_A_TIME = 1000  # part of what is drawn: other pieces are other noise
_FEWEST_PIXELS = 16


def corrupt(images: NDArray[np.uint8], name: str, strength: int) -> NDArray[np.uint8]:
    """Images with a corruption: always the same ones for the same images.

    Args:
        images: (N, 3, S, S); the strengths are made for S = 32.
        name: one of `CORRUPTIONS`.
        strength: 1 to 5.

    Returns:
        (N, 3, S, S).

    Raises:
        InputError: images smaller than 16x16.
    """
    if min(images.shape[2:]) < _FEWEST_PIXELS:
        raise InputError(
            f"images of {images.shape[2]}x{images.shape[3]} pixels can't be corrupted; must have "
            f"at least {_FEWEST_PIXELS}x{_FEWEST_PIXELS}"
        )
    number = list(CORRUPTIONS).index(name)
    parts = []
    for start in range(0, len(images), _IMAGES_AT_A_TIME):
        random = np.random.default_rng([number, strength, start])
        part = np.ascontiguousarray(images[start : start + _IMAGES_AT_A_TIME])
        if name in _OF_BYTES:
            parts.append(_OF_BYTES[name](part, strength))
            continue
        floats = CORRUPTIONS[name](part.astype(np.float32) / 255, strength, random)
        parts.append((np.clip(floats, 0, 1) * 255).astype(np.uint8))  # cut off, as theirs are
    return np.concatenate(parts)


def is_archive(folder: Path) -> bool:
    """Whether a folder is the authors' archive, unpacked: ``labels.npy`` and one file for each."""
    return (folder / "labels.npy").is_file()


def read_archive(folder: Path, name: str) -> Iterator[tuple[int, Split]]:
    """Each strength of a corruption from CIFAR-10-C or CIFAR-100-C, as its authors hand it out.

    Args:
        folder: holds ``labels.npy`` and ``<corruption>.npy``, (5 N, 32, 32, 3) uint8, the strengths
            one after the other.
        name: of the corruption.

    Yields:
        (strength, (N) images and labels).

    Raises:
        InputError: a file is missing, or no such array; none is unpickled.
    """
    images, labels = (_array(folder / f"{stem}.npy") for stem in (name, "labels"))
    count = len(images) // len(STRENGTHS)
    whole = images.ndim == 4 and images.shape[3] == 3 and images.dtype == np.uint8
    if not whole or len(images) % len(STRENGTHS) or not count:
        raise InputError(
            f"{folder / name}.npy: holds {images.dtype} {images.shape}; must be uint8 "
            "(5 N, H, W, 3)"
        )
    if labels.shape != (len(images),) or labels.dtype.kind not in "iu" or labels.min() < 0:
        raise InputError(
            f"{folder}/labels.npy: holds {labels.dtype} {labels.shape}; must be {len(images)} "
            "whole numbers"
        )
    for index, strength in enumerate(STRENGTHS):
        part = slice(index * count, (index + 1) * count)
        pixels = np.ascontiguousarray(images[part].transpose(0, 3, 1, 2))
        yield strength, Split(images=pixels, labels=labels[part].astype(np.uint16))


def _array(path: Path) -> NDArray[Any]:
    try:
        found = np.load(path, mmap_mode="r", allow_pickle=False)
    except FileNotFoundError as error:
        raise InputError(
            f"{path}: is missing; the folder must be the unpacked archive CIFAR-10-C"
        ) from error
    except (OSError, ValueError, EOFError) as error:
        raise InputError(f"{path}: is no array that can be read safely ({error})") from error
    if not isinstance(found, np.ndarray):
        raise InputError(f"{path}: is no single array")
    return found


# --- noise ---------------------------------------------------------------------------------------


def _gaussian_noise(x: Floats, strength: int, random: np.random.Generator) -> Floats:
    scale = (0.04, 0.06, 0.08, 0.09, 0.10)[strength - 1]
    return x + scale * random.standard_normal(x.shape, np.float32)


def _shot_noise(x: Floats, strength: int, random: np.random.Generator) -> Floats:
    photons = (500, 250, 100, 75, 50)[strength - 1]
    return (random.poisson(x * photons) / photons).astype(np.float32)


def _impulse_noise(x: Floats, strength: int, random: np.random.Generator) -> Floats:
    share = (0.01, 0.02, 0.03, 0.05, 0.07)[strength - 1]
    hit, value = random.random(x.shape, np.float32), random.random(x.shape, np.float32)
    return np.where(hit < share, np.round(value), x)


# --- blur ----------------------------------------------------------------------------------------


def _defocus_blur(x: Floats, strength: int, random: np.random.Generator) -> Floats:
    radius, sigma = ((0.3, 0.4), (0.4, 0.5), (0.5, 0.6), (1, 0.2), (1.5, 0.1))[strength - 1]
    at = np.arange(-2, 3)
    disk = (at[:, None] ** 2 + at**2 <= radius**2).astype(np.float64)
    soft = np.exp(-(np.arange(-1, 2) ** 2) / (2 * sigma**2))
    soft /= soft.sum()
    kernel = ndimage.convolve(disk / disk.sum(), np.outer(soft, soft), mode="constant")
    weight = torch.from_numpy(kernel.astype(np.float32)).expand(3, 1, 5, 5)
    padded = nn.functional.pad(torch.from_numpy(x), (2, 2, 2, 2), mode="reflect")
    blurred: Floats = nn.functional.conv2d(padded, weight, groups=3).numpy()
    return blurred


def _glass_blur(x: Floats, strength: int, random: np.random.Generator) -> Floats:
    sigma, times = ((0.05, 1), (0.25, 1), (0.4, 1), (0.25, 2), (0.4, 2))[strength - 1]
    soft = (_blurred(x, sigma) * 255).astype(np.uint8)
    count, side = len(x), x.shape[-1]
    images = np.arange(count)
    for _ in range(times):
        for row in range(side - 1, 1, -1):
            moves = random.integers(-1, 1, (side, 2, count))
            for column in range(side - 1, 1, -1):
                down, right = moves[column]
                # theirs means to swap the two, and copies one over the other: so does this
                soft[:, :, row, column] = soft[images, :, row + down, column + right]
    return _blurred(soft.astype(np.float32) / 255, sigma)


def _motion_blur(x: Floats, strength: int, random: np.random.Generator) -> Floats:
    radius, sigma = ((6, 1), (6, 1.5), (6, 2), (8, 2), (9, 2.5))[strength - 1]
    return motion_blurred(x, radius, sigma, random.uniform(-45, 45, len(x)))


def _zoom_blur(x: Floats, strength: int, random: np.random.Generator) -> Floats:
    most = (1.06, 1.11, 1.16, 1.21, 1.26)[strength - 1]
    factors = np.arange(1, most, 0.01)
    total = x.copy()
    for factor in factors:
        total += zoomed(x, float(factor))
    return total / (len(factors) + 1)


# --- weather -------------------------------------------------------------------------------------


def _snow(x: Floats, strength: int, random: np.random.Generator) -> Floats:
    mean, scale, zoom, least, radius, sigma, kept = (
        (0.1, 0.2, 1, 0.6, 8, 3, 0.95),
        (0.1, 0.2, 1, 0.5, 10, 4, 0.9),
        (0.15, 0.3, 1.75, 0.55, 10, 4, 0.9),
        (0.25, 0.3, 2.25, 0.6, 12, 6, 0.85),
        (0.3, 0.3, 1.25, 0.65, 14, 12, 0.8),
    )[strength - 1]
    count, _, height, width = x.shape
    flakes = random.normal(mean, scale, (count, 1, height, width)).astype(np.float32)
    flakes = zoomed(flakes, zoom)
    flakes = np.where(flakes < least, 0, np.clip(flakes, 0, 1)).astype(np.float32)
    flakes = motion_blurred(flakes, radius, sigma, random.uniform(-135, -45, count))
    grey = np.tensordot(np.array([0.299, 0.587, 0.114], np.float32), x, (0, 1))[:, None]
    whitened = kept * x + (1 - kept) * np.maximum(x, grey * 1.5 + 0.5)
    return (whitened + flakes + np.rot90(flakes, 2, (2, 3))).astype(np.float32)


def _frost(x: Floats, strength: int, random: np.random.Generator) -> Floats:
    kept, share = ((1, 0.2), (1, 0.3), (0.9, 0.4), (0.85, 0.4), (0.75, 0.45))[strength - 1]
    # needles of ice: rough terrain, its ridges drawn out, in a bluish white
    rough = terrain(len(x), x.shape[-1], 1.2, random)
    ridges = motion_blurred(rough[:, None], 4, 2, random.uniform(0, 180, len(x)))
    ice = (0.35 + 0.65 * ridges) * np.array([0.82, 0.92, 1.0], np.float32)[:, None, None]
    return (kept * x + share * ice).astype(np.float32)


def _fog(x: Floats, strength: int, random: np.random.Generator) -> Floats:
    share, smooth = ((0.2, 3), (0.5, 3), (0.75, 2.5), (1, 2), (1.5, 1.75))[strength - 1]
    brightest = x.max((1, 2, 3), keepdims=True)
    clouds = terrain(len(x), x.shape[-1], smooth, random)[:, None]
    return (x + share * clouds) * brightest / (brightest + share)


def _brightness(x: Floats, strength: int, random: np.random.Generator) -> Floats:
    more = (0.05, 0.1, 0.15, 0.2, 0.3)[strength - 1]
    # V of HSV is the largest channel: hue and saturation stay where all are scaled alike
    value = x.max(1, keepdims=True)
    wanted = np.minimum(value + more, 1)
    return np.where(value > 0, x * (wanted / np.maximum(value, 1e-9)), wanted)


# --- digital -------------------------------------------------------------------------------------


def _contrast(x: Floats, strength: int, random: np.random.Generator) -> Floats:
    share = (0.75, 0.5, 0.4, 0.3, 0.15)[strength - 1]
    means = x.mean((2, 3), keepdims=True)
    return (x - means) * share + means


def _elastic_transform(x: Floats, strength: int, random: np.random.Generator) -> Floats:
    count, _, height, width = x.shape
    reach, sigma, corner = (
        width * part
        for part in (
            (0, 0, 0.08),
            (0.05, 0.2, 0.07),
            (0.08, 0.06, 0.06),
            (0.1, 0.04, 0.05),
            (0.1, 0.03, 0.03),
        )[strength - 1]
    )
    # three points and where they are taken fix an affine map of (x, y, 1)
    middle, arm = width // 2, width // 3
    before = np.array(
        [
            [middle + arm, middle + arm],
            [middle + arm, middle - arm],
            [middle - arm, middle - arm],
        ],
        np.float64,
    )
    after = before + random.uniform(-corner, corner, (count, 3, 2))
    ones = np.ones((count, 3, 1))
    back = np.linalg.solve(np.concatenate((after, ones), 2), np.broadcast_to(before, after.shape))
    rows, columns = np.mgrid[:height, :width].astype(np.float64)
    grid = np.stack((columns, rows, np.ones_like(rows)), -1)
    at = np.einsum("hwk,nkd->nhwd", grid, back)
    warped = sampled(x, at[..., 0], at[..., 1], corners=True)
    wobble = random.uniform(-1, 1, (2, count, height, width))
    if sigma:
        wobble = ndimage.gaussian_filter(wobble, (0, 0, sigma, sigma), mode="reflect", truncate=3)
    across, down = wobble * reach
    return sampled(warped, columns + across, rows + down, corners=False)


def _pixelate(images: NDArray[np.uint8], strength: int) -> NDArray[np.uint8]:
    share = (0.95, 0.9, 0.85, 0.75, 0.65)[strength - 1]

    def coarse(image: Image.Image) -> Image.Image:
        small = image.resize(
            (int(image.width * share), int(image.height * share)), Image.Resampling.BOX
        )
        return small.resize(image.size, Image.Resampling.BOX)

    return _one_by_one(images, coarse)


def _jpeg_compression(images: NDArray[np.uint8], strength: int) -> NDArray[np.uint8]:
    quality = (80, 65, 58, 50, 40)[strength - 1]

    def compressed(image: Image.Image) -> Image.Image:
        buffer = io.BytesIO()
        image.save(buffer, "JPEG", quality=quality)
        return Image.open(buffer)

    return _one_by_one(images, compressed)


# --- what they are made of -----------------------------------------------------------------------


def _one_by_one(
    images: NDArray[np.uint8], change: Callable[[Image.Image], Image.Image]
) -> NDArray[np.uint8]:
    found = np.empty_like(images)
    for place, image in zip(found, images, strict=True):
        place[:] = np.asarray(change(Image.fromarray(image.transpose(1, 2, 0)))).transpose(2, 0, 1)
    return found


def _blurred(x: Floats, sigma: float) -> Floats:
    found: Floats = ndimage.gaussian_filter(x, (0, 0, sigma, sigma), mode="nearest")
    return found


def zoomed(x: Floats, factor: float) -> Floats:
    """The middle, linearly enlarged to the size it is in; the corners of what is taken stay.

    Args:
        x: (N, C, H, W) float32, H = W.
        factor: at least 1.
    """
    height, width = x.shape[2:]
    part = int(np.ceil(height / factor))
    top, left = (height - part) // 2, (width - part) // 2
    size = round(part * factor)
    middle = torch.from_numpy(np.ascontiguousarray(x[:, :, top : top + part, left : left + part]))
    large = nn.functional.interpolate(middle, (size, size), mode="bilinear", align_corners=True)
    trim = (size - height) // 2
    found: Floats = large[:, :, trim : trim + height, trim : trim + width].numpy()
    return found


def motion_blurred(x: Floats, radius: int, sigma: float, degrees: NDArray[Any]) -> Floats:
    """Motion blur as ImageMagick has it: half a Gaussian along a line; edges go on as they are.

    Args:
        x: (N, C, H, W).
        radius: pixels on the line beside the one itself, twice over.
        sigma: of the Gaussian, in pixels.
        degrees: (N,) of the line.
    """
    steps = np.arange(2 * radius + 1)
    weights = np.exp(-(steps**2) / (2 * sigma**2))
    weights /= weights.sum()
    height, width = x.shape[2:]
    radians = np.deg2rad(degrees)
    images, total = np.arange(len(x))[:, None, None], np.zeros_like(x)
    for step, weight in zip(steps, weights, strict=True):
        right = np.ceil(step * np.cos(radians) - 0.5).astype(np.int64)
        down = np.ceil(step * np.sin(radians) - 0.5).astype(np.int64)
        rows = np.clip(np.arange(height) + down[:, None], 0, height - 1)[:, :, None]
        columns = np.clip(np.arange(width) + right[:, None], 0, width - 1)[:, None, :]
        # the channels come last where indices lie on both sides of them
        total += np.float32(weight) * x[images, :, rows, columns].transpose(0, 3, 1, 2)
    return total


def sampled(
    x: Floats, columns: NDArray[np.float64], rows: NDArray[np.float64], *, corners: bool
) -> Floats:
    """Bilinear samples at (N, H, W) places, in pixels; beyond the edges lies a mirror image.

    Args:
        corners: the mirror stands on the outermost pixels, or else on their outer edges.
    """
    height, width = x.shape[2:]
    spans = ((columns, width), (rows, height))
    if corners:
        scaled = [2 * at / (size - 1) - 1 for at, size in spans]
    else:
        scaled = [(2 * at + 1) / size - 1 for at, size in spans]
    grid = torch.from_numpy(np.stack(scaled, -1).astype(np.float32))
    found: Floats = nn.functional.grid_sample(
        torch.from_numpy(x), grid, mode="bilinear", padding_mode="reflection", align_corners=corners
    ).numpy()
    return found


def terrain(count: int, side: int, smooth: float, random: np.random.Generator) -> Floats:
    """(count, side, side) in [0, 1]: clouds by the diamond-square method, on a torus.

    Args:
        smooth: by which the height of the bumps falls when their width is halved.
    """
    size = 1 << max(1, (side - 1).bit_length())
    heights = np.zeros((count, size, size))
    step, bump = size, 100.0
    while step >= 2:
        half = step // 2

        def mean_with_bump(total: NDArray[np.float64], bump: float = bump) -> NDArray[np.float64]:
            return total / 4 + bump * random.uniform(-bump, bump, total.shape)

        corners = heights[:, ::step, ::step]
        pairs = corners + np.roll(corners, -1, 1)
        heights[:, half::step, half::step] = mean_with_bump(pairs + np.roll(pairs, -1, 2))
        centres = heights[:, half::step, half::step]
        left_right = centres + np.roll(centres, 1, 1) + corners + np.roll(corners, -1, 2)
        heights[:, ::step, half::step] = mean_with_bump(left_right)
        up_down = centres + np.roll(centres, 1, 2) + corners + np.roll(corners, -1, 1)
        heights[:, half::step, ::step] = mean_with_bump(up_down)
        step, bump = half, bump / smooth
    heights -= heights.min((1, 2), keepdims=True)
    heights /= heights.max((1, 2), keepdims=True)
    return heights[:, :side, :side].astype(np.float32)


CORRUPTIONS: dict[str, Callable[[Floats, int, np.random.Generator], Floats]] = {
    "gaussian_noise": _gaussian_noise,
    "shot_noise": _shot_noise,
    "impulse_noise": _impulse_noise,
    "defocus_blur": _defocus_blur,
    "glass_blur": _glass_blur,
    "motion_blur": _motion_blur,
    "zoom_blur": _zoom_blur,
    "snow": _snow,
    "frost": _frost,
    "fog": _fog,
    "brightness": _brightness,
    "contrast": _contrast,
    "elastic_transform": _elastic_transform,
    "pixelate": lambda x, strength, random: x,
    "jpeg_compression": lambda x, strength, random: x,
}
# Pillow's, and of 8-bit images
_OF_BYTES: dict[str, Callable[[NDArray[np.uint8], int], NDArray[np.uint8]]] = {
    "pixelate": _pixelate,
    "jpeg_compression": _jpeg_compression,
}
