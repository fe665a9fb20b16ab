"""Folders, zips and archives as they lie on people's disks: accepted, or called what they are."""

from __future__ import annotations

import gzip
import io
import logging
import re
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cifar_lab.data import pictures
from cifar_lab.data.dataset import CLASSES
from cifar_lab.data.fetch import archive, folders
from cifar_lab.data.fetch.archive import OFFICIAL, check_archive, read_pickles
from cifar_lab.data.fetch.cifar100 import FINE
from cifar_lab.data.fetch.folders import list_folder, list_zip, read_folder, read_zip
from cifar_lab.data.fetch.sources import find_sources
from cifar_lab.errors import InputError
from tests.data.conftest import Fake
from tests.support.class_folders import write_class_folders, zipped

Read = tuple[np.ndarray, np.ndarray]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return write_class_folders(tmp_path / "root", ["cat", "dog"])


def of_folder(root: Path, classes: tuple[str, ...] | None = None) -> list[Read]:
    train, test, _ = read_folder(root, list_folder(root, classes), 32)
    return [(split.images, split.labels) for split in (train, test)]


def of_zip(path: Path, classes: tuple[str, ...] | None = None) -> list[Read]:
    train, test, _ = read_zip(path, list_zip(path, classes), 32)
    return [(split.images, split.labels) for split in (train, test)]


def assert_equal(found: list[Read], wanted: list[Read]) -> None:
    for one, other in zip(found, wanted, strict=True):
        np.testing.assert_array_equal(one[0], other[0])
        np.testing.assert_array_equal(one[1], other[1])


# --- names ----------------------------------------------------------------------------------------


def test_what_systems_and_editors_leave_is_left_out(root: Path, tmp_path: Path) -> None:
    wanted = of_folder(root)
    for name in (
        *("train/cat/.ipynb_checkpoints/a-checkpoint.png", "train/__MACOSX/cat/._1.png"),
        *("train/cat/__MACOSX/._1.png", "test/dog/.DS_Store", "test/dog/Thumbs.db"),
        *("train/dog/thumbs.db", "train/dog/@eaDir/1.png", ".ipynb_checkpoints/x.png"),
    ):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"")
    assert_equal(of_folder(root), wanted)
    assert_equal(of_zip(zipped(root, tmp_path / "a.zip")), wanted)


