"""Images in class folders, ``train/<class>/*`` and ``test/<class>/*``, on disk or inside a .zip."""

from __future__ import annotations

import hashlib
import io
import logging
import os
import warnings
import zipfile
import zlib
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cifar_lab.data.dataset import Split, label_type
from cifar_lab.errors import InputError, listed

log = logging.getLogger("cifar_lab.data")

SPLITS = ("train", "test")
FEWEST_CLASSES, MOST_CLASSES = 2, 1000
MOST_FILES = 2_000_000
# What systems and editors leave behind, in any case; names that begin with a dot are left out too.
_SYSTEM_FILES = ("thumbs.db", "ehthumbs.db", "desktop.ini", "__macosx", "@eadir", "$recycle.bin")


@dataclass(frozen=True)
class Listing:
    """The images of a source, not yet read.

    Attributes:
        where: the folder or the .zip, and what joins it with an image's name: "/" or "!".
        names: for each of SPLITS the images as (label, name): the classes in turn, each by name.
        classes: the names of the labels.
    """

    where: str
    names: dict[str, list[tuple[int, str]]]
    classes: tuple[str, ...]


def fingerprint_folder(root: Path) -> str:
    """Changes when an image is added, taken away, renamed or written anew; 0.2 s for 60,000."""
    parts = []
    for split in SPLITS:
        for folder in _visible(_split_folder(root, split)):
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


def list_folder(root: Path, classes: tuple[str, ...] | None) -> Listing:
    """Lists class folders on disk.

    Args:
        root: holds train/ and test/.
        classes: that must be there; None: whichever are, in the order of their names.

    Raises:
        InputError: the folders are not these classes, or those of train/ and test/ differ, or they
            are fewer than 2 or more than 1,000, or hold something else than images, or more than
            `MOST_FILES`.
    """
    files: list[str] = []
    for split in SPLITS:
        its = _split_folder(root, split)
        for folder in _visible(its):
            if not folder.is_dir():
                raise InputError(f"{folder.path}: {split}/ holds one folder for each class only")
            prefix = f"{its.name}/{folder.name}/"
            names = [prefix + entry.name for entry in _visible(Path(folder.path))]
            # an empty folder is listed by its own name, so that it is reported as such
            files.extend(names or [prefix])
            _check_count(root, len(files))
    return _by_class(f"{root}/", files, classes)


def list_zip(path: Path, classes: tuple[str, ...] | None) -> Listing:
    """`list_folder` inside a .zip, at its top or below one folder.

    Args:
        path: the .zip.
        classes: as in `list_folder`.

    Raises:
        InputError: as `list_folder`, or the .zip is damaged.
    """
    with _open_zip(path) as archive:
        files = list(_members(path, archive))
    top = _top_folder(files)
    leaves = [name.removeprefix(top) for name in files if not name.endswith("/")]
    leaves = [name for name in leaves if name.partition("/")[0].lower() in SPLITS]
    for split in SPLITS:
        _check_one(f"{path}!{top}", {n.partition("/")[0] for n in leaves}, split)
    return _by_class(f"{path}!{top}", leaves, classes)


def read_folder(
    root: Path, listing: Listing, image_size: int | None = None
) -> tuple[Split, Split, int]:
    """Decodes the images.

    Args:
        root: of the listing.
        listing: of the folder.
        image_size: S. Pictures of another size are resized (bicubic, antialiased), of those that
            aren't square the middle, and turned as their camera noted. None: all are 32x32.

    Returns:
        The training images, the test images, and how many were resized.

    Raises:
        InputError: an image is broken, or not 32x32; the message has its path.
    """
    from cifar_lab.data.pictures import bounded

    return _read(listing, lambda name: bounded(root / name), image_size)


def read_zip(
    path: Path, listing: Listing, image_size: int | None = None
) -> tuple[Split, Split, int]:
    """`read_folder` of a .zip.

    Args:
        path: the .zip of the listing.
        listing: by `list_zip`.
        image_size: as in `read_folder`.
    """
    top = listing.where.removeprefix(f"{path}!")
    with _open_zip(path) as archive:
        members = _members(path, archive)
        return _read(listing, lambda name: _bytes_of(archive, members[top + name]), image_size)


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


def _members(path: Path, archive: zipfile.ZipFile) -> dict[str, zipfile.ZipInfo]:
    """The files and folders by name, as Unix writes it; without what systems leave behind."""
    _check_count(path, len(archive.infolist()))
    found: dict[str, zipfile.ZipInfo] = {}
    for info in archive.infolist():
        # what zips a folder on Windows may write backslashes, against the format
        name = info.filename if "/" in info.filename else info.filename.replace("\\", "/")
        name = name.removeprefix("./")
        if all(map(_is_visible, name.rstrip("/").split("/"))):
            if not name.endswith("/") and name in found:
                raise InputError(f"{path}!{name}: is there twice; zip the folder anew")
            found[name] = info
    return found


