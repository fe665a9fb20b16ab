"""Images for measuring: random pixels, since no program here gets faster or slower by content."""

from __future__ import annotations

import io
import pickle
import zipfile
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from cifar_lab.data.dataset import CLASSES

ZIP_NAME = "images.zip"
TEST_IMAGES = 2000
_PARTS = 5  # of the training split, as in the official archive


def make(folder: Path, train_images: int) -> None:
    """Fills ``folder`` with the same images in both forms that the programs read.

    ``images.zip`` (class folders) is for ours, ``cifar-10-batches-py/`` for torchvision.
    """
    random = np.random.default_rng(0)
    pickles = folder / "cifar-10-batches-py"
    pickles.mkdir(parents=True)
    (pickles / "batches.meta").write_bytes(pickle.dumps({"label_names": list(CLASSES)}))
    with zipfile.ZipFile(folder / ZIP_NAME, "w") as archive:
        for split, count in (("train", train_images), ("test", TEST_IMAGES)):
            labels = np.arange(count) % len(CLASSES)
            images = random.integers(0, 256, (count, 32, 32, 3), dtype=np.uint8)
            for number, (image, label) in enumerate(zip(images, labels, strict=True)):
                archive.writestr(f"{split}/{CLASSES[label]}/{number:05}.png", _png(image))
            _write_pickles(pickles, split, images, labels)


def _png(image: NDArray[np.uint8]) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG", compress_level=0)
    return buffer.getvalue()


def _write_pickles(
    folder: Path, split: str, images: NDArray[np.uint8], labels: NDArray[np.int64]
) -> None:
    rows = images.transpose(0, 3, 1, 2).reshape(len(images), -1)
    names = ["test_batch"] if split == "test" else [f"data_batch_{i + 1}" for i in range(_PARTS)]
    for name, part in zip(names, np.array_split(np.arange(len(rows)), len(names)), strict=True):
        batch = {"data": rows[part], "labels": labels[part].tolist()}
        (folder / name).write_bytes(pickle.dumps(batch))
