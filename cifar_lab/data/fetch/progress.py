"""How far a transfer is: a bar on a terminal, else a line in the log now and then."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

log = logging.getLogger("cifar_lab.data")

LOG_EVERY_S = 30.0


@contextmanager
def transfer_progress(name: str, size: int, start: int) -> Iterator[Callable[[int], None]]:
    """Yields what is to be told the number of bytes of each chunk.

    Args:
        name: of the file.
        size: of the whole file in bytes.
        start: bytes that were there before.
    """
    if not sys.stderr.isatty():
        yield _progress_lines(name, size, start)
        return
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(name, total=size, completed=start)
        yield lambda count: bar.advance(task, count)


def _progress_lines(name: str, size: int, start: int) -> Callable[[int], None]:
    begin = last = time.monotonic()
    have = start

    def advance(count: int) -> None:
        nonlocal have, last
        have += count
        now = time.monotonic()
        if now - last >= LOG_EVERY_S:
            last = now
            rate = (have - start) / (now - begin)
            log.info(
                "%s: %.1f of %.1f MB, %.0f kB/s, %.0f s left",
                name,
                have / 1e6,
                size / 1e6,
                rate / 1e3,
                (size - have) / rate,
            )

    return advance
