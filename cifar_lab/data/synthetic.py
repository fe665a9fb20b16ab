"""Ten classes of 32 x 32 images drawn by code: no download, the same bytes on every machine.

Each image shows one figure in a colour, before a shaded and noisy background with a second, smaller
patch. The class decides the figure's form surely and its hue roughly: hues of neighbouring classes
overlap, so colour alone, which a network learns first, leaves about a quarter of the images wrong,
and form has to be seen for the rest. All forms look the same in a mirror, and stay in the image
under a shift of 4 pixels.

Everything is integer arithmetic on the raw stream of numpy's PCG64, which is frozen (NEP 19), so no
version of a library can change a pixel.
"""

from __future__ import annotations

import sys

import numpy as np
from numpy.typing import NDArray

from cifar_lab.data.dataset import CLASSES, Dataset, Split, digest_of, split_digest

_SIZE = 32
_CHUNK = 500  # images at a time: the working set stays in the processor's cache
_PARAMETERS = 32  # 32-bit words per image that decide all but the noise
_NOISE_WORDS = 3 * _SIZE * _SIZE // 4
_Ints = NDArray[np.int32]


def make_synthetic(*, train_size: int, test_size: int, data_seed: int) -> Dataset:
    """Draws both splits; image i of a split depends on (data_seed, split, i) alone.

    Classes take turns, so every ten images hold all of them.
    """
    train = _split(train_size, data_seed, 0)
    test = _split(test_size, data_seed, 1)
    return Dataset(
        name="synthetic",
        layout="synthetic",
        official=False,
        digest=digest_of(split_digest(train), split_digest(test)),
        train=train,
        test=test,
    )


def _split(count: int, data_seed: int, part: int) -> Split:
    labels = (np.arange(count) % len(CLASSES)).astype(np.uint8)
    stream = np.random.PCG64(np.random.SeedSequence([data_seed, part]))
    images = np.empty((count, 3, _SIZE, _SIZE), np.uint8)
    for start in range(0, count, _CHUNK):
        chunk = slice(start, min(start + _CHUNK, count))
        words = _words(stream, len(labels[chunk]))
        images[chunk] = _draw(labels[chunk].astype(np.int32), words)
    return Split(images=images, labels=labels)


def _words(stream: np.random.PCG64, count: int) -> NDArray[np.uint32]:
    raw = stream.random_raw(count * (_PARAMETERS + _NOISE_WORDS) // 2)
    words = raw.view(np.uint32).reshape(count, -1)
    assert sys.byteorder == "little", "the low half of each 64-bit word has to come first"
    return words


def _draw(labels: _Ints, words: NDArray[np.uint32]) -> NDArray[np.uint8]:
    count = len(labels)
    parameters = iter((words[:, :_PARAMETERS] >> 8).astype(np.int32).T)

    def between(low: int, high: int) -> _Ints:
        return low + next(parameters) % (high - low + 1)

    background = _background(between)
    patch_colour = np.stack([between(40, 215) for _ in range(3)], axis=1)
    canvas = np.where(_patch(between)[:, None], patch_colour[:, :, None, None], background)

    scale = between(*SCALE)
    rows = np.arange(_SIZE) - between(*CENTRE)[:, None]
    columns = np.arange(_SIZE) - between(*CENTRE)[:, None]
    figure = _figures(labels, rows[:, :, None], columns[:, None, :], scale[:, None, None])
    jitter = sum(between(-HUE, HUE) for _ in range(2)) // 2
    hue = labels * 150 + 75 + jitter
    colour = _rainbow(hue % 1500)
    light = between(*LIGHT)[:, None]
    colour = 128 + (colour - 128) * between(*VIVID)[:, None] // 256 + light
    canvas = np.where(figure[:, None], colour[:, :, None, None], canvas)

    noise = words[:, _PARAMETERS:].view(np.uint8).reshape(count, 3, _SIZE, _SIZE)
    noisy = canvas + (noise.astype(np.int32) - 128) * NOISE // 128
    return noisy.clip(0, 255).astype(np.uint8)

SCALE=(6,10); CENTRE=(11,20); HUE=220; LIGHT=(-40,40); VIVID=(100,256); NOISE=50; GREY=(70,185); TINT=30

def _background(between):
    """A grey-ish colour that shades along both axes."""
    grey = between(*GREY)
    base = np.stack([grey + between(-TINT, TINT) for _ in range(3)], axis=1)[:, :, None, None]
    down, right = between(-48, 48), between(-48, 48)
    ramp = 2 * np.arange(_SIZE) - _SIZE + 1
    shade = down[:, None, None] * ramp[:, None] + right[:, None, None] * ramp
    return base + (shade // _SIZE)[:, None]


def _patch(between):
    rows = abs(np.arange(_SIZE) - between(0, _SIZE - 1)[:, None]) <= between(1, 5)[:, None]
    columns = abs(np.arange(_SIZE) - between(0, _SIZE - 1)[:, None]) <= between(1, 5)[:, None]
    return rows[:, :, None] & columns[:, None, :]


def _rainbow(hue):
    """Hues 0..1499 around the colour circle as full colours (n, 3) in 0..255."""
    third = np.stack([(hue + shift) % 1500 for shift in (0, 1000, 500)], axis=1)
    return (abs(third - 750) * 255 * 2 // 750 - 128).clip(0, 255)


def _figures(labels, y, x, scale):
    """(n, 32, 32) bool: the class's form, of half-width `scale`, around (0, 0)."""
    figure = np.empty((len(labels), _SIZE, _SIZE), bool)
    for label, form in enumerate(_FORMS):
        mine = labels == label
        figure[mine] = form(y[mine], abs(x[mine]), scale[mine])
    return figure


def _square(y, x, s):
    return (abs(y) <= s) & (x <= s)


_FORMS = (
    lambda y, x, s: y * y + x * x <= s * s,  # disc
    _square,
    lambda y, x, s: abs(y) + x <= s + s // 4,  # diamond
    lambda y, x, s: (y * y + x * x <= s * s) & (4 * (y * y + x * x) >= s * s),  # ring
    lambda y, x, s: _square(y, x, s) & ((3 * abs(y) <= s) | (3 * x <= s)),  # plus
    lambda y, x, s: _square(y, x, s) & (abs(abs(y) - x) * 3 <= s),  # saltire
    lambda y, x, s: _square(y, x, s) & (2 * x <= y + s),  # triangle
    lambda y, x, s: _square(y, x, s) & ((y + 32) % 4 < 2),  # rows
    lambda y, x, s: _square(y, x, s) & (x % 4 < 2),  # columns
    lambda y, x, s: _square(y, x, s) & ((2 * abs(y) >= s) | (2 * x >= s)),  # frame
)
