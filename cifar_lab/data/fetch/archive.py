"""The official archives and their pickles, checked byte for byte before they are read.

Format: https://www.cs.toronto.edu/~kriz/cifar.html, "Dataset layout", Python version.
"""

from __future__ import annotations

import hashlib
import io
import pickle
import tarfile
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cifar_lab.data.dataset import CLASSES, Split
from cifar_lab.errors import InputError


@dataclass(frozen=True)
class Archive:
    """What identifies the archive and the pickles inside it.

    Attributes:
        name: file name of the archive.
        size: in bytes.
        md5: of the archive, 32 hexadecimal digits.
        members: MD5 of each pickle by file name, in the order in which they are read.
        folder: the folder that the archive unpacks to.
        dataset: what the `Dataset` is called.
        title: what people call it.
        classes: the names of its labels.
        labels: what the labels are called in a pickle.
        test: the member that is the test split; the others are the training split, but for
        meta: the member that holds the classes' names; nothing is read from it.
        variant: tells cache entries of one archive apart.
    """

    name: str
    size: int
    md5: str
    members: Mapping[str, str]
    folder: str = "cifar-10-batches-py"
    dataset: str = "cifar10"
    title: str = "CIFAR-10"
    classes: tuple[str, ...] = CLASSES
    labels: str = "labels"
    test: str = "test_batch"
    meta: str | None = None
    variant: str = ""

    @property
    def key(self) -> str:
        """The name of its cache entry, however its bytes were reached."""
        return f"official-{self.md5[:8]}{self.variant}"

    @property
    def batches(self) -> list[str]:
        """The members that hold images."""
        return [name for name in self.members if name != self.meta]


# CIFAR-100's training images are the largest member: 155,249,918 bytes.
_MOST_BYTES = 200 * 2**20

OFFICIAL = Archive(
    name="cifar-10-python.tar.gz",
    size=170_498_071,
    md5="c58f30108f718f92721af3b95e74349a",
    members={
        "data_batch_1": "c99cafc152244af753f735de768cd75f",
        "data_batch_2": "d4bba439e000b95fd0a9bffe97cbabec",
        "data_batch_3": "54ebc095f3ab1f0389bbae665268c751",
        "data_batch_4": "634d18415352ddfa80567beed471001a",
        "data_batch_5": "482c414d41f54cd18b22e5b47cb7c3cb",
        "test_batch": "40351d587109b95175f43aff81a1287e",
    },
)


