"""Files that are always replaced whole."""

from __future__ import annotations

import os
import re
import stat
import tempfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from cifar_lab.errors import InputError

DIGEST_LABEL, DIGEST_CHARACTERS = b"sha256:", 64
# of the 103 bytes multiprocessing takes 32: /pymp-xxxxxxxx/listener-xxxxxxxx
_LONGEST_FOR_SOCKETS = 70
_CARRIED = re.compile(rb"%s([0-9a-f]{%d})" % (DIGEST_LABEL, DIGEST_CHARACTERS))


def write_atomically(
    path: Path, content: str | bytes, *, check: Callable[[Path], object] = lambda beside: None
) -> None:
    """Writes beside, flushes to the disk, renames; raises OSError and leaves ``path`` as it was.

    Args:
        path: is replaced whole.
        content: of the file.
        check: called with the file before it takes its place; where it raises, that is not taken.
    """
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    data = content.encode() if isinstance(content, str) else content
    try:
        with open(beside, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        check(beside)
        os.replace(beside, path)
    except BaseException:
        # a full disk must be told of as such, whatever becomes of the half-written file
        with suppress(OSError):
            beside.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def shorten_paths_of_sockets() -> None:
    """Has ``multiprocessing`` keep its sockets below /tmp where ``TMPDIR`` is too long for them.

    Call it before processes are started that send tensors or are forked from a server: a path of a
    socket has at most 103 bytes on macOS and 107 on Linux. Elsewhere a worker's batches would never
    arrive, and nobody would be told.
    """
    if len(os.fsencode(tempfile.gettempdir())) <= _LONGEST_FOR_SOCKETS or os.name != "posix":
        return
    from multiprocessing.util import get_temp_dir

    before, tempfile.tempdir = tempfile.tempdir, "/tmp"
    try:
        get_temp_dir()  # makes it, keeps it and has it removed at the end
    except OSError as error:
        raise InputError(
            f"TMPDIR={before}: is too long for the sockets between processes; set TMPDIR to a "
            f"path of at most {_LONGEST_FOR_SOCKETS} bytes"
        ) from error
    finally:
        tempfile.tempdir = before


def expanded(path: str | Path) -> Path:
    """The path with ``~`` and ``~user`` expanded; as in a shell, a user whom nobody knows stays."""
    return Path(os.path.expanduser(path))


def check_file(path: Path, *, most: int) -> None:
    """Raises ValueError for what is no file, or has more than ``most`` bytes; OSError for none."""
    status = path.stat()
    if not stat.S_ISREG(status.st_mode):  # a pipe, which would keep its reader for ever
        raise ValueError(f"{path.name}: is no file")
    if status.st_size > most:
        raise ValueError(f"{path.name}: has {status.st_size:,} bytes; at most {most:,} are read")


def carried_digest(path: Path) -> str:
    """The SHA-256 at the end of a checkpoint file, 64 hexadecimal digits; read, not verified.

    `cifar_lab.records.checkpoint_file` writes and verifies it. Raises ValueError where there is
    none, OSError where the file can't be read.
    """
    with open(path, "rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(-min(size, len(DIGEST_LABEL) + DIGEST_CHARACTERS), os.SEEK_END)
        if carried := _CARRIED.fullmatch(file.read()):
            return carried[1].decode()
    raise ValueError("no checkpoint of a run, or one that is cut off")


def sync_folder(folder: Path) -> None:
    """Flushes the folder itself: without it a power loss may take a rename back."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):  # some network file systems have nothing to flush there
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


def remove_leftovers(folder: Path) -> None:
    """Removes what a killed process left half-written beside the files of ``folder``."""
    for pattern in (".*.json.[0-9]*", ".*.csv.[0-9]*", ".*.npz.[0-9]*", ".probe.[0-9]*"):
        for path in folder.glob(pattern):
            path.unlink(missing_ok=True)