def _bytes_of(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> bytes:
    from cifar_lab.data.pictures import MOST_BYTES, read_bounded

    if info.file_size > MOST_BYTES:  # and if that is a lie, no more is unpacked either
        raise InputError(f"has {info.file_size:,} bytes; at most {MOST_BYTES:,} are read")
    with archive.open(info) as file:
        return read_bounded(file)


def _check_count(where: Path, count: int) -> None:
    if count > MOST_FILES:
        raise InputError(
            f"{where}: holds more than {MOST_FILES:,} files; at most that many are read"
        )


def has_splits(root: Path) -> bool:
    """Whether a folder holds train/ or test/, in any case."""
    return any(entry.is_dir() and entry.name.lower() in SPLITS for entry in root.iterdir())


def _split_folder(root: Path, split: str) -> Path:
    """``root/split``, in whatever case it is there; raises InputError where it is there twice."""
    try:
        names = {entry.name for entry in root.iterdir() if entry.is_dir()}
    except FileNotFoundError:
        names = set()
    return root / _check_one(f"{root}/", names, split)


def _check_one(where: str, names: Iterable[str], split: str) -> str:
    found = sorted(name for name in names if name.lower() == split)
    if len(found) > 1:
        raise InputError(f"{where}: holds {' and '.join(f'{n}/' for n in found)}; leave one")
    return found[0] if found else split


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
    return not name.startswith(".") and name.lower() not in _SYSTEM_FILES


def _top_folder(names: Iterable[str]) -> str:
    # "cifar10/" when the class folders lie below it, "" when they lie at the top
    tops = {name.partition("/")[0] for name in names if "/" in name}
    if {top.lower() for top in tops} & set(SPLITS) or len(tops) != 1:
        return ""
    return f"{tops.pop()}/"


def _by_class(where: str, files: Iterable[str], classes: tuple[str, ...] | None) -> Listing:
    from cifar_lab.data.pictures import FORMATS, SUFFIXES

    found: dict[str, dict[str, list[str]]] = {split: defaultdict(list) for split in SPLITS}
    called = {name.lower(): name for name in classes or ()}
    spelt: dict[str, str] = {}
    for file in files:
        split, _, rest = file.partition("/")
        class_name, slash, name = rest.partition("/")
        if not slash or "/" in name:
            raise InputError(f"{where}{file}: images lie at {split}/<class>/<image>, no deeper")
        named = called.get(class_name.lower(), class_name)
        if spelt.setdefault(f"{split}/{named}", class_name) != class_name:
            raise InputError(
                f"{where}{split}: holds {spelt[f'{split}/{named}']}/ and {class_name}/"
            )
        images = found[split.lower()][named]
        if name and not name.lower().endswith(SUFFIXES):
            raise InputError(
                f"{where}{file}: is no picture that is read ({', '.join(FORMATS)}); take it away "
                "or convert it"
            )
        if name:
            images.append(file)
    names = _found_classes(where.rstrip("/"), found) if classes is None else classes
    for split, its in found.items():
        _check_classes(f"{where}{split}", its, names)
    return Listing(where, {split: _in_turns(its, names) for split, its in found.items()}, names)


def _found_classes(where: str, found: dict[str, dict[str, list[str]]]) -> tuple[str, ...]:
    train, test = (set(found[split]) for split in SPLITS)
    if train != test:
        only = [
            f"only {split}/ has {listed(sorted(names), 5)}"
            for split, names in (("train", train - test), ("test", test - train))
            if names
        ]
        raise InputError(f"{where}: train/ and test/ must hold the same classes; {'; '.join(only)}")
    if not FEWEST_CLASSES <= len(train) <= MOST_CLASSES:
        raise InputError(
            f"{where}: train/ and test/ hold {len(train)} classes; "
            f"must be {FEWEST_CLASSES} to {MOST_CLASSES:,}"
        )
    if odd := [name for name in train if not name.isprintable()]:
        raise InputError(f"{where}: {min(odd)!r} is no name for a class; rename the folder")
    return tuple(sorted(train))


def _in_turns(classes: dict[str, list[str]], names: tuple[str, ...]) -> list[tuple[int, str]]:
    # the first image of every class, then the second: the first thousand images of a split sorted
    # by class would all be airplanes, and with them what trainer.limit_test_batches measures
    places = sorted(
        (place, label, name)
        for label, class_name in enumerate(names)
        for place, name in enumerate(sorted(classes[class_name]))
    )
    return [(label, name) for _, label, name in places]


def _check_classes(where: str, classes: dict[str, list[str]], names: tuple[str, ...]) -> None:
    missing = [name for name in names if name not in classes]
    unknown = set(classes) - set(names)
    if missing or unknown:
        parts = [f"lacks {listed(sorted(missing), 5)}"] if missing else []
        parts += [f"has unknown {listed(sorted(unknown), 5)}"] if unknown else []
        wanted = ", ".join(names) if len(names) <= 20 else f"{', '.join(names[:5])}, ..."
        raise InputError(
            f"{where}: {' and '.join(parts)}; it must hold exactly the {len(names)} class folders "
            f"{wanted} (data=folders takes any classes)"
        )
    for name in names:
        if not classes[name]:
            raise InputError(f"{where}/{name}: holds no image; each class needs at least one")


def _read(
    listing: Listing, read: Callable[[str], bytes], image_size: int | None
) -> tuple[Split, Split, int]:
    notes: Counter[str] = Counter()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of Pillow's: what matters is checked
        train, test = (_read_split(listing, s, read, image_size, notes) for s in SPLITS)
    resized = notes.pop("resized", 0)
    where = listing.where.rstrip("/!")
    for said, count in notes.items():
        log.info("%s: %s of %s", where, said, f"{count:,} picture{'s' * (count > 1)}")
    if odd := _spelt_otherwise(listing):
        log.info("%s: read in spite of their case: %s", where, listed(sorted(odd), 5))
    return train, test, resized


def _spelt_otherwise(listing: Listing) -> set[str]:
    """Folders whose names differ from those of their split and class, in case alone."""
    return {
        name.rpartition("/")[0]
        for split in SPLITS
        for label, name in listing.names[split]
        if name.rpartition("/")[0] != f"{split}/{listing.classes[label]}"
    }


def _read_split(
    listing: Listing,
    split: str,
    read: Callable[[str], bytes],
    image_size: int | None,
    notes: Counter[str],
) -> Split:
    # One thread: two on two cores took 1.7 times as long (10,000 JPEG: 0.52 s against 0.93 s),
    # since an image this small is mostly Python, and the threads fight over the GIL.
    entries = listing.names[split]
    size = image_size or 32
    try:
        images = np.empty((len(entries), 3, size, size), np.uint8)
    except MemoryError as error:
        raise InputError(
            f"{listing.where}{split}: {len(entries):,} pictures of {size}x{size} are more than "
            "this machine's memory; set a smaller data.image_size"
        ) from error
    for image, (_, name) in zip(images, entries, strict=True):
        image[:] = _decode(listing.where + name, partial(read, name), image_size, notes)
    labels = np.array([label for label, _ in entries], label_type(len(listing.classes)))
    return Split(images, labels)


def _decode(
    where: str, read: Callable[[], bytes], image_size: int | None, notes: Counter[str]
) -> NDArray[np.uint8]:
    """One picture as (3, S, S) uint8 RGB; counts what was done to it."""
    from PIL import Image, ImageOps

    from cifar_lab.data.pictures import FORMATS, MOST_BYTES, MOST_PIXELS, fitted

    wanted = (image_size or 32, image_size or 32)
    rgb = None
    try:
        content = read()
        if len(content) > MOST_BYTES:
            raise InputError(f"has more than {MOST_BYTES:,} bytes; at most that many are read")
        with Image.open(io.BytesIO(content), formats=FORMATS) as image:
            size = image.size
            if size[0] * size[1] > MOST_PIXELS:
                raise InputError(
                    f"has {size[0]}x{size[1]} pixels; at most {MOST_PIXELS:,} are read"
                )
            if getattr(image, "is_animated", False):
                notes["the first frame was taken"] += 1
            if image_size is not None:
                rgb = fitted(_to_rgb(ImageOps.exif_transpose(image), notes), wanted)
                notes["resized"] += size != wanted
            elif size == wanted:
                rgb = _to_rgb(image, notes)
    except InputError as error:
        raise InputError(f"{where}: {error}") from error
    except Exception as error:  # Pillow and zipfile raise a dozen kinds for broken data
        reason = str(error).partition(" <_io")[0]  # "cannot identify image file <_io.BytesIO ...>"
        raise InputError(f"{where}: is no readable picture ({reason}); replace it") from error
    if rgb is None:
        raise InputError(
            f"{where}: is {size[0]}x{size[1]} pixels; images must be 32x32 (data=folders resizes)"
        )
    return np.asarray(rgb).transpose(2, 0, 1)


def _to_rgb(image: Any, notes: Counter[str]) -> Any:
    from cifar_lab.data.pictures import eight_bits

    if image.mode == "RGB" and "transparency" not in image.info:
        image.load()
        return image
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        image = image.convert("RGBA")
        if image.getchannel("A").getextrema() != (255, 255):
            raise InputError("has transparent pixels; save it as plain RGB")
    elif image.mode.startswith("I"):
        notes["the upper 8 of 16 bits were taken"] += 1
        image = eight_bits(image)
    elif image.mode not in ("1", "L", "P", "CMYK"):
        raise InputError(f"has mode {image.mode}; save it as 8-bit RGB")
    return image.convert("RGB")
