"""Small archives of images, equal or not, for tests of what depends on them."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from cifar_lab.data.dataset import CLASSES

TRAIN, TEST = 60, 30


def drawn(seed: int, count: int) -> NDArray[np.uint8]:
    """(count, 32, 32, 3) of noise."""
    return np.random.default_rng(seed).integers(0, 256, (count, 32, 32, 3), dtype=np.uint8)


def write_zip(
    path: Path, seed: int = 0, *, test_in_train: int = 0, repeated: int = 0, folder: bool = False
) -> Path:
    """Class folders of 60 training and 30 test images; as long as every other such archive.

    Args:
        path: of the .zip, or of the folder.
        seed: of the images.
        test_in_train: so many test images are the first training images of their class.
        repeated: so many training images repeat the one before the last of their class.
        folder: a folder instead of a .zip.
    """
    train, test = drawn(seed, TRAIN), drawn(seed + 1000, TEST)
    test[:test_in_train] = train[:test_in_train]
    if repeated:
        train[-repeated:] = train[-10 - repeated : -10]
    files = {
        f"{split}/{CLASSES[place % 10]}/{place:04}.png": _png(image)
        for split, images in (("train", train), ("test", test))
        for place, image in enumerate(images)
    }
    if folder:
        for name, content in files.items():
            (path / name).parent.mkdir(parents=True, exist_ok=True)
            (path / name).write_bytes(content)
        return path
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in files.items():
            archive.writestr(zipfile.ZipInfo(name), content)
    return path


def _png(image: NDArray[np.uint8]) -> bytes:
    content = io.BytesIO()
    Image.fromarray(image).save(content, "PNG", compress_level=0)  # one length for all
    return content.getvalue()


def numbered(count: int) -> tuple[str, ...]:
    """Names for classes that nobody has named."""
    return tuple(map(str, range(count)))
