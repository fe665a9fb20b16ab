"""What an evaluation and a prediction look like: reliability, and sheets of pictures."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from cifar_lab.inference.evaluation import Calibration

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_DPI = 110
_BLUE, _VERMILION = "#0072B2", "#D55E00"  # Okabe and Ito's
MOST_PICTURES = 100
_COLUMNS = 5
_MAP_ALPHA = 0.55


def draw_reliability(before: Calibration, after: Calibration | None) -> Figure:
    """Accuracy over confidence, and how many images lie in each bin; the diagonal is perfect.

    Args:
        before: of the answers as they are.
        after: with the temperature; None: none was fitted.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 6.4), dpi=_DPI, facecolor="white", layout="constrained")
    axes, counts = figure.subplots(2, 1, sharex=True, height_ratios=[4, 1])
    axes.plot([0, 1], [0, 1], color="#999999", linewidth=1, linestyle="--")
    bins = [b for b in before.bins if b.images]
    label = f"as it is: calibration error {100 * before.ece:.1f} %"
    axes.plot(
        [b.confidence for b in bins], [b.accuracy for b in bins], "o-", color=_BLUE, label=label
    )
    if after is not None:
        scaled = [b for b in after.bins if b.images]
        label = f"with the temperature: {100 * after.ece:.1f} %"
        x, y = [b.confidence for b in scaled], [b.accuracy for b in scaled]
        axes.plot(x, y, "s-", color=_VERMILION, label=label)
    axes.set(xlim=(0, 1), ylim=(0, 1), ylabel="accuracy", title="Reliability")
    axes.legend(loc="upper left", frameon=False)
    middles = [(b.low + b.high) / 2 for b in before.bins]
    width = before.bins[0].high - before.bins[0].low
    counts.bar(middles, [b.images for b in before.bins], width=0.9 * width, color=_BLUE)
    counts.set(xlabel="probability of the answer", ylabel="images")
    return figure


def overlaid(pixels: NDArray[np.uint8], found: NDArray[np.float32]) -> NDArray[np.uint8]:
    """A picture under an activation map: (3, H, W) and (H, W) in [0, 1] -> (3, H, W)."""
    from matplotlib import colormaps

    colors = np.asarray(colormaps["inferno"](found))[..., :3].transpose(2, 0, 1)
    mixed = (1 - _MAP_ALPHA) * pixels + _MAP_ALPHA * 255 * colors
    return np.asarray(mixed.round(), np.uint8)


def draw_sheet(
    pictures: Sequence[NDArray[np.uint8]],
    captions: Sequence[str],
    maps: NDArray[np.float32] | None = None,
) -> Figure:
    """Pictures with captions, five in a row; `MOST_PICTURES` at most.

    Args:
        pictures: (3, H, W) each, as the network sees them.
        captions: of each, a line or two.
        maps: (N, H, W) in [0, 1]: drawn over a second copy of each picture, beside it.
    """
    from matplotlib.figure import Figure

    shown = min(len(pictures), MOST_PICTURES)
    columns = min(_COLUMNS, shown)
    rows = math.ceil(shown / columns)
    cell = 1.9 if maps is None else 3.0
    figure = Figure(figsize=(cell * columns, 2.3 * rows), dpi=_DPI, facecolor="white")
    for place in range(shown):
        axes = figure.add_subplot(rows, columns, place + 1)
        picture = pictures[place].transpose(1, 2, 0)
        height, width = picture.shape[:2]
        axes.imshow(picture, extent=(0, width, height, 0))
        if maps is not None:
            beside = (1.08 * width, 2.08 * width, height, 0)
            axes.imshow(overlaid(pictures[place], maps[place]).transpose(1, 2, 0), extent=beside)
            axes.set_xlim(0, 2.08 * width)
        axes.set_axis_off()
        axes.set_title(captions[place].replace("$", r"\$"), fontsize=8)
    figure.subplots_adjust(left=0.02, right=0.98, bottom=0.02, top=1 - 0.5 / (2.3 * rows))
    figure.subplots_adjust(hspace=0.35, wspace=0.1)
    return figure
