"""Images in class folders, ``train/<class>/*`` and ``test/<class>/*``, on disk or inside a .zip."""

from __future__ import annotations

import hashlib
import io
import os
import zipfile
import zlib
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cifar_lab.data.dataset import CLASSES, Split
from cifar_lab.errors import InputError

SPLITS = ("train", "test")
SUFFIXES = (".png", ".jpg", ".jpeg")
_SYSTEM_FILES = ("Thumbs.db", "desktop.ini")


@dataclass(frozen=True)
class Listing:
    """The images of a source, not yet read.

    Attributes:
        where: the folder or the .zip, and what joins it with an image's name: "/" or "!".
        names: for each of SPLITS the images as (label, name): the classes in turn, each by name.
    """

    where: str
    names: dict[str, list[tuple[int, str]]]


def fingerprint_folder(root: Path) -> str:
    """Changes when an image is added, taken away, renamed or written anew; 0.2 s for 60,000."""
    parts = []
    for split in SPLITS:
        for folder in _visible(root / split):
            total = 0
            if folder.is_dir():
                with os.scandir(folder) as entries:
                    for entry in filter(lambda entry: _is_visible(entry.name), entries):
                        stat = entry.stat()
                        text = f"{entry.name} {stat.st_size} {stat.st_mtime_ns} {stat.st_ctime_ns}"
                        # a sum does without an order: sorting costs as much as the scan itself
                        total += zlib.crc32(text.encode("utf-8", "surrogateescape"))
            parts.append(f"{split}/{folder.name}:{total:x}")
    return hashlib.sha256("\n".join(parts).encode("utf-8", "surrogateescape")).hexdigest()


def list_folder(root: Path) -> Listing:
    """Lists class folders on disk.

    Raises:
        InputError: the folders are not the ten classes, or hold something else than images.
    """
    files: list[str] = []
    for split in SPLITS:
        for folder in _visible(root / split):
            if not folder.is_dir():
                raise InputError(f"{folder.path}: {split}/ holds one folder for each class only")
            prefix = f"{split}/{folder.name}/"
            names = [prefix + entry.name for entry in _visible(Path(folder.path))]
            # an empty folder is listed by its own name, so that it is reported as such
            files.extend(names or [prefix])
    return Listing(f"{root}/", _by_class(f"{root}/", files))


def list_zip(path: Path) -> Listing:
    """Lists class folders inside a .zip, at its top or below one folder.

    Raises:
        InputError: the .zip is damaged, or its folders are not the ten classes.
    """
    with _open_zip(path) as archive:
        files = [
            name
            for name in archive.namelist()
            if not name.startswith("__MACOSX/") and _is_visible(name.rstrip("/").split("/")[-1])
        ]
    top = _top_folder(files)
    inside = [name for name in files if name.removeprefix(top).startswith(("train/", "test/"))]
    leaves = [name.removeprefix(top) for name in inside if not name.endswith("/")]
    where = f"{path}!{top}"
    return Listing(where, _by_class(where, leaves))


def read_folder(root: Path, listing: Listing) -> tuple[Split, Split]:
    """Decodes the training and the test images; raises InputError with a broken image's path."""
    return _read(listing, lambda name: (root / name).read_bytes())


def read_zip(path: Path, listing: Listing) -> tuple[Split, Split]:
    """Decodes the training and the test images; raises InputError with a broken image's name."""
    top = listing.where.removeprefix(f"{path}!")
    with _open_zip(path) as archive:
        return _read(listing, lambda name: archive.read(top + name))


def is_zip(path: Path) -> bool:
    """By name or by content."""
    return path.suffix.lower() == ".zip" or zipfile.is_zipfile(path)


@contextmanager
def _open_zip(path: Path) -> Iterator[zipfile.ZipFile]:
    try:
        with zipfile.ZipFile(path) as archive:
            yield archive
    except zipfile.BadZipFile as error:
        raise InputError(
            f"{path}: is no whole .zip ({error}); copy or download it again"
        ) from error


def _visible(folder: Path) -> list[os.DirEntry[str]]:
    # in order of name: the file system's own order is no order
    try:
        with os.scandir(folder) as entries:
            visible = [entry for entry in entries if _is_visible(entry.name)]
    except FileNotFoundError as error:
        raise InputError(
            f"{folder}: is missing; train/<class>/ and test/<class>/ are both needed"
        ) from error
    return sorted(visible, key=lambda entry: entry.name)


