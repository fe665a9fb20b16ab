"""CIFAR-10 from wherever it is: a given root, the cache, other tools' folders, the network."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from cifar_lab.data.dataset import Dataset
from cifar_lab.data.fetch.archive import OFFICIAL, Archive
from cifar_lab.data.fetch.cache import Cached, CacheError, DamagedError, Entry, Origin, cache_folder
from cifar_lab.data.fetch.sources import Source, find_sources, official_sources
from cifar_lab.errors import InputError

log = logging.getLogger("cifar_lab.data")

# Where other tools leave the archive or its pickles: torchvision below whatever `root` it is given
# (its tutorials say ./data), Keras in its own folder. Class folders there could be any images.
USUAL_PLACES = ("data", "data/cifar10", "dataset", "datasets", ".", "../data", "~/.keras/datasets")


class NotHereError(InputError):
    """CIFAR-10 is not on this machine, and may not be fetched."""


@dataclass(frozen=True)
class Opened:
    """A dataset, and how it was come by.

    Attributes:
        state: "ok" when the cache held it whole, "built" when it was decoded for the first time,
            "rebuilt" when the cache was damaged or its source had changed.
        entry: the folder in the cache.
        sources: the paths that are known to hold these images.
    """

    dataset: Dataset
    state: Literal["ok", "built", "rebuilt"]
    entry: Path
    sources: tuple[str, ...]


def open_cifar10(
    *,
    root: str | None,
    cache: str | None,
    offline: bool,
    sources: Sequence[str],
    min_rate: float,
    stall_s: float,
) -> Dataset:
    """CIFAR-10, verified, as read-only memory maps of the cache.

    Args:
        root: a folder, the archive or a .zip; the only place then looked at. None or "": the
            cache, then `USUAL_PLACES`, then `sources`.
        cache: folder for decoded images; None: the user's cache folder.
        offline: never open a socket.
        sources: URLs of the identical archive, tried in this order.
        min_rate: bytes/s; a source that is slower over `stall_s` seconds is given up.
        stall_s: seconds.

    Raises:
        InputError: the root holds no usable data, or none can be had, or the cache can't be
            written; `NotHereError`: only the network would have them.
    """
    fetching = Fetching(offline=offline, sources=sources, min_rate=min_rate, stall_s=stall_s)
    return open_from(root=root, cache=cache, fetching=fetching).dataset


@dataclass(frozen=True, kw_only=True)
class Fetching:
    """Whether and how the archive may be fetched; the names are those of `open_cifar10`."""

    offline: bool
    sources: Sequence[str]
    min_rate: float
    stall_s: float


def open_from(
    *, root: str | None, cache: str | None, fetching: Fetching, archive: Archive = OFFICIAL
) -> Opened:
    """`open_cifar10`, with the archive's identity as a parameter and more to tell."""
    folder = cache_folder(cache)
    if root:
        return _open_root(root, folder, archive)
    return _open_anywhere(folder, fetching, archive)


def verify_cache(*, cache: str | None, archive: Archive = OFFICIAL) -> Iterator[tuple[str, str]]:
    """Verifies every entry of a cache and mends what is damaged; opens no socket.

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
            yield entry.folder.name, _mend(entry, archive).state
        except InputError as error:
            reason = str(error).removeprefix("data.offline=true: ")
            yield entry.folder.name, f"{trouble}; {reason}"


def _mend(entry: Entry, archive: Archive) -> Opened:
    cache = entry.folder.parent
    if entry.folder.name == archive.key:
        offline = Fetching(offline=True, sources=(), min_rate=0, stall_s=0)
        return _open_anywhere(cache, offline, archive)
    origin = entry.origin()
    if not origin:
        raise InputError(f"it is not known from what it was built: delete {entry.folder}")
    opened = _open_root(next(iter(origin.fingerprints)), cache, archive)
    if opened.entry != entry.folder:
        raise InputError(f"what it was built from holds something else now: delete {entry.folder}")
    return opened


def _open_root(root: str, cache: Path, archive: Archive) -> Opened:
    path = Path(root).expanduser().absolute()
    try:
        found = find_sources(path, archive)
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
        return _build(source, fingerprint, entry, trouble)


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
                return _build(source, source.fingerprint(), entry, trouble)
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
        return _build(source, source.fingerprint(), entry, trouble)


def _local_sources(entry: Entry, cache: Path, archive: Archive) -> Iterator[Source]:
    # what the entry was built from, what was fetched before, what other tools left
    origin = entry.origin()
    for path in map(Path, origin.fingerprints if origin else ()):
        if path.exists():
            yield Source("pickles" if path.is_dir() else "archive", path, archive)
    for place in (cache, *(Path(name).expanduser().absolute() for name in USUAL_PLACES)):
        yield from official_sources(place, archive)


def _build(source: Source, fingerprint: str, entry: Entry, trouble: str) -> Opened:
    if trouble:
        log.warning("%s: %s; rebuilding it from %s", entry.folder, trouble, source.path)
    begin = time.monotonic()
    train, test = source.read()
    origin = Origin(
        layout=source.layout,
        fingerprints={str(source.path): fingerprint},
        images={"train": len(train), "test": len(test)},
    )
    entry.store(train, test, origin=origin)
    cached, trouble_again = _examine(entry)
    if cached is None:
        raise CacheError(
            f"data.cache={entry.folder.parent}: loses what is written ({trouble_again})"
        )
    log.info("decoded %s in %.1f s", source.path, time.monotonic() - begin)
    return _opened(cached, "rebuilt" if trouble else "built", entry, source)


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
    dataset = Dataset(
        name="cifar10",
        layout=source.layout if source else cached.origin.layout,
        # without a source this is the entry that only official bytes get into
        official=source.official if source else True,
        digest=cached.digest,
        train=cached.train,
        test=cached.test,
    )
    return Opened(dataset, state, entry.folder, tuple(cached.origin.fingerprints))


def _nowhere(entry: Entry, trouble: str, archive: Archive) -> str:
    state = trouble or "empty"
    return (
        f"data.offline=true: CIFAR-10 is not on this machine (cache {entry.folder} is {state}; "
        f"looked in {', '.join(USUAL_PLACES)} for {archive.name} and {archive.folder}/); set "
        "data.root to it, or data.offline=false to fetch it, or use data=synthetic"
    )
