"""Decoded images on disk: one raw uint8 file for each split, verified and mapped at every start.

A cache folder holds an entry for each source:

    <key>.lock                  whoever prepares or mends the entry holds it
    <key>/train.bin, test.bin   all pixels (N, 3, S, S) RGB, then N labels (see `label_type`)
    <key>/SHA256SUMS            of both, for `sha256sum -c`
    <key>/dataset.json          where they came from; written last, so an entry without it is none

Beside them lies the archive if it was fetched: from it a damaged entry is mended without fetching
once more, which may take an hour.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import mmap
import os
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np

from cifar_lab.data.dataset import CLASSES, Split, digest_of, label_type, split_digest
from cifar_lab.errors import InputError
from cifar_lab.records.files import expanded

log = logging.getLogger("cifar_lab.data")

SPLITS = ("train", "test")
_WAIT_SILENTLY_S = 1.0


class CacheError(InputError):
    """The cache folder can't be written: no other source of the images would help."""


class DamagedError(Exception):
    """The entry's bytes are not those that were written; the message says which."""


@dataclass(frozen=True)
class Origin:
    """Where an entry's images came from (dataset.json).

    Attributes:
        layout: of the source that was decoded.
        fingerprints: of every source, by path, that is known to hold these very images.
        images: the number in each split.
        dataset: what the `Dataset` is called.
        classes: of the labels 0, 1, ...
        image_size: S of images (3, S, S).
        resized: how many had another size.
        mean, std: of the training images' channels; null where nobody has computed them.
    """

    layout: str
    fingerprints: dict[str, str]
    images: dict[str, int]
    # these are younger than some entries, which were all of CIFAR-10
    dataset: str = "cifar10"
    classes: tuple[str, ...] = CLASSES
    image_size: int = 32
    resized: int = 0
    mean: tuple[float, float, float] | None = None
    std: tuple[float, float, float] | None = None

    @classmethod
    def parse(cls, text: bytes) -> Origin:
        """Of dataset.json; ValueError, KeyError or TypeError where it is none."""
        plain = json.loads(text)
        lists = {key: tuple(value) for key, value in plain.items() if isinstance(value, list)}
        return cls(**{**plain, **lists})


@dataclass(frozen=True)
class Cached:
    """A verified entry: its splits are read-only memory maps."""

    origin: Origin
    digest: str
    train: Split
    test: Split


def cache_folder(cache: str | None) -> Path:
    """`cache`, or else the folder for cifar_lab in the user's cache; absolute, may not exist."""
    if cache:
        return expanded(cache).absolute()
    # the XDG rules: a relative path there is to be ignored
    base = os.environ.get("XDG_CACHE_HOME", "")
    return (Path(base) if os.path.isabs(base) else Path.home() / ".cache") / "cifar_lab"


