"""Fetches the archive from the first source that delivers it whole, continuing what broke off."""

from __future__ import annotations

import logging
import os
import time
from collections import deque
from collections.abc import Sequence
from pathlib import Path

import requests
import urllib3

from cifar_lab.data.fetch.archive import Archive, md5_of
from cifar_lab.data.fetch.cache import writing_into
from cifar_lab.data.fetch.progress import transfer_progress
from cifar_lab.errors import InputError
from cifar_lab.records.credentials import hide

log = logging.getLogger("cifar_lab.data")

CHUNK = 1 << 18
ATTEMPTS = 4  # in a row, at a source that is busy or breaks off
MAX_RETRY_AFTER_S = 30.0
_BUSY = (429, 500, 502, 503, 504)


class SourceError(Exception):
    """This source can't be used; the message says why."""


class BrokenOffError(SourceError):
    """The transfer ended early, or the source is busy: trying again may help.

    Attributes:
        wait_s: how long to wait first.
    """

    def __init__(self, message: str, *, wait_s: float) -> None:
        super().__init__(message)
        self.wait_s = wait_s


def fetch(
    archive: Archive, sources: Sequence[str], folder: Path, *, min_rate: float, stall_s: float
) -> Path:
    """Fetches the archive into `folder`; the file is there under its name only when it is whole.

    What a transfer delivered stays beside it as ``<name>.part``, and the next source, or the next
    call, goes on from there. One process at a time: hold the cache entry's lock. Proxies come from
    the environment (HTTPS_PROXY, NO_PROXY, ...).

    Args:
        archive: what is wanted.
        sources: URLs of the identical archive, tried in this order.
        folder: where to.
        min_rate: bytes/s; 0 takes any. A source that is slower over `stall_s` is given up.
        stall_s: seconds; a source that sends nothing for so long is given up.

    Raises:
        InputError: no source delivered it; the message has each source's reason.
    """
    transfer = _Transfer(archive, folder, min_rate=min_rate, stall_s=stall_s)
    failures: list[str] = []
    for number, url in enumerate(sources, start=1):
        try:
            return transfer.from_source(url)
        except SourceError as error:
            failures.append(f"{hide(url)}: {error}")
            following = "; trying the next source" if number < len(sources) else ""
            log.warning("%s: %s%s", hide(url), error, following)
    raise InputError(_all_failed(archive, folder, failures))


