"""RandAugment and TrivialAugment on whole batches: an operation and a strength for every image.

Their operations are torchvision's (`torchvision.transforms.v2`), which take one strength for a
whole batch; these take one for each image, on any device, and nothing is read back. All operations
are computed for all images and one is kept of each: what chooses is on the device.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import final

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from cifar_lab.data.arguments import check_whole
from cifar_lab.data.augment import Stage, Transform

# Steps of a strength between none and the most, in both papers' code.
BINS = 31
# What `_candidates` computes, in this order.
_KINDS = (
    *("identity", "affine", "brightness", "color", "contrast", "sharpness"),
    *("posterize", "solarize", "autocontrast", "equalize"),
)


@dataclass(frozen=True)
class Operation:
    """One of the operations that an image's is drawn from.

    Attributes:
        kind: of `_KINDS`.
        most: (side of the image in pixels) -> the strength of the last bin; that of bin i is i / 30
            of it.
        signed: half of the images get its negative.
        axis: of what is affine: shear_x, shear_y, translate_x, translate_y, rotate.
    """

    kind: str
    most: Callable[[int], float] = lambda size: 0.0
    signed: bool = False
    axis: str = ""


def _space(
    *, shear: float, translate: Callable[[int], float], rotate: float, blend: float, bits: float
) -> dict[str, Operation]:
    def constant(value: float) -> Callable[[int], float]:
        return lambda size: value

    return {
        "Identity": Operation("identity"),
        "ShearX": Operation("affine", constant(shear), True, "shear_x"),
        "ShearY": Operation("affine", constant(shear), True, "shear_y"),
        "TranslateX": Operation("affine", translate, True, "translate_x"),
        "TranslateY": Operation("affine", translate, True, "translate_y"),
        "Rotate": Operation("affine", constant(rotate), True, "rotate"),
        "Brightness": Operation("brightness", constant(blend), True),
        "Color": Operation("color", constant(blend), True),
        "Contrast": Operation("contrast", constant(blend), True),
        "Sharpness": Operation("sharpness", constant(blend), True),
        "Posterize": Operation("posterize", constant(bits)),
        "Solarize": Operation("solarize", constant(1.0)),
        "AutoContrast": Operation("autocontrast"),
        "Equalize": Operation("equalize"),
    }


# torchvision's names and ranges: pixels, degrees, blends with a degenerate image, bits taken away,
# the share of the range that is inverted.
RAND: Mapping[str, Operation] = _space(
    shear=0.3, translate=lambda size: 150 / 331 * size, rotate=30.0, blend=0.9, bits=4.0
)
TRIVIAL_WIDE: Mapping[str, Operation] = _space(
    shear=0.99, translate=lambda size: 32.0, rotate=135.0, blend=0.99, bits=6.0
)
_SPACES = {"rand": RAND, "wide": TRIVIAL_WIDE}


class _Automatic(Transform):
    """Operations of torchvision's, drawn for each image."""

    stage = Stage.BYTES

    def apply(self, images: Tensor, labels: Tensor, draws: Tensor) -> tuple[Tensor, Tensor]:
        """Applies the drawn operations (B, operations, 8) to each image, one after the other."""
        count = len(images)
        rows = torch.arange(count, device=images.device)
        for index in range(draws.shape[1]):
            kind, value = draws[:, index, 0].long(), draws[:, index, 1].view(-1, 1, 1, 1)
            several = _candidates(images, value, draws[:, index, 2:].unflatten(1, (2, 3)))
            images = torch.cat(several).index_select(0, rows + count * kind)
        return images, labels


@final
class TrivialAugment(_Automatic):
    """One operation for each image, of a strength drawn anew each time; nothing to tune.

    The "wide" space. Source: Müller and Hutter, arXiv:2103.10158.
    """

    def draw(self, count: int, generator: Generator, size: int) -> Tensor:
        """(count, 1, 8) float32: see `parameters`."""
        bins = torch.randint(0, BINS, (count, 1), generator=generator)
        return _drawn("wide", bins, generator, size)


@final
class RandAugment(_Automatic):
    """Some operations after each other for each image, all of one strength.

    Source: Cubuk et al., arXiv:1909.13719; 2 operations of magnitude 9 (of 0..30) are torchvision's
    own choice.
    """

    def __init__(self, *, operations: int, magnitude: int) -> None:
        check_whole("augment.transforms.rand.operations", operations, 1, 10)
        check_whole("augment.transforms.rand.magnitude", magnitude, 0, BINS - 1)
        self.operations = operations
        self.magnitude = magnitude

    def draw(self, count: int, generator: Generator, size: int) -> Tensor:
        """(count, operations, 8) float32: see `parameters`."""
        bins = torch.full((count, self.operations), self.magnitude)
        return _drawn("rand", bins, generator, size)