class Entry:
    """One source's place in the cache."""

    def __init__(self, cache: Path, key: str) -> None:
        self.folder = cache / key
        self._lock_path = cache / f"{key}.lock"

    def load(self) -> Cached | None:
        """Maps and verifies both splits; None when there is nothing whole.

        Raises:
            DamagedError: something is there, but not what was written. Without the lock this may
                also mean that another process is writing at this moment.
        """
        try:
            origin = Origin.parse((self.folder / "dataset.json").read_bytes())
            sums = (self.folder / "SHA256SUMS").read_text("ascii").split()
            expected = dict(zip(sums[1::2], sums[::2], strict=True))
            with ThreadPoolExecutor(len(SPLITS)) as pool:  # hashing releases the GIL
                train, test = pool.map(
                    lambda name: self._map(name, origin, expected[f"{name}.bin"]),
                    SPLITS,
                )
        except (FileNotFoundError, NotADirectoryError):
            if (self.folder / "dataset.json").exists():
                raise DamagedError("a file is missing") from None
            return None
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise DamagedError(f"dataset.json or SHA256SUMS can't be read ({error})") from error
        digest = digest_of(expected["train.bin"], expected["test.bin"])
        return Cached(origin, digest, train, test)

    def origin(self) -> Origin | None:
        """Where the entry came from, if that can still be read."""
        try:
            return Origin.parse((self.folder / "dataset.json").read_bytes())
        except (AttributeError, OSError, TypeError, ValueError):
            return None

    def store(self, train: Split, test: Split, *, origin: Origin) -> None:
        """Writes the entry, beside the old one and in its place only when whole (hold the lock).

        Args:
            train: (N, 3, H, W) uint8 and labels.
            test: likewise.
            origin: where they are from, for the next who looks for them.
        """
        with writing_into(self.folder.parent):
            self.folder.mkdir(parents=True, exist_ok=True)
            # First, lest a crash half-way leave new images under the old source's fingerprint.
            # Names are replaced, never bytes: what is mapped elsewhere stays what it is.
            (self.folder / "dataset.json").unlink(missing_ok=True)
            sums = ""
            for name, split in zip(SPLITS, (train, test), strict=True):
                _replace(self.folder / f"{name}.bin", (split.images.data, split.labels.data))
                sums += f"{split_digest(split)}  {name}.bin\n"
            _replace(self.folder / "SHA256SUMS", (sums.encode("ascii"),))
            self._write_origin(origin)

    def add_source(self, origin: Origin, path: Path, fingerprint: str) -> None:
        """Remembers that `path` holds these very images too (hold the lock)."""
        fingerprints = {**origin.fingerprints, str(path): fingerprint}
        with writing_into(self.folder.parent):
            self._write_origin(replace(origin, fingerprints=fingerprints))

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Lets one process at a time prepare the entry; the others wait, and say so once.

        The system drops the lock when its holder dies, however it dies.
        """
        from filelock import FileLock, Timeout

        lock = FileLock(self._lock_path)
        with writing_into(self.folder.parent):
            self._lock_path.parent.mkdir(parents=True, exist_ok=True)
            try:
                lock.acquire(timeout=_WAIT_SILENTLY_S)
            except Timeout:
                log.warning("waiting for another process that prepares %s", self.folder)
                lock.acquire()
        try:
            yield
        finally:
            lock.release()

    def _map(self, name: str, origin: Origin, sha256: str) -> Split:
        path, images = self.folder / f"{name}.bin", origin.images[name]
        shape, kind = (images, 3, *[origin.image_size] * 2), label_type(len(origin.classes))
        pixels, size = math.prod(shape), path.stat().st_size
        if size == 0 or size != pixels + images * kind.itemsize:
            raise DamagedError(f"{name}.bin has {size} bytes for {images} images")
        with path.open("rb") as file:
            mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        # the very bytes that training will see, not a second look at the file
        if hashlib.sha256(mapped).hexdigest() != sha256:
            raise DamagedError(f"{name}.bin does not have the SHA-256 it was written with")
        labels = np.frombuffer(mapped, kind, offset=pixels)
        # two bytes each may lie at an odd place in the file, where torch can't take them up
        labels = labels if labels.flags.aligned else labels.copy()
        return Split(np.frombuffer(mapped, np.uint8, pixels).reshape(shape), labels)

    def _write_origin(self, origin: Origin) -> None:
        text = json.dumps(asdict(origin), indent=1) + "\n"
        _replace(self.folder / "dataset.json", (text.encode(),))


@contextmanager
def writing_into(cache: Path) -> Iterator[None]:
    """Turns a full disk, a read-only folder and the like into a CacheError."""
    try:
        yield
    except OSError as error:
        raise CacheError(
            f"data.cache={cache}: can't be written ({error.strerror or error}); set data.cache or "
            "XDG_CACHE_HOME to a folder of your own with 0.4 GB free"
        ) from error


def _replace(path: Path, chunks: Iterable[bytes | memoryview]) -> None:
    # a name of its own, always the same: what a crash leaves is written over by the next attempt
    part = path.with_name(path.name + ".part")
    try:
        with part.open("wb") as file:
            for chunk in chunks:
                file.write(chunk)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    except OSError:
        part.unlink(missing_ok=True)
        raise
