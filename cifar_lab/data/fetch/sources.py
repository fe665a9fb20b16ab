"""What lies under a path: the official archive, its pickles, or class folders; read in one way."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from cifar_lab.data.dataset import Split
from cifar_lab.data.fetch import folders
from cifar_lab.data.fetch.archive import (
    Archive,
    check_archive,
    check_pickles,
    read_archive,
    read_pickles,
)
from cifar_lab.errors import InputError


@dataclass(frozen=True)
class Source:
    """One place that CIFAR-10 can be read from.

    Attributes:
        layout: "archive" and "pickles" are the official bytes, "folders" and "zip" any images.
        path: absolute; a folder for "pickles" and "folders", else a file.
        archive: what the official bytes are.
    """

    layout: Literal["archive", "pickles", "folders", "zip"]
    path: Path
    archive: Archive

    @property
    def official(self) -> bool:
        """Whether `read` gives the official pixels or nothing."""
        return self.layout in ("archive", "pickles")

    @property
    def key(self) -> str:
        """The cache entry's name: one for all ways to the official bytes, one for each other."""
        if self.official:
            return self.archive.key
        # "3": before, class folders were cached sorted by class, then fingerprints lacked the ctime
        return f"{self.layout}-{hashlib.sha256(f'3 {self.path}'.encode()).hexdigest()[:12]}"

    def fingerprint(self) -> str:
        """Changes when the source is written anew, whatever its date says; cheap beside reading it.

        The time of the last change of a file's entry (ctime) can't be set, as its date can.
        """
        if self.layout == "folders":
            return folders.fingerprint_folder(self.path)
        members = self.archive.members if self.layout == "pickles" else ("",)
        stats = [(self.path / name).stat() for name in members if (self.path / name).exists()]
        return " ".join(f"{stat.st_size}-{stat.st_mtime_ns}-{stat.st_ctime_ns}" for stat in stats)

    def check(self) -> None:
        """Raises InputError unless the official bytes are there, every one of them."""
        assert self.official
        if self.layout == "archive":
            check_archive(self.path, self.archive)
        else:
            check_pickles(self.path, self.archive)

    def read(self) -> tuple[Split, Split]:
        """The training and the test split; raises InputError when anything of them is unsound."""
        if self.layout == "archive":
            return read_archive(self.path, self.archive)
        if self.layout == "pickles":
            return read_pickles(self.path, self.archive)
        if self.layout == "folders":
            return folders.read_folder(self.path, folders.list_folder(self.path))
        return folders.read_zip(self.path, folders.list_zip(self.path))


def official_sources(root: Path, archive: Archive) -> list[Source]:
    """The official data below a folder, unchecked, the quickest to read first; may be empty."""
    found = [
        Source("pickles", folder, archive)
        for folder in (root / archive.folder, root)
        if any((folder / name).is_file() for name in archive.members)
    ]
    if (root / archive.name).is_file():
        found.append(Source("archive", root / archive.name, archive))
    return found


def find_sources(root: Path, archive: Archive) -> list[Source]:
    """What a root given by a person holds, unchecked; more than one only of the official data.

    Raises:
        InputError: nothing is there that could be CIFAR-10.
    """
    if root.is_file():
        if folders.is_zip(root):
            return [Source("zip", root, archive)]
        if root.name == archive.name or root.name.endswith((".tar.gz", ".tgz")):
            return [Source("archive", root, archive)]
        raise InputError(
            f"{root}: is neither {archive.name} nor a .zip with train/<class>/ and test/<class>/"
        )
    if not root.is_dir():
        raise InputError(f"{root}: does not exist; {_wanted(archive)}")
    if official := official_sources(root, archive):
        return official
    if any((root / split).is_dir() for split in folders.SPLITS):
        return [Source("folders", root, archive)]
    raise InputError(f"{root}: holds no CIFAR-10 ({_inside(root)}); {_wanted(archive)}")


def _wanted(archive: Archive) -> str:
    return (
        f"data.root must be a folder with {archive.name}, {archive.folder}/, its batch files, or "
        "train/<class>/ and test/<class>/, or the archive or a .zip itself; unset, the data are "
        "fetched"
    )


def _inside(root: Path) -> str:
    names = sorted(entry.name + ("/" if entry.is_dir() else "") for entry in root.iterdir())
    if not names:
        return "it is empty"
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    return f"there is {', '.join(names[:5])}{more}"
