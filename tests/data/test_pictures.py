"""Pictures of every kind become the pixels that they show; broken and huge ones are one line."""

from __future__ import annotations

import io
import os
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cifar_lab.data import pictures
from cifar_lab.data.pictures import MOST_PIXELS, read_picture
from cifar_lab.errors import InputError

SIZE = (32, 32)
RED = (200, 30, 40)


def saved(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def test_32x32_pixels_stay_as_they_are() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8)
    for kind in ("PNG", "BMP"):
        read = read_picture(saved(Image.fromarray(pixels), kind), SIZE)
        assert np.array_equal(read, pixels.transpose(2, 0, 1))
    webp = saved(Image.fromarray(pixels), "WEBP", lossless=True)
    assert np.array_equal(read_picture(webp, SIZE), pixels.transpose(2, 0, 1))


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "BMP", "GIF"])
@pytest.mark.parametrize("size", [(32, 32), (100, 60), (5, 90), (1, 1)])
def test_any_size_of_any_kind(kind: str, size: tuple[int, int]) -> None:
    read = read_picture(saved(Image.new("RGB", size, RED), kind), SIZE)
    assert read.shape == (3, 32, 32)
    assert read.dtype == np.uint8
    assert np.abs(read.astype(int) - np.array(RED)[:, None, None]).max() <= 6  # JPEG's and GIF's


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGBA", "LA", "I;16", "CMYK"])
def test_any_mode(mode: str) -> None:
    grey = 180 if mode != "1" else 255
    if mode == "I;16":
        image = Image.fromarray(np.full((32, 32), grey * 257, np.uint16))
    elif mode == "CMYK":
        image = Image.new("RGB", (32, 32), (grey,) * 3).convert("CMYK")
    else:
        image = Image.new("RGB", (32, 32), (grey,) * 3).convert(mode)
    read = read_picture(saved(image, "JPEG" if mode == "CMYK" else "PNG"), SIZE)
    near = 40 if mode == "P" else 2  # the palette has no such grey
    assert np.abs(read.astype(int) - grey).max() <= near


def test_transparency_lies_on_white() -> None:
    image = Image.new("RGBA", (32, 32), (*RED, 0))
    image.paste((*RED, 255), (0, 0, 16, 32))
    image.paste((0, 0, 0, 128), (24, 0, 32, 32))
    read = read_picture(saved(image, "PNG"), SIZE)
    assert read[:, 5, 5].tolist() == list(RED)
    assert read[:, 5, 20].tolist() == [255] * 3
    assert read[:, 5, 28].tolist() == [127] * 3
    palette = Image.new("P", (32, 32), 1)
    palette.putpalette([0, 0, 0, *RED])
    clear = saved(palette, "PNG", transparency=1)
    assert read_picture(clear, SIZE).min() == 255


def test_a_gifs_first_frame_counts() -> None:
    frames = [Image.new("RGB", (32, 32), colour) for colour in ((0, 0, 255), (0, 255, 0))]
    gif = saved(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert read_picture(gif, SIZE)[:, 3, 3].tolist() == [0, 0, 255]


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_picture_is_turned_as_its_camera_noted(orientation: int) -> None:
    from PIL import ImageOps

    pixels = np.zeros((32, 32, 3), np.uint8)
    pixels[:16, :16] = 255
    pixels[:16, 16:] = 128
    exif = Image.Exif()
    exif[0x0112] = orientation
    png = saved(Image.fromarray(pixels), "PNG", exif=exif)
    with Image.open(io.BytesIO(png)) as image:
        turned = np.asarray(ImageOps.exif_transpose(image)).transpose(2, 0, 1)
    assert np.array_equal(read_picture(png, SIZE), turned)
    assert np.array_equal(turned[0], pixels[..., 0]) == (orientation == 1)


def test_of_what_is_not_square_the_middle_is_taken() -> None:
    image = Image.new("RGB", (300, 100), "black")
    image.paste(RED, (100, 0, 200, 100))
    read = read_picture(saved(image, "PNG"), SIZE)
    assert (read[:, :, 2:-2] == np.array(RED)[:, None, None]).all()


def png_of(width: int, height: int, data: bytes = b"") -> bytes:
    """A PNG that says it has so many pixels."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        crc = struct.pack(">I", zlib.crc32(kind + content))
        return struct.pack(">I", len(content)) + kind + content + crc

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    image = chunk(b"IDAT", zlib.compress(data))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + image + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "is empty"),
        (b"hello", "is no readable picture; must be PNG, JPEG, WEBP, BMP, GIF"),
        (saved(Image.new("RGB", (64, 64)), "JPEG")[:-200], "is no readable picture"),
        (saved(Image.new("RGB", (64, 64)), "PNG")[:-30], "is no readable picture"),
        (saved(Image.new("RGB", (8, 8)), "TIFF"), "is no readable picture; must be"),
        (png_of(50_000, 50_000), "is no readable picture .*2500000000 pixels"),
        (png_of(10_000, 9_000), "is no readable picture .*90000000 pixels"),
        (png_of(4, 4), "is no readable picture"),
        (b"\x00" * 1000, "is no readable picture"),
    ],
)
def test_a_broken_or_huge_picture_is_one_line_with_its_name(
    tmp_path: Path, content: bytes, said: str
) -> None:
    path = tmp_path / "some.png"
    path.write_bytes(content)
    with pytest.raises(InputError, match=rf"some\.png: {said}") as error:
        read_picture(path, SIZE)
    assert "\n" not in str(error.value)


def test_what_is_no_file_is_said(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="does not exist"):
        read_picture(tmp_path / "x.png", SIZE)
    with pytest.raises(InputError, match="is no file"):
        read_picture(tmp_path, SIZE)
    os.mkfifo(tmp_path / "pipe.png")
    with pytest.raises(InputError, match="is no file"):  # and isn't waited for
        read_picture(tmp_path / "pipe.png", SIZE)


def test_no_more_of_a_file_is_read_than_the_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pictures, "MOST_BYTES", 1000)
    endless = open("/dev/zero", "rb")  # noqa: SIM115  (closed below)
    with endless:
        assert len(pictures.read_bounded(endless)) == 1001
    with pytest.raises(InputError, match="has more than"):
        read_picture(b"x" * 1001, SIZE)


def test_a_picture_in_memory_is_bounded_too() -> None:
    class Huge(Image.Image):
        @property
        def size(self) -> tuple[int, int]:
            return (MOST_PIXELS, 2)

    with pytest.raises(InputError, match="at most 89,478,485 are read"):
        read_picture(Huge(), SIZE)
