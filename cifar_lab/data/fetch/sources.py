"""What lies under a path: an official archive, its pickles, or class folders; read in one way."""

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
from cifar_lab.errors import InputError, listed


@dataclass(frozen=True)
class Contents:
    """What was read.

    Attributes:
        resized: how many images had another size.
    """

    train: Split
    test: Split
    classes: tuple[str, ...]
    resized: int = 0


@dataclass(frozen=True)
class Source:
    """One place that images can be read from.

    Attributes:
        layout: "archive" and "pickles" are the official bytes, "folders" and "zip" any images.
        path: absolute; a folder for "pickles" and "folders", else a file.
        archive: what the official bytes are, and the classes; None: class folders with any names.
        image_size: S, which pictures are resized to; None: all are 32x32 already.
    """

    layout: Literal["archive", "pickles", "folders", "zip"]
    path: Path
    archive: Archive | None
    image_size: int | None = None

    @property
    def official(self) -> bool:
        """Whether `read` gives the official pixels or nothing."""
        return self.layout in ("archive", "pickles")

    @property
    def key(self) -> str:
        """The cache entry's name: one for all ways to the official bytes, one for each other."""
        if self.official:
            return self.official_archive.key
        # "3": before, class folders were cached sorted by class, then fingerprints lacked the ctime
        what = "" if self.dataset == "cifar10" else f"{self.dataset} {self.image_size} "
        name = f"3 {what}{self.path}".encode("utf-8", "surrogateescape")
        return f"{self.layout}-{hashlib.sha256(name).hexdigest()[:12]}"

    @property
    def dataset(self) -> str:
        """What the `Dataset` is called."""
        return self.archive.dataset if self.archive else "folders"

    @property
    def official_archive(self) -> Archive:
        """The archive of an official source."""
        assert self.archive is not None
        return self.archive

    def fingerprint(self) -> str:
        """Changes when the source is written anew, whatever its date says; cheap beside reading it.

        The time of the last change of a file's entry (ctime) can't be set, as its date can.
        """
        if self.layout == "folders":
            return folders.fingerprint_folder(self.path)
        members = self.official_archive.members if self.layout == "pickles" else ("",)
        stats = [(self.path / name).stat() for name in members if (self.path / name).exists()]
        return " ".join(f"{stat.st_size}-{stat.st_mtime_ns}-{stat.st_ctime_ns}" for stat in stats)

    def check(self) -> None:
        """Raises InputError unless the official bytes are there, every one of them."""
        assert self.official
        if self.layout == "archive":
            check_archive(self.path, self.official_archive)
        else:
            check_pickles(self.path, self.official_archive)

    def read(self) -> Contents:
        """Everything; raises InputError when anything of it is unsound."""
        if self.official:
            read = read_archive if self.layout == "archive" else read_pickles
            archive = self.official_archive
            return Contents(*read(self.path, archive), archive.classes)
        classes = self.archive.classes if self.archive else None
        if self.layout == "folders":
            listing = folders.list_folder(self.path, classes)
            train, test, resized = folders.read_folder(self.path, listing, self.image_size)
        else:
            listing = folders.list_zip(self.path, classes)
            train, test, resized = folders.read_zip(self.path, listing, self.image_size)
        return Contents(train, test, listing.classes, resized)


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


def find_sources(
    root: Path, archive: Archive | None, image_size: int | None = None
) -> list[Source]:
    """What a root given by a person holds, unchecked; more than one only of the official data.

    Raises:
        InputError: nothing is there that could be it.
    """
    if root.is_file():
        if folders.is_zip(root):
            return [Source("zip", root, archive, image_size)]
        named = archive and (root.name == archive.name or root.name.endswith((".tar.gz", ".tgz")))
        if archive and named:
            return [Source("archive", root, archive)]
        neither = f"is neither {archive.name} nor" if archive else "is not"
        raise InputError(f"{root}: {neither} a .zip with train/<class>/ and test/<class>/")
    if not root.is_dir():
        raise InputError(f"{root}: does not exist; {_wanted(archive)}")
    if archive and (official := official_sources(root, archive)):
        return official
    if folders.has_splits(root):
        return [Source("folders", root, archive, image_size)]
    title = archive.title if archive else "class folders"
    raise InputError(f"{root}: holds no {title} ({_inside(root)}); {_wanted(archive)}")


def _wanted(archive: Archive | None) -> str:
    if archive is None:
        return "data.root must be a folder or a .zip with train/<class>/ and test/<class>/"
    return (
        f"data.root must be a folder with {archive.name}, {archive.folder}/, its batch files, or "
        "train/<class>/ and test/<class>/, or the archive or a .zip itself; unset, the data are "
        "fetched"
    )


def _inside(root: Path) -> str:
    names = sorted(entry.name + ("/" if entry.is_dir() else "") for entry in root.iterdir())
    if not names:
        return "it is empty"
    return f"there is {listed(names, 5)}"
