"""Class folders with names of one's own, for tests of what takes any classes."""

from __future__ import annotations

import zipfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image


def write_class_folders(
    root: Path,
    names: Sequence[str],
    *,
    train: int = 4,
    test: int = 2,
    size: tuple[int, int] = (32, 32),
    seed: int = 0,
) -> Path:
    """So many noisy pictures of (width, height) for each class and split, each class of its own
    brightness.
    """
    random = np.random.default_rng(seed)
    for split, each in (("train", train), ("test", test)):
        for label, name in enumerate(sorted(names)):
            folder = root / split / name
            folder.mkdir(parents=True)
            base = 20 + 180 * label // len(names)
            for index in range(each):
                noise = random.integers(0, 40, (size[1], size[0], 3)) + base
                Image.fromarray(noise.astype(np.uint8)).save(folder / f"{index:03}.png")
    return root


def zipped(root: Path, path: Path) -> Path:
    """The same as a .zip, in no order that may be relied upon."""
    with zipfile.ZipFile(path, "w") as archive:
        for file in sorted(root.rglob("*.*"), reverse=True):
            archive.write(file, file.relative_to(root).as_posix())
    return path
