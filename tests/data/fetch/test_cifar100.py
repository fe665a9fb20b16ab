"""CIFAR-100's archive: fine and coarse labels, and what is checked of it."""

from __future__ import annotations

import hashlib
import io
import struct
import tarfile
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from torchvision.datasets import CIFAR100

from cifar_lab.data.dataset import channel_statistics
from cifar_lab.data.fetch.archive import Archive
from cifar_lab.data.fetch.cifar100 import COARSE, COARSE_CLASSES, FINE, FINE_CLASSES, coarse
from cifar_lab.data.fetch.locate import Fetching, Opened, open_from, verify_cache
from cifar_lab.errors import InputError
from tests.support.class_folders import write_class_folders

pytestmark = pytest.mark.usefixtures("empty_home")


def text(value: bytes) -> bytes:
    return b"U" + bytes([len(value)]) + value


def meta() -> bytes:
    """The names as Python 2's cPickle writes them, in protocol 2."""
    numbers = iter(range(1, 1000))

    def put() -> bytes:  # each object is remembered under the next number
        return b"q" + bytes([next(numbers)])

    out = b"\x80\x02}" + put() + b"("
    for key, names in (
        (b"fine_label_names", FINE_CLASSES),
        (b"coarse_label_names", COARSE_CLASSES),
    ):
        out += text(key) + put() + b"]" + put() + b"("
        out += b"".join(text(name.encode()) + put() for name in names) + b"e"
    return out + b"u."


def batch(pixels: NDArray[np.uint8], fine: list[int], coarse_labels: list[int]) -> bytes:
    def numbers(values: list[int]) -> bytes:
        return b"](" + b"".join(b"K" + bytes([value]) for value in values) + b"e"

    shape = b"M" + struct.pack("<H", len(fine)) + b"M" + struct.pack("<H", 3072) + b"\x86"
    dtype = (
        b"cnumpy\ndtype\nU\x02u1K\x00K\x01\x87R(K\x03U\x01|NNN"
        b"J\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
    )
    data = pixels.tobytes()
    array = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R" + (
        b"(K\x01" + shape + dtype + b"\x89T" + struct.pack("<i", len(data)) + data + b"tb"
    )
    return (
        b"\x80\x02}("
        + (text(b"filenames") + b"](" + text(b"cat_s_000.png") + b"e")
        + (text(b"batch_label") + text(b"training batch 1 of 1"))
        + (text(b"fine_labels") + numbers(fine) + text(b"coarse_labels") + numbers(coarse_labels))
        + (text(b"data") + array + b"u.")
    )


@dataclass
class Small:
    """An archive of the same layout: 200 training and 100 test images."""

    fine: Archive
    content: bytes
    members: dict[str, bytes]
    labels: dict[str, list[int]]

    @property
    def coarse(self) -> Archive:
        return coarse(self.fine)


@pytest.fixture(scope="session")
def small() -> Small:
    random = np.random.default_rng(0)
    members, labels = {"meta": meta()}, {}
    for name, count in (("train", 200), ("test", 100)):
        pixels = random.integers(0, 256, (count, 3072), np.uint8)
        labels[name] = random.permutation(np.arange(count) % 100).tolist()
        members[name] = batch(pixels, labels[name], [label % 20 for label in labels[name]])
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        for name, content in {"file.txt~": b"", **members}.items():
            info = tarfile.TarInfo(f"cifar-100-python/{name}")
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    content = buffer.getvalue()
    md5s = {name: hashlib.md5(members[name]).hexdigest() for name in FINE.members}
    md5 = hashlib.md5(content).hexdigest()
    return Small(replace(FINE, size=len(content), md5=md5, members=md5s), content, members, labels)


def opened(archive: Archive, root: Path | None = None) -> Opened:
    offline = Fetching(offline=True, sources=(), min_rate=0, stall_s=0)
    return open_from(
        root=None if root is None else str(root), cache=None, fetching=offline, archive=archive
    )


def test_the_archive_is_the_one_that_torchvision_checks() -> None:
    for archive in (FINE, COARSE):
        assert (archive.name, archive.md5) == (CIFAR100.filename, CIFAR100.tgz_md5)
        assert archive.folder == CIFAR100.base_folder
        lists = [*CIFAR100.train_list, *CIFAR100.test_list]
        lists += [[CIFAR100.meta["filename"], CIFAR100.meta["md5"]]]
        assert archive.members == dict(lists)
    assert FINE.size == 169_001_437


