"""Ten classes of 32 x 32 images drawn by code: no download, the same bytes on every machine.

Each image shows one large figure before a shaded, noisy, greyish background, and a small patch that
means nothing. The class decides the figure's form always and its colour mostly: some figures wear
the colour of another class. Colour alone, which a network learns within a few dozen steps, is
therefore right for 78% of the images; who looks at form can be right for all. That keeps one
epoch of a small network well above chance and well below perfect over a wide range of learning
rates, and leaves room above it for a better network. All forms look the same in a mirror and stay
themselves under a shift of 4 pixels.

Everything is integer arithmetic on the raw stream of numpy's PCG64, which is frozen (NEP 19), so no
version of a library can change a pixel.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from cifar_lab.data.dataset import CLASSES, Channels, Dataset, Split, digest_of, split_digest

# Channel statistics of the 10,000 training images of data_seed=0, scaled to [0, 1].
SYNTHETIC_MEAN = (0.5326, 0.4726, 0.5066)
SYNTHETIC_STD = (0.3323, 0.3392, 0.3541)

_SIZE = 32
_CHUNK = 500  # images at a time: the working set stays in the processor's cache
_PARAMETER_WORDS = 32  # 32-bit words per image that decide all but the noise
_NOISE_WORDS = 3 * _SIZE * _SIZE // 4

_MISLED_PERCENT = 22  # figures in the colour of another class
_HALF_WIDTH = (13, 15)
_CENTRE = (14, 17)
_NOISE = 22  # greatest deviation of a pixel
_PALETTE = np.array(
    [
        (0, 0, 0),
        (255, 255, 255),
        (255, 0, 0),
        (0, 255, 0),
        (0, 0, 255),
        (255, 255, 0),
        (0, 255, 255),
        (255, 0, 255),
        (255, 128, 0),
        (128, 0, 255),
    ],
    np.int32,
)

_Ints = NDArray[np.int32]
_Mask = NDArray[np.bool_]
_Between = Callable[[int, int], _Ints]


def make_synthetic(*, train_size: int, test_size: int, data_seed: int) -> Dataset:
    """Draws both splits; image i of a split depends on (data_seed, split, i) alone.

    Classes take turns, so every ten images in a row hold all of them.
    """
    train = _split(train_size, data_seed, 0)
    test = _split(test_size, data_seed, 1)
    return Dataset(
        name="synthetic",
        layout="synthetic",
        official=False,
        digest=digest_of(split_digest(train), split_digest(test)),
        classes=CLASSES,
        train=train,
        test=test,
        channels=Channels(SYNTHETIC_MEAN, SYNTHETIC_STD),
    )


def _split(count: int, data_seed: int, part: int) -> Split:
    labels = (np.arange(count) % len(CLASSES)).astype(np.uint8)
    stream = np.random.PCG64(np.random.SeedSequence([data_seed, part]))
    images = np.empty((count, 3, _SIZE, _SIZE), np.uint8)
    for start in range(0, count, _CHUNK):
        chunk = slice(start, min(start + _CHUNK, count))
        images[chunk] = _draw(labels[chunk].astype(np.int32), stream)
    return Split(images=images, labels=labels)


def _draw(labels: _Ints, stream: np.random.PCG64) -> NDArray[np.uint8]:
    count = len(labels)
    raw = stream.random_raw(count * (_PARAMETER_WORDS + _NOISE_WORDS) // 2)
    words = raw.astype("<u8").view("<u4").reshape(count, -1)
    parameters = iter((words[:, :_PARAMETER_WORDS] >> 1).astype(np.int32).T)

    def between(low: int, high: int) -> _Ints:
        """One whole number in low..high for every image."""
        drawn: _Ints = low + next(parameters) % (high - low + 1)
        return drawn

    canvas = _background(between)
    canvas = _painted(canvas, _patch(between), _colour(between, 40, 215))
    misled = between(0, 99) < _MISLED_PERCENT
    other = (labels + between(1, len(CLASSES) - 1)) % len(CLASSES)
    worn = _PALETTE[np.where(misled, other, labels)] + _colour(between, -10, 10)
    canvas = _painted(canvas, _figure(labels, between), worn)

    noise = words[:, _PARAMETER_WORDS:].view(np.uint8).reshape(canvas.shape).astype(np.int32)
    return (canvas + (noise - 128) * _NOISE // 128).clip(0, 255).astype(np.uint8)


def _painted(canvas: _Ints, mask: _Mask, colour: _Ints) -> _Ints:
    return np.where(mask[:, None], colour[:, :, None, None], canvas)


def _colour(between: _Between, low: int, high: int) -> _Ints:
    """(n, 3), every channel for itself."""
    return np.stack([between(low, high) for _ in range(3)], axis=1)


def _background(between: _Between) -> _Ints:
    """(n, 3, 32, 32): a greyish colour that shades along both axes."""
    base = between(118, 138)[:, None] + _colour(between, -10, 10)
    down, right = between(-48, 48)[:, None, None], between(-48, 48)[:, None, None]
    ramp = (2 * np.arange(_SIZE) - _SIZE + 1).astype(np.int32)
    shade = (down * ramp[:, None] + right * ramp) // _SIZE
    background: _Ints = base[:, :, None, None] + shade[:, None]
    return background


def _patch(between: _Between) -> _Mask:
    """(n, 32, 32): a rectangle of 3 to 9 pixels a side, anywhere."""
    place = np.arange(_SIZE)
    rows, columns = (
        abs(place - between(0, _SIZE - 1)[:, None]) <= between(1, 4)[:, None] for _ in range(2)
    )
    return rows[:, :, None] & columns[:, None, :]


def _figure(labels: _Ints, between: _Between) -> _Mask:
    """(n, 32, 32): the form of each image's class."""
    half = between(*_HALF_WIDTH)[:, None, None]
    place = np.arange(_SIZE, dtype=np.int32)
    y = (place - between(*_CENTRE)[:, None])[:, :, None]
    x = abs(place - between(*_CENTRE)[:, None])[:, None, :]
    figure = np.empty((len(labels), _SIZE, _SIZE), np.bool_)
    for label, form in enumerate(_FORMS):
        mine = labels == label
        figure[mine] = form(y[mine], x[mine], half[mine])
    return figure


def _square(y: _Ints, x: _Ints, s: _Ints) -> _Mask:
    return (abs(y) <= s) & (x <= s)


# Row y from the centre, distance x from the mirror axis, half-width s -> inside or not.
_FORMS: tuple[Callable[[_Ints, _Ints, _Ints], _Mask], ...] = (
    lambda y, x, s: y * y + x * x <= s * s,  # disc
    _square,
    lambda y, x, s: abs(y) + x <= s + s // 4,  # diamond
    lambda y, x, s: (y * y + x * x <= s * s) & (4 * (y * y + x * x) >= s * s),  # ring
    lambda y, x, s: _square(y, x, s) & ((3 * abs(y) <= s) | (3 * x <= s)),  # upright cross
    lambda y, x, s: _square(y, x, s) & (3 * abs(abs(y) - x) <= s),  # diagonal cross
    lambda y, x, s: _square(y, x, s) & (2 * x <= y + s),  # triangle
    lambda y, x, s: _square(y, x, s) & ((y + _SIZE) % 4 < 2),  # lying stripes
    lambda y, x, s: _square(y, x, s) & ((x + 1) % 4 < 2),  # standing stripes
    lambda y, x, s: _square(y, x, s) & ((2 * abs(y) >= s) | (2 * x >= s)),  # frame
)
