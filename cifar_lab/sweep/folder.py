"""A sweep's folder: which jobs it holds, who works in it, and what all of them agree on."""

from __future__ import annotations

import json
import re
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

from cifar_lab.config.compose import check_named
from cifar_lab.config.overrides import check_folder
from cifar_lab.errors import InputError
from cifar_lab.records.digest import config_digest
from cifar_lab.records.files import write_atomically
from cifar_lab.records.record import SCHEMA, RunRecord, record_of

_DEFAULT = "outputs/sweeps"
# Workers end within a second of their parent; what still runs then belongs to someone else.
_PATIENCE_S = 5.0


def resolve(configured: str) -> Path:
    """The sweep's folder, absolute; ``newest`` is the newest below ``outputs/sweeps``.

    Raises:
        InputError: ``newest``, and there is none.
    """
    if configured != "newest":
        named = check_named("hydra.sweep.dir", configured)
        return check_folder("hydra.sweep.dir", named.absolute())
    dated = re.compile(r"\d{4}-\d\d-\d\d/\d\d-\d\d-\d\d-")
    root = Path(_DEFAULT).absolute()
    names = sorted(
        name for path in root.glob("*/*/") if dated.match(name := path.relative_to(root).as_posix())
    )
    if not names:
        raise InputError(
            f"hydra.sweep.dir=newest: {root} holds no sweep; leave it out for a new one"
        )
    return root / names[-1]


class SweepFolder:
    """The folder of one sweep, new or taken up again."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Makes the folder and keeps other sweeps out; the system drops the lock with the process.

        Raises:
            InputError: another sweep works in it, or it can't be written.
        """
        from filelock import FileLock, Timeout

        try:
            self.path.mkdir(parents=True, exist_ok=True)
            lock = FileLock(self.path / ".lock")
            lock.acquire(timeout=0)
        except Timeout as error:
            raise InputError(
                f"hydra.sweep.dir={self.path}: another sweep runs in it; wait for it, or choose "
                "another folder"
            ) from error
        except OSError as error:
            raise InputError(
                f"hydra.sweep.dir={self.path}: can't be written ({error.strerror}); choose a "
                "folder that can"
            ) from error
        try:
            yield
        finally:
            lock.release()

    def threads(self) -> int | None:
        """The CPU threads of each job as the first start divided them; None in a new folder.

        They are part of a run's digest: were they divided anew, nothing would be found again.
        """
        try:
            value = json.loads((self.path / "sweep.json").read_text(encoding="utf-8"))["threads"]
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
            return None
        return value if type(value) is int and 1 <= value <= 2**16 else None

    def remember(self, **fields: Any) -> None:
        """Writes sweep.json, unless it is there."""
        path = self.path / "sweep.json"
        if not path.exists():
            write_atomically(path, json.dumps({"schema": SCHEMA, **fields}, indent=2) + "\n")

    def records(self, digest: str) -> list[tuple[Path, RunRecord]]:
        """Folder and record of what had run with a configuration of this digest, by name.

        On whichever images, and under whichever name: older versions gave others.
        """
        return [(path, record) for path in self._by_digest[digest] if (record := record_of(path))]

    def find(self, digest: str, images: str, suffix: str) -> tuple[Path, RunRecord | None] | None:
        """The job's folder and record of an earlier start, whatever was swept then.

        Args:
            digest: of its configuration.
            images: the digest of those that it would run on now.
            suffix: the end of its folder's name.
        """
        for path, record in self.records(digest):
            if record.data.digest == images:
                return path, record
        for path in sorted(self.path.glob(f"*{suffix}/")):
            named = record_of(path)
            # what ended before it had read any images is known by its name
            if named is None or (digest_of(named) == digest and named.data.digest in (images, "")):
                return path, named
        return None

    @cached_property
    def _by_digest(self) -> defaultdict[str, list[Path]]:
        # read once: a search asks for job after job, and a folder may hold a thousand of them
        found = defaultdict(list)
        for path in sorted(self.path.glob("*/")):
            if (record := record_of(path)) is not None:
                found[digest_of(record)].append(path)
        return found


def digest_of(record: RunRecord) -> str:
    """Of the record's configuration; an older version's counted keys that decide no result."""
    return config_digest(record.config) if record.config else record.config_digest


def wait_until_left(run_dir: Path) -> None:
    """Waits for a worker whose supervisor has just been killed; raises InputError if it stays."""
    deadline = time.monotonic() + _PATIENCE_S
    while (record := record_of(run_dir)) is not None and record.status == "running":
        if time.monotonic() > deadline:
            raise InputError(
                f"hydra.sweep.dir={run_dir.parent}: process {record.pid} on "
                f"{record.host} is running in {run_dir.name}; wait for it, or choose "
                "another folder"
            )
        time.sleep(0.05)