def _is_visible(name: str) -> bool:
    return not name.startswith(".") and name not in _SYSTEM_FILES


def _top_folder(names: Iterable[str]) -> str:
    # "cifar10/" when the class folders lie below it, "" when they lie at the top
    tops = {name.partition("/")[0] for name in names if "/" in name}
    if tops & set(SPLITS) or len(tops) != 1:
        return ""
    return f"{tops.pop()}/"


def _by_class(where: str, files: Iterable[str]) -> dict[str, list[tuple[int, str]]]:
    found: dict[str, dict[str, list[str]]] = {split: defaultdict(list) for split in SPLITS}
    for file in files:
        split, _, rest = file.partition("/")
        class_name, slash, name = rest.partition("/")
        if not slash or "/" in name:
            raise InputError(f"{where}{file}: images lie at {split}/<class>/<image>, no deeper")
        images = found[split][class_name]
        if name and not name.lower().endswith(SUFFIXES):
            raise InputError(f"{where}{file}: is neither .png nor .jpg; take it away or convert it")
        if name:
            images.append(file)
    for split, classes in found.items():
        _check_classes(f"{where}{split}", classes)
    return {split: _in_turns(classes) for split, classes in found.items()}


def _in_turns(classes: dict[str, list[str]]) -> list[tuple[int, str]]:
    # the first image of every class, then the second: the first thousand images of a split sorted
    # by class would all be airplanes, and with them what trainer.limit_test_batches measures
    places = sorted(
        (place, label, name)
        for label, class_name in enumerate(CLASSES)
        for place, name in enumerate(sorted(classes[class_name]))
    )
    return [(label, name) for _, label, name in places]


def _check_classes(where: str, classes: dict[str, list[str]]) -> None:
    missing = [name for name in CLASSES if name not in classes]
    unknown = sorted(set(classes) - set(CLASSES))
    if missing or unknown:
        parts = [f"lacks {', '.join(missing)}"] if missing else []
        parts += [f"has unknown {', '.join(unknown)}"] if unknown else []
        raise InputError(
            f"{where}: {' and '.join(parts)}; it must hold exactly the ten class folders "
            + ", ".join(CLASSES)
        )
    for name in CLASSES:
        if not classes[name]:
            raise InputError(f"{where}/{name}: holds no image; each class needs at least one")


def _read(listing: Listing, read: Callable[[str], bytes]) -> tuple[Split, Split]:
    train, test = (_read_split(listing, split, read) for split in SPLITS)
    return train, test


def _read_split(listing: Listing, split: str, read: Callable[[str], bytes]) -> Split:
    # One thread: two on two cores took 1.7 times as long (10,000 JPEG: 0.52 s against 0.93 s),
    # since an image this small is mostly Python, and the threads fight over the GIL.
    entries = listing.names[split]
    images = np.empty((len(entries), 3, 32, 32), np.uint8)
    for image, (_, name) in zip(images, entries, strict=True):
        image[:] = _decode(listing.where + name, partial(read, name))
    return Split(images, np.array([label for label, _ in entries], np.uint8))


def _decode(where: str, read: Callable[[], bytes]) -> NDArray[np.uint8]:
    """One PNG or JPEG of 32x32 pixels as (3, 32, 32) uint8 RGB; raises InputError with `where`."""
    from PIL import Image

    try:
        with Image.open(io.BytesIO(read()), formats=("PNG", "JPEG")) as image:
            size = image.size
            rgb = _to_rgb(where, image) if size == (32, 32) else None
    except InputError:
        raise
    except Exception as error:  # Pillow and zipfile raise a dozen kinds for broken data
        reason = str(error).partition(" <_io")[0]  # "cannot identify image file <_io.BytesIO ...>"
        raise InputError(f"{where}: is no readable PNG or JPEG ({reason}); replace it") from error
    if rgb is None:
        raise InputError(f"{where}: is {size[0]}x{size[1]} pixels; images must be 32x32")
    return np.asarray(rgb).transpose(2, 0, 1)


def _to_rgb(where: str, image: Any) -> Any:
    if image.mode == "RGB" and "transparency" not in image.info:
        image.load()
        return image
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        image = image.convert("RGBA")
        if image.getchannel("A").getextrema() != (255, 255):
            raise InputError(f"{where}: has transparent pixels; save it as plain RGB")
    elif image.mode not in ("1", "L", "P", "CMYK"):
        raise InputError(f"{where}: has mode {image.mode}; save it as 8-bit RGB")
    return image.convert("RGB")
