"""A dataset from wherever it is: a given root, the cache, other tools' folders, the network."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from cifar_lab.data.dataset import (
    CIFAR10_MEAN,
    CIFAR10_STD,
    Channels,
    Dataset,
    channel_statistics,
)
from cifar_lab.data.fetch.archive import OFFICIAL, Archive
from cifar_lab.data.fetch.cache import Cached, CacheError, DamagedError, Entry, Origin, cache_folder
from cifar_lab.data.fetch.cifar100 import COARSE, FINE
from cifar_lab.data.fetch.sources import Contents, Source, find_sources, official_sources
from cifar_lab.errors import InputError
from cifar_lab.records.files import expanded

log = logging.getLogger("cifar_lab.data")

# Where other tools leave the archive or its pickles: torchvision below whatever `root` it is given
# (its tutorials say ./data), Keras in its own folder. Class folders there could be any images.
USUAL_PLACES = (
    "data",
    "data/{dataset}",
    "dataset",
    "datasets",
    ".",
    "../data",
    "~/.keras/datasets",
)


class NotHereError(InputError):
    """The dataset is not on this machine, and may not be fetched."""


@dataclass(frozen=True)
class Opened:
    """A dataset, and how it was come by.

    Attributes:
        state: "ok" when the cache held it whole, "built" when it was decoded for the first time,
            "rebuilt" when the cache was damaged or its source had changed.
        entry: the folder in the cache.
        sources: the paths that are known to hold these images.
        resized: how many of the images had another size.
    """

    dataset: Dataset
    state: Literal["ok", "built", "rebuilt"]
    entry: Path
    sources: tuple[str, ...]
    resized: int


def open_folders(*, root: str | None, cache: str | None, image_size: int) -> Opened:
    """Class folders with any names: the training and test images of 2 to 1,000 classes.

    Args:
        root: a folder or a .zip with train/<class>/ and test/<class>/.
        cache: as in `open_from`.
        image_size: S; pictures of another size are resized to (3, S, S).

    Raises:
        InputError: the root is missing, or not such a folder, or the cache can't be written.
    """
    if not root:
        raise InputError(
            "data.root=null: data=folders needs a folder or a .zip with train/<class>/ and "
            "test/<class>/"
        )
    return _open_root(root, cache_folder(cache), None, image_size)


@dataclass(frozen=True, kw_only=True)
class Fetching:
    """Whether and how the archive may be fetched.

    Attributes:
        offline: never open a socket.
        sources: URLs of the identical archive, tried in this order.
        min_rate: bytes/s; a source that is slower over `stall_s` seconds is given up.
        stall_s: seconds.
    """

    offline: bool
    sources: Sequence[str]
    min_rate: float
    stall_s: float


def open_from(
    *, root: str | None, cache: str | None, fetching: Fetching, archive: Archive = OFFICIAL
) -> Opened:
    """CIFAR-10 or CIFAR-100, verified, as read-only memory maps of the cache.

    Args:
        root: a folder, the archive or a .zip; the only place then looked at. None or "": the
            cache, then `USUAL_PLACES`, then what is fetched.
        cache: folder for decoded images; None: the user's cache folder.
        fetching: how.
        archive: which of them.

    Raises:
        InputError: the root holds no usable data, or none can be had, or the cache can't be
            written; `NotHereError`: only the network would have them.
    """
    folder = cache_folder(cache)
    if root:
        return _open_root(root, folder, archive)
    return _open_anywhere(folder, fetching, archive)


def verify_cache(
    *, cache: str | None, archives: Sequence[Archive] = (OFFICIAL, FINE, COARSE)
) -> Iterator[tuple[str, str]]:
    """Verifies every entry of a cache and mends what is damaged; opens no socket.

    Args:
        cache: as in `open_from`.
        archives: of the official entries.

    Yields:
        (entry, state): state is "ok", "rebuilt", or why it is neither.
    """
    folder = cache_folder(cache)
    for path in sorted(folder.glob("*/dataset.json")):
        entry = Entry(folder, path.parent.name)
        cached, trouble = _examine(entry)
        if cached:
            yield entry.folder.name, "ok"
            continue
        try:
            yield entry.folder.name, _mend(entry, archives).state
        except InputError as error:
            reason = str(error).removeprefix("data.offline=true: ")
            yield entry.folder.name, f"{trouble}; {reason}"


def _mend(entry: Entry, archives: Sequence[Archive]) -> Opened:
    cache = entry.folder.parent
    for archive in archives:
        if entry.folder.name == archive.key:
            offline = Fetching(offline=True, sources=(), min_rate=0, stall_s=0)
            return _open_anywhere(cache, offline, archive)
    origin = entry.origin()
    if not origin:
        raise InputError(f"it is not known from what it was built: delete {entry.folder}")
    known = {archive.dataset: archive for archive in archives}
    its, path = known.get(origin.dataset), next(iter(origin.fingerprints))
    opened = _open_root(path, cache, its, None if its else origin.image_size)
    if opened.entry != entry.folder:
        raise InputError(f"what it was built from holds something else now: delete {entry.folder}")
    return opened


def _open_root(
    root: str, cache: Path, archive: Archive | None, image_size: int | None = None
) -> Opened:
    path = expanded(root).absolute()
    try:
        found = find_sources(path, archive, image_size)
        return _open_first(found, Entry(cache, found[0].key))
    except CacheError:
        raise
    except InputError as error:
        raise InputError(f"data.root={root}: {str(error).removeprefix(f'{path}: ')}") from error
    except OSError as error:
        raise InputError(
            f"data.root={root}: {error.filename or root} can't be read ({error.strerror or error})"
        ) from error


def _open_first(found: Sequence[Source], entry: Entry) -> Opened:
    failures = []
    for source in found:
        try:
            opened = _open_source(source, entry)
        except InputError as error:
            failures.append(error)
            continue
        for failure in failures:
            log.warning("%s (using %s instead)", failure, source.path)
        return opened
    raise failures[0]


def _open_source(source: Source, entry: Entry) -> Opened:
    with ThreadPoolExecutor(1) as pool:  # verifying runs without the GIL, beside the scan
        verified = pool.submit(_examine, entry)
        fingerprint = source.fingerprint()
        cached, _ = verified.result()
    if cached and _known(cached, source, fingerprint):
        return _opened(cached, "ok", entry, source)
    with entry.lock():
        cached, trouble = _examine(entry)  # another process may have mended it meanwhile
        if cached and _known(cached, source, fingerprint):
            return _opened(cached, "ok", entry, source)
        if cached and source.official:
            source.check()
            entry.add_source(cached.origin, source.path, fingerprint)
            return _opened(cached, "ok", entry, source)
        if cached:
            trouble = f"{source.path} has changed since it was cached"
        return _fill(source, fingerprint, entry, trouble)


def _open_anywhere(cache: Path, fetching: Fetching, archive: Archive) -> Opened:
    entry = Entry(cache, archive.key)
    cached, trouble = _examine(entry)
    if cached:
        return _opened(cached, "ok", entry)
    if fetching.offline and not any(_local_sources(entry, cache, archive)):
        raise NotHereError(_nowhere(entry, trouble, archive))  # before the lock: nothing is written
    with entry.lock():
        cached, trouble = _examine(entry)
        if cached:
            return _opened(cached, "ok", entry)
        for source in _local_sources(entry, cache, archive):
            try:
                return _fill(source, source.fingerprint(), entry, trouble)
            except CacheError:
                raise
            except InputError as error:
                log.warning("%s (looking further)", error)
            except OSError as error:
                log.warning("%s can't be read (%s); looking further", source.path, error.strerror)
        if fetching.offline:
            raise NotHereError(_nowhere(entry, trouble, archive))
        from cifar_lab.data.fetch.download import fetch

        path = fetch(
            archive,
            fetching.sources,
            cache,
            min_rate=fetching.min_rate,
            stall_s=fetching.stall_s,
        )
        source = Source("archive", path, archive)
        return _fill(source, source.fingerprint(), entry, trouble)


def _local_sources(entry: Entry, cache: Path, archive: Archive) -> Iterator[Source]:
    # what the entry was built from, what was fetched before, what other tools left
    origin = entry.origin()
    for path in map(Path, origin.fingerprints if origin else ()):
        if path.exists():
            yield Source("pickles" if path.is_dir() else "archive", path, archive)
    for place in (cache, *(expanded(name).absolute() for name in _usual_places(archive))):
        yield from official_sources(place, archive)


def _fill(source: Source, fingerprint: str, entry: Entry, trouble: str) -> Opened:
    if trouble:
        log.warning("%s: %s; rebuilding it from %s", entry.folder, trouble, source.path)
    begin = time.monotonic()
    found = source.read()
    channels = _channels(source, found)
    origin = Origin(
        layout=source.layout,
        fingerprints={str(source.path): fingerprint},
        images={"train": len(found.train), "test": len(found.test)},
        dataset=source.dataset,
        classes=found.classes,
        image_size=found.train.images.shape[-1],
        resized=found.resized,
        mean=channels.mean if channels else None,
        std=channels.std if channels else None,
    )
    entry.store(found.train, found.test, origin=origin)
    cached, trouble_again = _examine(entry)
    if cached is None:
        raise CacheError(
            f"data.cache={entry.folder.parent}: loses what is written ({trouble_again})"
        )
    log.info("decoded %s in %.1f s", source.path, time.monotonic() - begin)
    if found.resized:
        log.info("%s", _resized(origin))
    return _opened(cached, "rebuilt" if trouble else "built", entry, source)


def _channels(source: Source, found: Contents) -> Channels | None:
    """Of all but CIFAR-10, whose constants hold for copies of it too; None: there are none."""
    if source.dataset == "cifar10":
        return Channels(CIFAR10_MEAN, CIFAR10_STD)
    try:
        return channel_statistics(found.train.images)
    except InputError:
        return None  # for the one who wants them to say


def _resized(origin: Origin) -> str:
    """What to say of images that had another size."""
    size = origin.image_size
    return (
        f"{origin.resized:,} of the {sum(origin.images.values()):,} pictures were resized to "
        f"{size}x{size}, of those that are not square the middle; data.image_size sets the size"
    )


def _examine(entry: Entry) -> tuple[Cached | None, str]:
    # (what is there, "") or (None, why it is damaged) or (None, "") when there is nothing
    try:
        return entry.load(), ""
    except DamagedError as error:
        return None, f"damaged: {error}"
    except OSError as error:
        return None, f"can't be read ({error.strerror or error})"


def _known(cached: Cached, source: Source, fingerprint: str) -> bool:
    return cached.origin.fingerprints.get(str(source.path)) == fingerprint


def _opened(
    cached: Cached,
    state: Literal["ok", "built", "rebuilt"],
    entry: Entry,
    source: Source | None = None,
) -> Opened:
    origin = cached.origin
    channels = Channels(origin.mean, origin.std) if origin.mean and origin.std else None
    if origin.dataset == "cifar10":  # entries of before don't hold them
        channels = Channels(CIFAR10_MEAN, CIFAR10_STD)
    dataset = Dataset(
        name=origin.dataset,
        layout=source.layout if source else cached.origin.layout,
        # without a source this is the entry that only official bytes get into
        official=source.official if source else True,
        digest=cached.digest,
        classes=origin.classes,
        train=cached.train,
        test=cached.test,
        channels=channels,
    )
    return Opened(dataset, state, entry.folder, tuple(origin.fingerprints), origin.resized)


def _usual_places(archive: Archive) -> list[str]:
    return [place.format(dataset=archive.dataset.partition("_")[0]) for place in USUAL_PLACES]


def _nowhere(entry: Entry, trouble: str, archive: Archive) -> str:
    state = trouble or "empty"
    return (
        f"data.offline=true: {archive.title} is not on this machine (cache {entry.folder} is "
        f"{state}; looked in {', '.join(_usual_places(archive))} for {archive.name} and "
        f"{archive.folder}/); set data.root to it, or data.offline=false to fetch it, or use "
        "data=synthetic"
    )
