"""run.json: the only thing that runs write and readers read.

Always replaced whole: a reader sees the old record or the new one, never half of one.
"""

from __future__ import annotations

import json
import math
import os
import socket
import threading
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from cifar_lab.records.environment import process_started
from cifar_lab.records.files import write_atomically

SCHEMA = 1
FILE_NAME = "run.json"
HEARTBEAT_S = 15.0
# Those of them that a number can depend on; the others compose, draw and display.
_DECIDING = ("cifar-lab", "torch", "torchvision", "lightning", "torchmetrics", "numpy")


def now() -> str:
    """The time in UTC, ISO 8601, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


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


# --- who made a run -------------------------------------------------------------------------------


def starts_of(record: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Every start that the run in a folder has had, the first one first.

    A record of an older version tells of its last start alone, and not of the step it went on from.
    """
    if (starts := record.get("starts")) is not None:
        return list(starts)
    if "packages" not in record:  # it ended before it began: built wrong, or killed at once
        return []
    names = ("started", "command", "git", "packages", "device", "threads", "host")
    step = None if record.get("resumed") else 0
    return [{**{name: record.get(name) for name in names}, "resumed_from_step": step}]


def made_otherwise(record: Mapping[str, Any], here: Mapping[str, Any]) -> str:
    """What a run was made with that is different here; "" where nothing is.

    Args:
        record: of the run. Of its starts those count whose work its weights hold: none before the
            last that began at step 0.
        here: any of ``git``, ``packages``, ``device`` and ``threads``, as a start has them.

    Returns:
        e.g. ``code 1f2e3d4 (here 5a6b7c8), torch 2.14.1 (here 2.15.0)``.
    """
    starts = starts_of(record)
    begun = [i for i, start in enumerate(starts) if start.get("resumed_from_step") == 0]
    before = [_makers(start) for start in starts[begun[-1] if begun else 0 :]]
    parts = []
    for name, value in _makers(here).items():
        others = dict.fromkeys(m[name] for m in before if m.get(name, value) != value)
        if others:
            parts.append(f"{name} {', '.join(others)} (here {value})")
    return ", ".join(parts)


def _makers(start: Mapping[str, Any]) -> dict[str, str]:
    makers = {}
    if (git := start.get("git")) is not None:
        makers["code"] = _code(git)
    packages = start.get("packages") or {}
    makers |= {name: str(packages[name]) for name in _DECIDING if name in packages}
    # the last bits of a step depend on the number of threads
    makers |= {name: str(start[name]) for name in ("device", "threads") if start.get(name)}
    return makers


def _code(git: Mapping[str, Any]) -> str:
    if not git.get("sha"):
        return "of no commit"
    # an older version's record doesn't say which changes these were: they are none of here
    changes = f"+{git.get('diff') or '?'}" if git.get("dirty") else ""
    return f"{git['sha'][:7]}{changes}"


def command_line(arguments: Sequence[str]) -> str:
    """The command that starts this run again, quoted for a shell."""
    import shlex

    return shlex.join(["python", "-m", "cifar_lab", *arguments])
