"""Tasks one after the other within their time; what was found is on disk after each of them."""

from __future__ import annotations

import json
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from benchmarks import child
from benchmarks.child import Ended
from cifar_lab.errors import InputError
from cifar_lab.records.files import write_atomically
from cifar_lab.records.record import now

SCHEMA = 1
FILE_NAME = "gpu_day.json"
# A task with less time than this left would only be cut off.
LEAST_S = 5.0
_WORDS = 4000  # characters of what a task that failed had said last

Row = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Task:
    """One process.

    Attributes:
        name: within its block.
        command: given an empty folder, which is also where it runs.
        read: rows from its end and that folder; a task that was cut off is read too.
        limit_s: seconds after which it is cut off.
        cwd: where it runs instead.
        env: added to the environment.
    """

    name: str
    command: Callable[[Path], Sequence[str] | str]
    read: Callable[[Ended, Path], list[Row]]
    limit_s: float = 600.0
    cwd: Path | None = None
    env: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Block:
    """Tasks with a common budget; what they leave of it is the next block's.

    Attributes:
        budget_s: seconds.
    """

    name: str
    title: str
    budget_s: float
    tasks: Sequence[Task]


@dataclass(kw_only=True)
class Result:
    """What came of a task.

    Attributes:
        status: ``cut``: its time was over, ``rows`` hold what it had told by then.
        seconds: from its start to its end.
        said: its last words, where it wasn't done.
    """

    status: Literal["done", "failed", "cut"]
    seconds: float
    started: str
    rows: list[Row]
    said: str = ""


class Day:
    """Runs blocks, and goes on where an earlier call with the same file was cut off.

    Args:
        folder: for the file, and what tasks leave there.
        described: hardware, versions, data.
        budget_s: seconds for all of it.
    """

    def __init__(self, folder: Path, described: Mapping[str, Any], budget_s: float) -> None:
        self._path = folder / FILE_NAME
        self._ends = time.monotonic() + budget_s
        self.state: dict[str, Any] = {"schema": SCHEMA, "calls": [], "results": {}}
        if self._path.exists():
            self.state = read(self._path)
        self.state["calls"].append({"started": now().isoformat(), **described})

    def run(self, blocks: Sequence[Block]) -> None:
        """All blocks in order; done and failed tasks of an earlier call aren't repeated."""
        block_ends = time.monotonic()
        for block in blocks:
            block_ends = min(block_ends + block.budget_s, self._ends)
            results = self.state["results"].setdefault(block.name, {})
            for task in block.tasks:
                if results.get(task.name, {}).get("status") in ("done", "failed"):
                    continue
                left = block_ends - time.monotonic()
                if left < LEAST_S:
                    print(f"{block.name}: {task.name}: not reached", flush=True)
                    continue
                result = _run(task, min(left, task.limit_s))
                results[task.name] = asdict(result)
                self._write()
                print(f"{block.name}: {task.name}: {told(result)}", flush=True)

    def _write(self) -> None:
        self.state["calls"][-1]["ended"] = now().isoformat()
        write_atomically(self._path, json.dumps(self.state, indent=1))


def read(path: Path) -> dict[str, Any]:
    """What an earlier call found.

    Raises:
        InputError: it is no such file.
    """
    try:
        state: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        if state["schema"] != SCHEMA:
            raise ValueError(f"schema {state['schema']}")
        state["calls"], state["results"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path}: can't be read as {FILE_NAME} ({error})") from error
    return state


def told(result: Result) -> str:
    """One line on a task's end."""
    last = result.said.strip().splitlines()[-1:] if result.status == "failed" else []
    return " ".join([f"{result.status}, {result.seconds:.1f} s, {len(result.rows)} rows", *last])


def _run(task: Task, timeout_s: float) -> Result:
    started = now().isoformat()
    with tempfile.TemporaryDirectory(prefix="gpu_day_", ignore_cleanup_errors=True) as own:
        folder = Path(own)
        command = task.command(folder)
        try:
            ended = child.run(
                command, cwd=task.cwd or folder, timeout_s=timeout_s, env=dict(task.env)
            )
        except (OSError, subprocess.SubprocessError) as error:
            return Result(status="failed", seconds=0.0, started=started, rows=[], said=str(error))
        words = (ended.output + ended.errors)[-_WORDS:]
        try:
            rows = task.read(ended, folder)
        except (OSError, ValueError, KeyError, TypeError) as error:
            rows, words = [], f"{words}\ncan't be read ({type(error).__name__}: {error})"
            if not ended.timed_out:
                return Result(
                    status="failed", seconds=ended.wall_s, started=started, rows=[], said=words
                )
    status: Literal["done", "failed", "cut"] = (
        "cut" if ended.timed_out else "failed" if ended.status else "done"
    )
    said = "" if status == "done" else words
    return Result(status=status, seconds=ended.wall_s, started=started, rows=rows, said=said)


def driver() -> str | None:
    """Version of NVIDIA's driver; None where nvidia-smi doesn't tell."""
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip().splitlines()[0] if done.returncode == 0 and done.stdout else None
