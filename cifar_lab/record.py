"""run.json: the only thing that runs write and readers read.

Always replaced whole: a reader sees the old record or the new one, never half of one.
"""

from __future__ import annotations

import json
import math
import os
import socket
import subprocess
import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from functools import lru_cache
from importlib import metadata
from pathlib import Path
from typing import Any

SCHEMA = 1
FILE_NAME = "run.json"
HEARTBEAT_S = 15.0
PACKAGES = (
    "cifar-lab",
    "torch",
    "torchvision",
    "lightning",
    "hydra-core",
    "omegaconf",
    "torchmetrics",
    "tensorboard",
    "numpy",
)


def now() -> str:
    """The time in UTC, ISO 8601, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def write_atomically(path: Path, content: str | bytes) -> None:
    """Writes beside, flushes to the disk, renames; raises OSError and leaves ``path`` as it was."""
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    data = content.encode() if isinstance(content, str) else content
    try:
        with open(beside, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, path)
    except BaseException:
        # a full disk must be told of as such, whatever becomes of the half-written file
        with suppress(OSError):
            beside.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


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


def _plain(value: Any) -> Any:
    # JSON has no NaN: a metric that isn't a number is null there, and the error field says why
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value


class Record:
    """The record of one run, kept true on disk while the run lives.

    A thread refreshes ``heartbeat`` every 15 seconds; `update` merges fields and writes at once.
    A write that fails (a full disk) does not end the run: `update` returns False.
    """

    def __init__(self, run_dir: Path, fields: Mapping[str, Any]) -> None:
        self.path = run_dir / FILE_NAME
        self._lock = threading.Lock()
        self._closed = threading.Event()
        self.refused: OSError | None = None  # why the last write that failed did
        self._fields: dict[str, Any] = {
            "schema": SCHEMA,
            "status": "running",
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "pid_started": process_started(os.getpid()),
            "started": now(),
            "heartbeat": now(),
            "error": None,
            **fields,
        }
        self._write()  # a run folder that can't hold its record is refused: OSError
        self._thread = threading.Thread(target=self._beat, name="heartbeat", daemon=True)
        self._thread.start()

    @property
    def fields(self) -> dict[str, Any]:
        """A copy of the record as it stands."""
        with self._lock:
            return dict(self._fields)

    def update(self, **fields: Any) -> bool:
        """Merges ``fields`` (dictionaries one level deep) and writes; False if the disk refused."""
        with self._lock:
            for key, value in fields.items():
                old = self._fields.get(key)
                if isinstance(old, dict) and isinstance(value, Mapping):
                    value = {**old, **value}
                self._fields[key] = value
            self._fields["heartbeat"] = now()
            try:
                self._write()
            except OSError as error:
                self.refused = error
                return False
        return True

    def close(self, status: str, error: str | None = None) -> bool:
        """Writes the ending and stops the heartbeat; False if the disk refused."""
        self._closed.set()
        return self.update(status=status, error=error, ended=now())

    def _write(self) -> None:
        write_atomically(self.path, json.dumps(_plain(self._fields), indent=2) + "\n")

    def _beat(self) -> None:
        while not self._closed.wait(HEARTBEAT_S):
            self.update()


def read_record(run_dir: Path) -> dict[str, Any]:
    """The record below ``run_dir``; a ``running`` whose process is gone reads as ``interrupted``.

    Raises:
        OSError: there is no run.json. ValueError: it is not a record of this schema.
    """
    fields = json.loads((run_dir / FILE_NAME).read_text(encoding="utf-8"))
    if not isinstance(fields, dict) or fields.get("schema") != SCHEMA:
        raise ValueError(f"{run_dir / FILE_NAME}: not a record of schema {SCHEMA}")
    if fields.get("status") == "running" and not _alive(fields):
        fields["status"] = "interrupted"
    return fields


def _alive(fields: Mapping[str, Any]) -> bool:
    if fields.get("host") != socket.gethostname():
        # another machine's processes can't be seen from here; its heartbeat can
        try:
            age = datetime.now(UTC) - datetime.fromisoformat(str(fields.get("heartbeat")))
        except ValueError:
            return False
        return age.total_seconds() < 10 * HEARTBEAT_S
    pid = fields.get("pid")
    if not isinstance(pid, int):
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass  # it lives, under another user
    # the number may have been given to another process since
    return fields.get("pid_started") == process_started(pid)


def process_started(pid: int) -> int | None:
    """When process ``pid`` started, in clock ticks since boot; None where /proc doesn't say."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    # the command (field 2) is in parentheses and may hold spaces; starttime is field 22
    return int(stat.rpartition(")")[2].split()[19])


def package_versions() -> dict[str, str]:
    """Installed versions of the packages a result depends on."""
    versions = {}
    for name in PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return versions


@lru_cache
def git_state(folder: Path) -> Mapping[str, Any]:
    """``{"sha", "dirty"}`` of the checkout that holds ``folder``; both None where none does.

    As it was when this process first asked: what is edited later is not what runs in it.
    """

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(folder), *arguments]
        return subprocess.run(
            command, capture_output=True, text=True, timeout=10, check=True
        ).stdout.strip()

    try:
        tracked = git("ls-files", "--error-unmatch", "errors.py")
        return {"sha": git("rev-parse", "HEAD"), "dirty": bool(tracked and git("status", "-s"))}
    except (OSError, subprocess.SubprocessError):
        return {"sha": None, "dirty": None}


def command_line(arguments: Sequence[str]) -> str:
    """The command that starts this run again, quoted for a shell."""
    import shlex

    return shlex.join(["python", "-m", "cifar_lab", *arguments])