class _Transfer:
    """One archive on its way into one folder."""

    def __init__(self, archive: Archive, folder: Path, *, min_rate: float, stall_s: float) -> None:
        self.archive = archive
        self.path = folder / archive.name
        self.part = folder / f"{archive.name}.part"
        self.min_rate = min_rate
        self.stall_s = stall_s
        self._continued = False  # whether the file has bytes from before the last request

    def from_source(self, url: str) -> Path:
        """The whole file, from this source and what is there already; raises SourceError."""
        log.info("fetching %s", hide(url))
        self._continued = self._have() > 0
        self._complete(url)
        if not self._is_whole():
            if not self._continued:
                raise SourceError(self._wrong_md5())
            # the earlier bytes may be the wrong ones, another source's or another version's
            log.warning(
                "%s: wrong MD5 after continuing a transfer; once more from the start", hide(url)
            )
            self._complete(url)
            if not self._is_whole():
                raise SourceError(self._wrong_md5())
        with writing_into(self.path.parent):
            with self.part.open("rb") as file:
                os.fsync(file.fileno())
            self.part.replace(self.path)
        return self.path

    def _wrong_md5(self) -> str:
        return f"sends something else (its MD5 is not {self.archive.md5})"

    def _is_whole(self) -> bool:
        # wrong bytes are of no use to the next source either: away with them
        if md5_of(self.part) == self.archive.md5:
            return True
        self.part.unlink()
        return False

    def _complete(self, url: str) -> None:
        # requests until the size is reached; whether the bytes are right is another question
        best, fruitless = self._have(), 0
        while self._have() < self.archive.size:
            try:
                self._request(url)
            except BrokenOffError as error:
                # a hundredth of the file pays for more attempts, once: this comes to an end
                if (have := self._have()) - best >= self.archive.size / 100:
                    best, fruitless = have, 0
                else:
                    fruitless += 1
                if fruitless == ATTEMPTS:
                    raise
                log.info("%s: %s; again in %.1f s", hide(url), error, error.wait_s)
                time.sleep(error.wait_s)

    def _request(self, url: str) -> None:
        have = self._have()
        # "identity": the bytes of the file itself, not of a transport's compression
        headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={have}-"} if have else {})
        try:
            with requests.get(
                url, headers=headers, stream=True, timeout=(self.stall_s, self.stall_s)
            ) as response:
                start = self._check_response(response, have)
                self._continued |= start > 0
                self._receive(response, start)
        except (requests.Timeout, urllib3.exceptions.TimeoutError) as error:
            raise SourceError(f"no answer for {self.stall_s:g} s") from error
        except requests.ConnectionError as error:
            raise BrokenOffError(f"no connection ({_root_cause(error)})", wait_s=0.2) from error
        except requests.RequestException as error:
            raise SourceError(hide(str(error))) from error
        except urllib3.exceptions.HTTPError as error:
            raise BrokenOffError(f"broke off ({_root_cause(error)})", wait_s=0.2) from error

    def _check_response(self, response: requests.Response, have: int) -> int:
        # the position in the file at which the body starts
        status, size = response.status_code, self.archive.size
        if status == 416:
            self.part.unlink(missing_ok=True)
            raise BrokenOffError("refuses to continue (416)", wait_s=0)
        if status in _BUSY:
            raise BrokenOffError(f"{status} {response.reason}", wait_s=_retry_after(response))
        if status not in (200, 206):
            raise SourceError(f"{status} {response.reason}")
        start = have if status == 206 else 0
        sent = response.headers.get("Content-Range")
        if status == 206 and sent != f"bytes {have}-{size - 1}/{size}":
            raise SourceError(f"continues something else ({sent})")
        length = response.headers.get("Content-Length")
        if length is not None and length != str(size - start):
            kind = response.headers.get("Content-Type", "of unknown type")
            raise SourceError(f"sends something else ({length} bytes, {kind})")
        return start

    def _receive(self, response: requests.Response, start: int) -> None:
        size = self.archive.size
        watch = _RateWatch(self.min_rate, self.stall_s)
        with writing_into(self.part.parent):
            # unbuffered: after a kill all that came is in the file
            file = self.part.open("ab" if start else "wb", buffering=0)
        with file, transfer_progress(self.archive.name, size, start) as advance:
            have = start
            # read1 gives what has come, so that a trickle doesn't hide in a large read
            while chunk := response.raw.read1(CHUNK, decode_content=False):
                have += len(chunk)
                if have > size:
                    file.truncate(0)
                    raise SourceError(f"sends something else (more than {size} bytes)")
                with writing_into(self.part.parent):
                    file.write(chunk)
                advance(len(chunk))
                if (rate := watch.too_slow(len(chunk))) is not None:
                    raise SourceError(
                        f"{rate / 1e3:.1f} kB/s over {self.stall_s:g} s, less than "
                        f"data.min_rate={self.min_rate:g}"
                    )
        if have < size:
            raise BrokenOffError(f"broke off at {have} of {size} bytes", wait_s=0.2)

    def _have(self) -> int:
        size = self.part.stat().st_size if self.part.exists() else 0
        if size > self.archive.size:
            self.part.unlink()
            return 0
        return size


class _RateWatch:
    """Bytes per second over the last `window_s` seconds."""

    def __init__(self, min_rate: float, window_s: float) -> None:
        self.min_rate = min_rate
        self.window_s = window_s
        self._begin = time.monotonic()
        self._recent: deque[tuple[float, int]] = deque()
        self._bytes = 0

    def too_slow(self, received: int) -> float | None:
        """The rate if it is below the least allowed; None before a whole window has passed."""
        now = time.monotonic()
        self._recent.append((now, received))
        self._bytes += received
        while self._recent[0][0] < now - self.window_s:
            self._bytes -= self._recent.popleft()[1]
        rate = self._bytes / self.window_s
        return rate if now - self._begin >= self.window_s and rate < self.min_rate else None


def _retry_after(response: requests.Response) -> float:
    # the other form of the header, a date, is rare: the default will do
    value = response.headers.get("Retry-After", "")
    return min(float(value), MAX_RETRY_AFTER_S) if value.isdecimal() else 1.0


def _root_cause(error: BaseException) -> str:
    # requests wraps urllib3 wraps an OSError; the innermost says it best
    seen: BaseException = error
    while (inner := seen.__cause__ or seen.__context__) is not None:
        seen = inner
    return str(getattr(seen, "strerror", None) or seen)


def _all_failed(archive: Archive, folder: Path, failures: Sequence[str]) -> str:
    reasons = "; ".join(failures) or "data.sources is empty"
    return (
        f"data.sources: {archive.name} could not be fetched: {reasons}; "
        f"put the file into {folder} by hand, set data.root to it, give other data.sources, or use "
        "data=synthetic; where a source is only slow, data.min_rate=0 lets it go on"
    )