def md5_of(path: Path) -> str:
    """MD5 of a file, 32 hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, _md5).hexdigest()


def check_archive(path: Path, archive: Archive) -> None:
    """Raises InputError unless the file is the archive, by size and MD5."""
    size = path.stat().st_size
    if size != archive.size:
        if other := _what_else(path, archive):
            raise InputError(f"{path}: {other}")
        raise InputError(
            f"{path}: has {size} bytes, {archive.name} has {archive.size}: it is truncated or "
            "another file; delete it and fetch it again"
        )
    if (md5 := md5_of(path)) != archive.md5:
        raise InputError(
            f"{path}: has MD5 {md5}, {archive.name} has {archive.md5}: it is altered; delete it "
            "and fetch it again"
        )


# What else lies where an archive is looked for, by its first bytes.
_BEGINNINGS = {
    b"PK": "is a .zip, whatever its name; call it so",
    b"<!": "is a web page; the link led to one, and not to the file: fetch it again",
    b"<h": "is a web page; the link led to one, and not to the file: fetch it again",
    b"version https://git-lfs": "is a pointer of Git LFS; `git lfs pull` fetches the file",
    b"Rar!": "is a .rar; unpack it and give its folder",
    b"7z\xbc\xaf": "is a .7z; unpack it and give its folder",
    b"BZh": "is packed by bzip2; the archive is packed by gzip: fetch it again",
    b"\xfd7zXZ": "is packed by xz; the archive is packed by gzip: fetch it again",
}
# Folders that archives of the same site unpack to, and what to do about them.
_SISTERS = {
    "cifar-10-batches-py": "is CIFAR-10's archive; use data=cifar10",
    "cifar-100-python": "is CIFAR-100's archive; use data=cifar100",
    "cifar-10-batches-bin": "is CIFAR-10 for C programs; {name} is needed",
    "cifar-100-binary": "is CIFAR-100 for C programs; {name} is needed",
    "cifar-10-batches-mat": "is CIFAR-10 for Matlab; {name} is needed",
    "cifar-100-matlab": "is CIFAR-100 for Matlab; {name} is needed",
}


def _what_else(path: Path, archive: Archive) -> str | None:
    """What a file is that is not the archive; None where it may be a part of it."""
    with path.open("rb") as file:
        head = file.read(65536)
    if not head:
        return "is empty; fetch it again"
    for beginning, what in _BEGINNINGS.items():
        if head.lstrip()[: len(beginning)].lower() == beginning.lower():
            return what
    if not head.startswith(b"\x1f\x8b"):
        if head.isascii() and b"\0" not in head:
            begins = head.decode("ascii").split("\n")[0].strip()[:40]
            return f"is a text file, not packed by gzip; it begins with {begins!r}"
        return f"is not packed by gzip, so it is not {archive.name}"
    try:
        # no more than the first entry's headers are unpacked: its content may be of any size
        unpacked = zlib.decompressobj(wbits=31).decompress(head, tarfile.RECORDSIZE)
        with tarfile.TarFile(fileobj=io.BytesIO(unpacked)) as tar:
            first = tar.next()  # past the PAX headers that Python's tarfile begins with
    except (tarfile.TarError, zlib.error):
        return None
    if first is None:
        return None
    folder = first.name.removeprefix("./").partition("/")[0]
    if folder == archive.folder or not first.name.isprintable():
        return None
    if folder in _SISTERS:
        return _SISTERS[folder].format(name=archive.name)
    return f"holds {folder}/, and {archive.name} holds {archive.folder}/: it is another archive"


def read_archive(path: Path, archive: Archive) -> tuple[Split, Split]:
    """The training and the test split of the archive, nothing of which touches the disk.

    Raises:
        InputError: the file or one of its members is not the official one.
    """
    check_archive(path, archive)
    parts: dict[str, Split | None] = {}
    try:
        # "r|gz" reads front to back: looking members up by name would unpack everything twice
        with tarfile.open(path, "r|gz") as tar:
            for member in tar:
                folder, _, name = member.name.removeprefix("./").rpartition("/")
                if folder == archive.folder and name in archive.members and member.isreg():
                    stream = tar.extractfile(member)
                    assert stream is not None
                    where = f"{path}!{name}"
                    parts[name] = _read_member(where, name, stream.read(), archive)
    except (tarfile.TarError, zlib.error, EOFError) as error:
        raise InputError(
            f"{path}: can't be unpacked ({error}); delete it and fetch it again"
        ) from error
    return _join(path, parts, archive)


def check_pickles(folder: Path, archive: Archive) -> None:
    """Raises InputError unless the folder holds every pickle of the archive, by MD5."""
    for name, data in _pickle_bytes(folder, archive):
        _check_batch(str(folder / name), data, archive.members[name])


def read_pickles(folder: Path, archive: Archive) -> tuple[Split, Split]:
    """The training and the test split of a folder with the archive's pickles.

    Raises:
        InputError: a pickle is missing or not the official one.
    """
    parts = {
        name: _read_member(str(folder / name), name, data, archive)
        for name, data in _pickle_bytes(folder, archive)
    }
    return _join(folder, parts, archive)


def _pickle_bytes(folder: Path, archive: Archive) -> Iterator[tuple[str, bytes]]:
    missing = [name for name in archive.members if not (folder / name).is_file()]
    if missing:
        raise InputError(
            f"{folder}: lacks {', '.join(missing)}; unpack {archive.name} again, or leave "
            "data.root unset to fetch it"
        )
    for name in archive.members:
        if (folder / name).stat().st_size > _MOST_BYTES:
            raise InputError(f"{folder / name}: is larger than any of {archive.name}'s files")
        yield name, (folder / name).read_bytes()


def _check_batch(where: str, data: bytes, expected: str) -> None:
    if (md5 := _md5(data).hexdigest()) != expected:
        raise InputError(
            f"{where}: has MD5 {md5}, the official file has {expected}: it is altered or "
            "truncated; unpack the archive again, or leave data.root unset to fetch it"
        )


def _read_member(where: str, name: str, data: bytes, archive: Archive) -> Split | None:
    """A batch; None of the member that holds none."""
    _check_batch(where, data, archive.members[name])
    if name == archive.meta:
        return None
    batch = _BatchUnpickler(io.BytesIO(data), encoding="bytes").load()
    pixels: NDArray[np.uint8] = batch[b"data"]
    labels = np.asarray(batch[archive.labels.encode()], dtype=np.uint8)
    # the bytes are the official ones, so this is about our reading of them, not about the input
    assert pixels.dtype == np.uint8, pixels.dtype
    assert pixels.shape == (len(labels), 3 * 32 * 32), pixels.shape
    assert labels.size == 0 or labels.max() < len(archive.classes)
    # a row is 1,024 red, 1,024 green and 1,024 blue values, each row-major
    return Split(pixels.reshape(-1, 3, 32, 32), labels)


def _join(where: Path, parts: Mapping[str, Split | None], archive: Archive) -> tuple[Split, Split]:
    missing = [name for name in archive.members if name not in parts]
    if missing:
        raise InputError(f"{where}: lacks {', '.join(missing)}; delete it and fetch it again")
    found = {name: part for name, part in parts.items() if part is not None}
    train = [found[name] for name in archive.batches if name != archive.test]
    joined = Split(
        np.concatenate([part.images for part in train]),
        np.concatenate([part.labels for part in train]),
    )
    return joined, found[archive.test]


def _md5(data: bytes = b"") -> Any:
    # identity, not security: machines in FIPS mode refuse MD5 otherwise
    return hashlib.md5(data, usedforsecurity=False)


class _BatchUnpickler(pickle.Unpickler):
    """Builds NumPy arrays and plain containers; anything else a pickle may ask for is refused."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in {
            ("numpy.core.multiarray", "_reconstruct"),
            ("numpy._core.multiarray", "_reconstruct"),
        }:
            return np._core.multiarray._reconstruct  # type: ignore[attr-defined]  # noqa: SLF001  (what pickles name)
        if (module, name) == ("numpy", "ndarray"):
            return np.ndarray
        if (module, name) == ("numpy", "dtype"):
            return np.dtype
        raise InputError(f"{module}.{name}: has no place in a CIFAR batch; it is not the data")
