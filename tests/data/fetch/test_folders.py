"""Class folders on disk and in a .zip."""

from __future__ import annotations

import io
import os
import re
import shutil
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from cifar_lab.data.dataset import CLASSES, Split
from cifar_lab.data.fetch.folders import (
    fingerprint_folder,
    list_folder,
    list_zip,
    read_folder,
    read_zip,
)
from cifar_lab.errors import InputError
from tests.data.conftest import Folders


def read(root: Path) -> tuple[Split, Split]:
    train, test, resized = read_folder(root, list_folder(root, CLASSES))
    assert resized == 0
    return train, test


def zipped(root: Path, path: Path, top: str = "") -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        # in reverse, since no order may be relied upon
        for file in sorted(root.rglob("*.*"), reverse=True):
            archive.write(file, top + file.relative_to(root).as_posix())
    return path


def png(mode: str = "RGB", size: tuple[int, int] = (32, 32), **options: Any) -> bytes:
    buffer = io.BytesIO()
    Image.new(mode, size).save(buffer, "PNG", **options)
    return buffer.getvalue()


def assert_same(found: tuple[Split, Split], written: Folders) -> None:
    for split, expected in zip(found, (written.train, written.test), strict=True):
        np.testing.assert_array_equal(split.images, expected.images)
        np.testing.assert_array_equal(split.labels, expected.labels)


def test_classes_come_in_turn_and_each_by_name(class_folders: Folders) -> None:
    assert_same(read(class_folders.root), class_folders)


@pytest.mark.parametrize("top", ["", "cifar10/"])
def test_zip_gives_what_its_folders_give(class_folders: Folders, tmp_path: Path, top: str) -> None:
    path = zipped(class_folders.root, tmp_path / "images.zip", top)
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr(f"__MACOSX/{top}train/cat/._0001.png", b"")
        archive.writestr(f"{top}train/cat/.DS_Store", b"")
        archive.writestr(f"{top}README.md" if top else "train.md", b"")
    assert_same(read_zip(path, list_zip(path, CLASSES))[:2], class_folders)


def test_jpeg_is_what_pillow_decodes(class_folders: Folders) -> None:
    path = class_folders.root / "test/truck/a.jpg"
    Image.fromarray(class_folders.train.images[0].transpose(1, 2, 0)).save(path, quality=75)
    _, test = read(class_folders.root)
    expected = np.asarray(Image.open(path)).transpose(2, 0, 1)
    np.testing.assert_array_equal(test.images[-1], expected)


@pytest.mark.parametrize("split", ["train", "test"])
def test_nine_classes_name_the_missing_one(class_folders: Folders, split: str) -> None:
    shutil.rmtree(class_folders.root / split / "frog")
    with pytest.raises(InputError, match=f"{split}: lacks frog"):
        list_folder(class_folders.root, CLASSES)


def test_renamed_class_names_both(class_folders: Folders, tmp_path: Path) -> None:
    (class_folders.root / "train/frog").rename(class_folders.root / "train/toad")
    with pytest.raises(InputError, match=r"train: lacks frog and has unknown toad"):
        list_folder(class_folders.root, CLASSES)
    path = zipped(class_folders.root, tmp_path / "images.zip")
    with pytest.raises(InputError, match=re.escape(f"{path}!train: lacks frog and has unknown")):
        list_zip(path, CLASSES)


def test_eleventh_class_is_named(class_folders: Folders) -> None:
    shutil.copytree(class_folders.root / "test/frog", class_folders.root / "test/toad")
    with pytest.raises(InputError, match=r"test: has unknown toad; it must hold exactly"):
        list_folder(class_folders.root, CLASSES)