def test_the_names_of_the_classes_are_the_archives() -> None:
    assert hashlib.md5(meta()).hexdigest() == CIFAR100.meta["md5"]
    assert (len(FINE_CLASSES), len(COARSE_CLASSES)) == (100, 20)


def test_fine_and_coarse_labels_of_the_same_images(small: Small, tmp_path: Path) -> None:
    root = tmp_path / "data"
    root.mkdir()
    (root / small.fine.name).write_bytes(small.content)
    fine, rough = opened(small.fine, root), opened(small.coarse, root)
    assert fine.entry != rough.entry
    assert (fine.dataset.name, rough.dataset.name) == ("cifar100", "cifar100_coarse")
    assert (fine.dataset.classes, rough.dataset.classes) == (FINE_CLASSES, COARSE_CLASSES)
    assert fine.dataset.official is rough.dataset.official is True
    assert fine.dataset.digest != rough.dataset.digest
    for split in ("train", "test"):
        a, b = getattr(fine.dataset, split), getattr(rough.dataset, split)
        assert a.labels.tolist() == small.labels[split]
        assert b.labels.tolist() == [label % 20 for label in small.labels[split]]
        np.testing.assert_array_equal(a.images, b.images)
    assert fine.dataset.statistics == channel_statistics(fine.dataset.train.images)
    (root / small.fine.name).unlink()
    assert (opened(small.fine).state, opened(small.coarse).state) == ("ok", "ok")
    states = dict(verify_cache(cache=None, archives=[small.fine, small.coarse]))
    assert set(states.values()) == {"ok"}
    (rough.entry / "test.bin").write_bytes(b"")
    (root / small.fine.name).write_bytes(small.content)
    states = dict(verify_cache(cache=None, archives=[small.fine, small.coarse]))
    assert states == {fine.entry.name: "ok", rough.entry.name: "rebuilt"}
    assert opened(small.coarse).dataset.digest == rough.dataset.digest


def test_what_torchvision_unpacked_is_found(small: Small, empty_home: Path) -> None:
    folder = empty_home / "data" / "cifar-100-python"
    folder.mkdir(parents=True)
    for name, content in small.members.items():
        (folder / name).write_bytes(content)
    assert opened(small.fine).dataset.layout == "pickles"


@pytest.mark.parametrize("member", ["train", "test", "meta"])
def test_an_altered_member_is_named(small: Small, tmp_path: Path, member: str) -> None:
    folder = tmp_path / "cifar-100-python"
    folder.mkdir()
    for name, content in small.members.items():
        (folder / name).write_bytes(content[:-1] + b"!" if name == member else content)
    with pytest.raises(InputError, match=f"^data.root={folder}: {folder}/{member}: has MD5"):
        opened(small.fine, folder)
    (folder / member).unlink()
    with pytest.raises(InputError, match=f"lacks {member}; unpack cifar-100-python.tar.gz again"):
        opened(small.fine, folder)


def test_it_is_fetched_as_cifar10_is(small: Small, tmp_path: Path, serve) -> None:  # type: ignore[no-untyped-def]
    server = serve(small.content)
    fetching = Fetching(offline=False, sources=[server.url("cut")], min_rate=0, stall_s=5)
    found = open_from(root=None, cache=str(tmp_path / "c"), fetching=fetching, archive=small.coarse)
    assert found.state == "built"
    assert (tmp_path / "c" / "cifar-100-python.tar.gz").read_bytes() == small.content
    # the archive beside the cache serves the fine labels too
    found = open_from(root=None, cache=str(tmp_path / "c"), fetching=fetching, archive=small.fine)
    assert len(server.requests) == 2
    assert found.dataset.classes == FINE_CLASSES


def test_where_it_is_not_it_says_so_by_its_name(small: Small) -> None:
    with pytest.raises(InputError, match=r"^data.offline=true: CIFAR-100 is not on this machine"):
        opened(small.fine)


def test_a_copy_in_class_folders_has_exactly_its_classes(small: Small, tmp_path: Path) -> None:
    root = write_class_folders(tmp_path / "copy", COARSE_CLASSES, train=1, test=1)
    found = opened(small.coarse, root)
    assert (found.dataset.official, found.dataset.classes) == (False, COARSE_CLASSES)
    with pytest.raises(InputError, match="must hold exactly the 100 class folders apple, aquarium"):
        opened(small.fine, root)