def _drawn(space: str, bins: Tensor, generator: Generator, size: int) -> Tensor:
    """Of each of the bins (count, operations) an operation, its sign, and what they come to."""
    table = _table(space, size)
    chosen = torch.randint(0, len(table), bins.shape, generator=generator)
    negative = torch.randint(0, 2, bins.shape, generator=generator)
    return table[chosen, bins, negative]


@cache
def _table(space: str, size: int) -> Tensor:
    """(operations, `BINS`, 2, 8): all parameters that there are, made once for all batches."""
    return torch.tensor(
        [
            [
                [parameters(operation, number, negative=sign, size=size) for sign in (False, True)]
                for number in range(BINS)
            ]
            for operation in _SPACES[space].values()
        ]
    )


def parameters(operation: Operation, number: int, *, negative: bool, size: int) -> list[float]:
    """What an operation of a strength needs on the device, 8 numbers.

    The kind (its index in `_KINDS`); a value: the ratio of a blend, the mask of the bits that stay,
    the level from which pixels are inverted; and the inverse affine map from places in the result,
    counted from the middle in pixels, to places in the image in -1..1: x by x, x by y, x, and so
    for y.

    Args:
        operation: which.
        number: of the bin, 0..30.
        negative: whether a signed strength is.
        size: side of the image in pixels.
    """
    strength = operation.most(size) * number / (BINS - 1)
    if operation.signed and negative:
        strength = -strength
    value = 0.0
    if operation.kind in ("brightness", "color", "contrast", "sharpness"):
        value = 1 + strength
    elif operation.kind == "posterize":
        # torch rounds 4.5 to 4 as Python does
        value = float(0xFF & (0xFF << round(strength)))
    elif operation.kind == "solarize":
        value = 255 * (1 - strength)
    rows = _inverse(operation.axis, strength, size)
    return [float(_KINDS.index(operation.kind)), value, *(2 * x / size for x in rows)]


def _inverse(axis: str, strength: float, size: int) -> tuple[float, ...]:
    """The inverse map in pixels around the middle; a shear leaves the upper left corner alone."""
    corner = -size / 2
    match axis:
        case "shear_x":
            return (1, strength, -strength * corner, 0, 1, 0)
        case "shear_y":
            return (1, 0, 0, strength, 1, -strength * corner)
        case "translate_x":
            return (1, 0, -int(strength), 0, 1, 0)
        case "translate_y":
            return (1, 0, 0, 0, 1, -int(strength))
        case "rotate":
            # counter-clockwise, where y points down
            cos, sin = math.cos(math.radians(strength)), math.sin(math.radians(strength))
            return (cos, -sin, 0, sin, cos, 0)
    return (1, 0, 0, 0, 1, 0)


def _candidates(images: Tensor, value: Tensor, inverse: Tensor) -> list[Tensor]:
    """The images after each of `_KINDS`; all uint8 (B, 3, H, W)."""
    # a second of import, in runs that have use for it
    from torchvision.transforms.v2.functional import autocontrast, equalize

    pixels = images.float()
    red, green, blue = pixels.unbind(1)
    grey = (0.2989 * red + 0.587 * green + 0.114 * blue).unsqueeze(1).floor_()
    return [
        images,
        _warped(pixels, inverse),
        _as_bytes(pixels * value),
        _as_bytes(pixels * value + grey * (1 - value)),
        _as_bytes(pixels * value + grey.mean((1, 2, 3), keepdim=True) * (1 - value)),
        _sharpened(pixels, value),
        images & value.to(torch.uint8),
        torch.where(pixels >= value, 255 - images, images),
        autocontrast(images),
        equalize(images),
    ]


def _warped(pixels: Tensor, inverse: Tensor) -> Tensor:
    """Each image by its own map (B, 2, 3), from the nearest pixel; black where there is none."""
    side = pixels.shape[-1]
    ends = (side - 1) / 2
    steps = torch.linspace(-ends, ends, side, device=pixels.device)
    y, x = torch.meshgrid(steps, steps, indexing="ij")
    places = torch.stack([x, y, torch.ones_like(x)], dim=-1).view(1, -1, 3)
    grid = places.expand(len(pixels), -1, -1).bmm(inverse.transpose(1, 2))
    grid = grid.unflatten(1, (side, side))
    warped = F.grid_sample(pixels, grid, mode="nearest", padding_mode="zeros", align_corners=False)
    return _as_bytes(warped)


def _sharpened(pixels: Tensor, ratio: Tensor) -> Tensor:
    """Away from (or, below 1, towards) a blurred version; the outermost pixels stay."""
    inner = pixels[..., 1:-1, 1:-1]
    # a 3x3 kernel of ones with a 5 in the middle, over 13
    blurred = (F.avg_pool2d(pixels, 3, stride=1) * (9 / 13) + inner * (4 / 13)).round_()
    out = pixels.clone()
    out[..., 1:-1, 1:-1] = inner + (1 - ratio) * (blurred - inner)
    return _as_bytes(out)


def _as_bytes(values: Tensor) -> Tensor:
    return values.clamp(0, 255).to(torch.uint8)
