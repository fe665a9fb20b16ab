"""One picture from anybody as the pixels that a network sees."""

from __future__ import annotations

import io
import warnings
from pathlib import Path
from typing import IO

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from cifar_lab.errors import InputError, reason_of

FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF")
SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif")
MOST_BYTES = 100 * 2**20
# Of a picture that says it is larger nothing is decoded: Pillow's own bound against bombs.
MOST_PIXELS = 89_478_485
_READ_BYTES = 2**20


def read_picture(
    source: Path | bytes | Image.Image, size: tuple[int, int], *, name: str = "image"
) -> NDArray[np.uint8]:
    """A picture of any size and mode, turned as its camera noted, as RGB.

    The middle of what isn't square is taken; another size is resized (bicubic, antialiased), as
    `data=folders` does. What is transparent lies on white. Of an animation the first frame counts.

    Args:
        source: a path, what a file holds, or an opened picture.
        size: (H, W) wanted.
        name: for messages, where the source is no path.

    Returns:
        (3, H, W).

    Raises:
        InputError: it can't be read as one of `FORMATS`, or is larger than `MOST_BYTES` or
            `MOST_PIXELS`; one line that begins with its name.
    """
    name = str(source) if isinstance(source, Path) else name
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            if isinstance(source, Image.Image):
                return _pixels(source, size)
            content = bounded(source) if isinstance(source, Path) else source
            if not content:
                raise InputError("is empty")
            if len(content) > MOST_BYTES:
                raise InputError(f"has more than {MOST_BYTES // 2**20} MiB")
            with Image.open(io.BytesIO(content), formats=FORMATS) as image:
                return _pixels(image, size)
    except InputError as error:
        raise InputError(f"{name}: {error}") from error
    except OSError as error:
        raise InputError(f"{name}: {_reason(error)}") from error
    except MemoryError as error:
        raise InputError(f"{name}: is too large for this machine's memory") from error
    except Exception as error:  # Pillow raises a dozen kinds for broken data
        raise InputError(f"{name}: is no readable picture ({reason_of(error)})") from error


def fitted(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    """The picture in (H, W): as it is, or its middle resized (bicubic, antialiased)."""
    wanted = (size[1], size[0])
    if image.size == wanted:
        return image
    return ImageOps.fit(image, wanted, method=Image.Resampling.BICUBIC)


def bounded(path: Path) -> bytes:
    """What a file holds, as `read_bounded`; raises InputError for what is no file."""
    if not path.is_file():  # a folder; a pipe that nobody writes to would be waited for
        raise InputError("does not exist" if not path.exists() else "is no file")
    with open(path, "rb") as file:
        return read_bounded(file)


def read_bounded(file: IO[bytes]) -> bytes:
    """What a stream holds, and no more than a byte above `MOST_BYTES` of it."""
    parts, left = [], MOST_BYTES + 1
    while left and (part := file.read(min(left, _READ_BYTES))):
        parts.append(part)
        left -= len(part)
    return b"".join(parts)


def _pixels(image: Image.Image, size: tuple[int, int]) -> NDArray[np.uint8]:
    width, height = image.size
    if width * height > MOST_PIXELS:
        raise InputError(f"has {width}x{height} pixels; at most {MOST_PIXELS:,} are read")
    rgb = _to_rgb(ImageOps.exif_transpose(image))
    return np.ascontiguousarray(np.asarray(fitted(rgb, size)).transpose(2, 0, 1))


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):
        return eight_bits(image).convert("RGB")
    if image.mode == "F":
        raise InputError("has numbers with a point for pixels; save it with 8 or 16 bits")
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(white, image).convert("RGB")
    return image.convert("RGB")


def eight_bits(image: Image.Image) -> Image.Image:
    """The upper 8 of a grey picture's 16 bits; Pillow's own way cuts off all above 255."""
    values = np.asarray(image).astype(np.int64).clip(0, 65535) >> 8
    return Image.fromarray(values.astype(np.uint8))


def _reason(error: OSError) -> str:
    if error.strerror:
        return f"can't be read ({error.strerror})"
    reason = str(error).partition(" <_io")[0]  # "cannot identify image file <_io.BytesIO ...>"
    if reason == "cannot identify image file":
        return f"is no readable picture; must be {', '.join(FORMATS)}"
    return f"is no readable picture ({reason})"