def test_splits_and_suffixes_of_another_case_are_read_and_said(
    root: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    wanted = of_folder(root)
    (root / "train").rename(root / "Train")
    (root / "test").rename(root / "TEST")
    for file in root.rglob("*.png"):
        file.rename(file.with_suffix(".PNG"))
    with caplog.at_level(logging.INFO, "cifar_lab.data"):
        assert_equal(of_folder(root), wanted)
        assert "in spite of their case: TEST/cat, TEST/dog, Train/cat, Train/dog" in caplog.text
    assert_equal(of_zip(zipped(root, tmp_path / "a.zip")), wanted)
    (source,) = find_sources(root, None, 32)
    assert source.fingerprint()
    (root / "train").mkdir()
    with pytest.raises(InputError, match="holds Train/ and train/; leave one"):
        list_folder(root, None)


def test_known_classes_are_found_in_any_case(tmp_path: Path) -> None:
    root = write_class_folders(tmp_path / "root", CLASSES)
    wanted = of_folder(root, CLASSES)
    (root / "train/airplane").rename(root / "train/Airplane")
    assert_equal(of_folder(root, CLASSES), wanted)
    (root / "train/airplane").mkdir()
    with pytest.raises(InputError, match="holds Airplane/ and airplane/"):
        of_folder(root, CLASSES)


@pytest.mark.parametrize("top", ["", "pets\\", "./", "pets/"])
def test_a_folder_zipped_on_windows_is_read(root: Path, tmp_path: Path, top: str) -> None:
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w") as zipped:
        for file in root.rglob("*.png"):
            name = file.relative_to(root).as_posix()
            info = zipfile.ZipInfo(top + (name if "/" in top else name.replace("/", "\\")))
            zipped.writestr(info, file.read_bytes())
    assert_equal(of_zip(path), of_folder(root))


# --- pictures -------------------------------------------------------------------------------------


def test_gif_webp_bmp_and_16_bits_are_read(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    grey = np.arange(1024, dtype=np.uint16).reshape(32, 32) * 64
    Image.fromarray(grey).save(root / "train/cat/a16.png")
    frames = [Image.new("L", (32, 32), value) for value in (10, 200)]
    frames[0].save(root / "train/cat/b.gif", save_all=True, append_images=frames[1:])
    for name in ("c.bmp", "d.webp"):
        Image.new("RGB", (32, 32), (10, 10, 10)).save(root / "train/cat" / name, lossless=True)
    with caplog.at_level(logging.INFO, "cifar_lab.data"):
        images, labels = of_folder(root)[0]
    cats = images[labels == 0][-4:]
    np.testing.assert_array_equal(cats[0], np.stack([grey >> 8] * 3))
    assert (cats[1:] == 10).all()
    assert f"{root}: the first frame was taken of 1 picture" in caplog.text
    assert f"{root}: the upper 8 of 16 bits were taken of 1 picture" in caplog.text


def test_pictures_of_another_size_lead_to_what_resizes_them(tmp_path: Path) -> None:
    root = write_class_folders(tmp_path / "root", CLASSES, size=(40, 40))
    with pytest.raises(InputError, match=r"is 40x40 pixels; .*data=folders resizes"):
        read_folder(root, list_folder(root, CLASSES))


# --- limits ---------------------------------------------------------------------------------------


def huge_png(size: int) -> bytes:
    """A picture of size x size that is all black, packed a thousandfold; it is never unpacked."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    row, packer = bytes(1 + size // 8), zlib.compressobj(9)
    pixels = b"".join(packer.compress(row) for _ in range(size)) + packer.flush()
    header = struct.pack(">IIBBBBB", size, size, 1, 0, 0, 0, 0)
    start = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header)
    return start + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


@pytest.mark.parametrize("size", [10_000, 40_000])
def test_a_picture_of_too_many_pixels_is_not_decoded(root: Path, tmp_path: Path, size: int) -> None:
    (root / "train/cat/huge.png").write_bytes(huge_png(size))
    reads: list[Callable[[], object]] = [
        lambda: of_folder(root),
        lambda: of_zip(zipped(root, tmp_path / "a.zip")),
    ]
    for read in reads:
        with pytest.raises(InputError, match=r"huge\.png: .*pixels") as caught:
            read()
        assert "\n" not in str(caught.value)


def test_a_member_that_unpacks_to_too_much_is_not_unpacked(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pictures, "MOST_BYTES", 10_000)
    (root / "train/cat/bomb.png").write_bytes(bytes(1_000_000))
    path = zipped(root, tmp_path / "a.zip")
    with pytest.raises(InputError, match=r"bomb\.png: has 1,000,000 bytes; at most 10,000"):
        of_zip(path)
    with pytest.raises(InputError, match=r"bomb\.png: has more than 10,000 bytes"):
        of_folder(root)
    lying = path.read_bytes().replace(struct.pack("<I", 1_000_000), struct.pack("<I", 9_000))
    path.write_bytes(lying)
    with pytest.raises(InputError, match=r"bomb\.png: "):
        of_zip(path)


def test_more_files_than_are_read_are_refused(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = zipped(root, tmp_path / "a.zip")
    monkeypatch.setattr(folders, "MOST_FILES", 5)
    reads: list[Callable[[], object]] = [
        lambda: list_folder(root, None),
        lambda: list_zip(path, None),
    ]
    for read in reads:
        with pytest.raises(InputError, match="holds more than 5 files"):
            read()


# --- archives -------------------------------------------------------------------------------------


def _tar(folder: str, packed_at: float = 0) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        entry = tarfile.TarInfo(f"{folder}/")
        entry.mtime = packed_at  # with fractions, as of files, in a PAX header
        tar.addfile(entry)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (lambda: b"", "is empty"),
        (
            lambda: b"hello there\nsecond",
            "is a text file, not packed by gzip; it begins with 'hello",
        ),
        (lambda: b"\n<!DOCTYPE html><html>", "is a web page"),
        (lambda: b"<HTML>", "is a web page"),
        (lambda: b"PK\3\4", "is a .zip"),
        (lambda: b"version https://git-lfs.github.com/spec/v1\n", "is a pointer of Git LFS"),
        (lambda: bytes(range(200)), "is not packed by gzip"),
        (lambda: _tar("cifar-100-python"), "is CIFAR-100's archive; use data=cifar100"),
        (lambda: _tar("cifar-100-python", 0.5), "is CIFAR-100's archive; use data=cifar100"),
        (lambda: _tar("cifar-10-batches-bin"), "is CIFAR-10 for C programs"),
        (lambda: _tar("photos"), "holds photos/, and"),
        (lambda: _tar("cifar-10-batches-py"), "it is truncated or another file"),
        (lambda: gzip.compress(b"no tar"), "it is truncated or another file"),
        (lambda: _tar("x")[:20], "it is truncated or another file"),
    ],
)
def test_what_is_not_the_archive_is_called_what_it_is(
    tmp_path: Path, content: Callable[[], bytes], said: str
) -> None:
    path = tmp_path / OFFICIAL.name
    path.write_bytes(content())
    with pytest.raises(InputError, match=re.escape(f"{path}: ")) as caught:
        check_archive(path, OFFICIAL)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_cifar_10_given_as_cifar_100_is_called_so(tmp_path: Path) -> None:
    path = tmp_path / FINE.name
    path.write_bytes(_tar(OFFICIAL.folder))
    with pytest.raises(InputError, match="is CIFAR-10's archive; use data=cifar10"):
        check_archive(path, FINE)


def test_a_pickle_of_any_size_is_not_read(
    fake: Fake, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = fake.write_pickles(tmp_path / "batches")
    monkeypatch.setattr(archive, "_MOST_BYTES", 10)
    with pytest.raises(InputError, match="is larger than any of"):
        read_pickles(folder, fake.archive)