def test_missing_split_and_empty_class_are_named(class_folders: Folders) -> None:
    for file in (class_folders.root / "test/ship").iterdir():
        file.unlink()
    with pytest.raises(InputError, match="test/ship: holds no image"):
        list_folder(class_folders.root, CLASSES)
    shutil.rmtree(class_folders.root / "test")
    with pytest.raises(InputError, match="test: is missing"):
        list_folder(class_folders.root, CLASSES)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (png()[:-20], "is no readable picture"),
        (b"not an image", "is no readable picture"),
        (b"", "is no readable picture"),
        (png(size=(28, 28)), "is 28x28 pixels"),
        (png("RGBA"), "has transparent pixels"),
        (png("LA"), "has transparent pixels"),
        (png("P", transparency=0), "has transparent pixels"),
    ],
)
def test_unsound_image_is_named_on_disk_and_in_a_zip(
    class_folders: Folders, tmp_path: Path, content: bytes, reason: str
) -> None:
    (class_folders.root / "train/deer/9.png").write_bytes(content)
    with pytest.raises(InputError) as caught:
        read(class_folders.root)
    assert str(caught.value).startswith(f"{class_folders.root}/train/deer/9.png: {reason}")
    path = zipped(class_folders.root, tmp_path / "images.zip", "top/")
    with pytest.raises(InputError) as caught:
        read_zip(path, list_zip(path, CLASSES))
    assert str(caught.value).startswith(f"{path}!top/train/deer/9.png: {reason}")
    assert "\n" not in str(caught.value)


def test_gray_palette_and_opaque_images_become_rgb(class_folders: Folders) -> None:
    pixels = np.arange(1024, dtype=np.uint8).reshape(32, 32)
    gray = Image.fromarray(pixels)
    rgb = gray.convert("RGB")
    folder = class_folders.root / "train/airplane"
    shutil.rmtree(folder)
    folder.mkdir()
    for name, image in {
        "gray": gray,
        "opaque": rgb.convert("RGBA"),
        "palette": gray.convert("P"),
        "rgb": rgb,
    }.items():
        image.save(folder / f"{name}.png")
    train, _ = read(class_folders.root)
    for image in train.images[train.labels == 0]:
        np.testing.assert_array_equal(image, np.stack([pixels] * 3))


@pytest.mark.parametrize(
    ("stray", "named"),
    [
        ("train/cat/notes.txt", "train/cat/notes.txt"),
        ("train/cat/more/1.png", "train/cat/more"),
        ("train/1.png", "train/1.png"),
    ],
)
def test_stray_file_is_named(
    class_folders: Folders, tmp_path: Path, stray: str, named: str
) -> None:
    path = class_folders.root / stray
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(b"stray")
    with pytest.raises(InputError, match=re.escape(f"{class_folders.root}/{named}: ")):
        list_folder(class_folders.root, CLASSES)
    archive = zipped(class_folders.root, tmp_path / "images.zip")
    with pytest.raises(InputError, match=re.escape(f"{archive}!{stray}")):
        list_zip(archive, CLASSES)


def test_truncated_zip_is_named(class_folders: Folders, tmp_path: Path) -> None:
    path = zipped(class_folders.root, tmp_path / "images.zip")
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(InputError, match=re.escape(f"{path}: is no whole .zip")):
        list_zip(path, CLASSES)


def test_changed_byte_inside_a_zip_names_the_image(class_folders: Folders, tmp_path: Path) -> None:
    path = zipped(class_folders.root, tmp_path / "images.zip")
    with zipfile.ZipFile(path) as archive:
        offset = archive.getinfo("test/dog/0005.png").header_offset + 500
    content = bytearray(path.read_bytes())
    content[offset] ^= 1
    path.write_bytes(content)
    with pytest.raises(InputError, match=re.escape("!test/dog/0005.png: is no readable")):
        read_zip(path, list_zip(path, CLASSES))


def test_fingerprint_sees_every_change_of_an_image_and_nothing_else(
    class_folders: Folders,
) -> None:
    root = class_folders.root
    file = root / "train/bird/0012.png"
    seen = {fingerprint_folder(root)}

    def changed() -> bool:
        new = fingerprint_folder(root)
        fresh = new not in seen
        seen.add(new)
        return fresh

    assert not changed()
    (root / "train/bird/.DS_Store").write_bytes(b"")
    assert not changed()
    stat = file.stat()
    os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns + 1))
    assert changed()
    other = file.with_name("0099.png")
    other.write_bytes(file.read_bytes()[::-1])
    stat = file.stat()
    other.replace(file)  # of the same size, and with its dates
    os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert changed()
    shutil.copy(file, root / "train/bird/0099.png")
    assert changed()
    (root / "train/bird/0099.png").rename(root / "train/bird/0098.png")
    assert changed()
    (root / "train/bird/0098.png").rename(root / "train/cat/0098.png")
    assert changed()
    with (root / "train/cat/0098.png").open("ab") as image:
        image.write(b"x")
    assert changed()
