"""run.json: the record of one run, typed. It is written and read here and nowhere else.

Always replaced whole: a reader sees the old record or the new one, never half of one.
"""

from __future__ import annotations

import math
import os
import shlex
import socket
import threading
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import (
    AwareDatetime,
    BaseModel,
    ConfigDict,
    Field,
    PlainSerializer,
    ValidationError,
    field_validator,
    model_validator,
)

from cifar_lab.records.credentials import hide_in_command, hide_in_override, masked
from cifar_lab.records.digest import flatten
from cifar_lab.records.environment import PACKAGES, process_started
from cifar_lab.records.files import check_file, write_atomically

SCHEMA = 1
FILE_NAME = "run.json"
HEARTBEAT_S = 15.0
# A record of 1,000 classes and as many metrics has some 100 kB.
_MOST_BYTES = 16 * 2**20
_MOST = 1e300  # of a number in a configuration: the mean of two is one as well

Status = Literal["running", "finished", "failed", "interrupted", "diverged", "pruned"]
# a job that ended so would end so again: it is never started anew
SETTLED: tuple[Status, ...] = ("finished", "diverged", "pruned")
# ISO 8601 in UTC, to the second
Time = Annotated[
    AwareDatetime,
    PlainSerializer(lambda t: t.astimezone(UTC).isoformat(timespec="seconds"), return_type=str),
]
Count = Annotated[int, Field(ge=0, le=10**15)]
# seconds, rates, megabytes: what is beyond was never measured, and its mean is no number
Measured = Annotated[float, Field(ge=0, le=1e15)]
# no number: 0 and below mean groups of processes to the system
Pid = Annotated[int, Field(ge=1, le=2**31)]
Digest = str
Channels = tuple[float, float, float]


class _Part(BaseModel):
    """What a later version adds is kept: reading and writing a record takes nothing from it."""

    model_config = ConfigDict(
        extra="allow", frozen=True, allow_inf_nan=False, populate_by_name=True
    )

    @model_validator(mode="before")
    @classmethod
    def _hold_no_secrets(cls, values: Any) -> Any:
        """Records of older versions held what was typed."""
        if not isinstance(values, dict):
            return values
        kept = masked(values)
        if isinstance(command := values.get("command"), str):
            kept["command"] = hide_in_command(command)
        if isinstance(overrides := values.get("overrides"), list | tuple):
            kept["overrides"] = tuple(
                hide_in_override(o) if isinstance(o, str) else o for o in overrides
            )
        return kept


class Git(_Part):
    """The checkout that a run's code came from; all None where it was installed.

    Attributes:
        diff: tells one set of uncommitted changes from another; None without any.
    """

    sha: str | None = None
    dirty: bool | None = None
    diff: str | None = None


class Start(_Part):
    """One start of a run, of which an interrupted one has several.

    Attributes:
        resumed_from_step: optimizer steps behind the checkpoint that it went on from; None: it
            went on, and an older version did not say from where.
    """

    started: Time | None = None
    command: str = ""
    resumed_from_step: Count | None = 0
    git: Git | None = None
    packages: dict[str, str] = {}
    device: str | None = None
    threads: int | None = None
    host: str = ""


class Data(_Part):
    """The images of a run.

    Attributes:
        digest: SHA-256 of decoded pixels and labels in a fixed order; "": none were read.
        official: they are those of the official archive.
        classes: their names, in the order of the labels.
        images: their number in ``train``, ``val`` and ``test``.
        duplicates: `cifar_lab.data.copies.count_copies`.
        image_size: (height, width) of each.
        mean: what is subtracted from each channel of an image in [0, 1].
        std: what each channel is divided by then. All three None: an older version wrote it.
    """

    name: str = ""
    layout: str = ""
    digest: Digest = ""
    official: bool = False
    classes: tuple[str, ...] = ()
    images: dict[str, Count] = {}
    duplicates: dict[str, Count] = {}
    image_size: tuple[Count, Count] | None = None
    mean: Channels | None = None
    std: Channels | None = None

    def holds(self, images: str | None) -> bool:
        """Whether they are the images that a start finds now.

        Args:
            images: the digest of these; None: the official ones, which are not on this machine.
        """
        return self.official if images is None else images == self.digest


class Init(_Part):
    """The weights that a run began with (``init_from``).

    Attributes:
        source: a path, or the name of torchvision's weights.
        sha256: of the file.
        taken: how many tensors.
        new: names of those that the network made itself: a head for other classes.
        unused: names of those that the network has no place for.
    """

    source: str
    sha256: Digest
    taken: Count
    new: tuple[str, ...] = ()
    unused: tuple[str, ...] = ()


class Timings(_Part):
    """Where the time went; what wasn't measured is None."""

    fit_s: Measured | None = None
    images_per_s: Measured | None = None
    step_ms: Measured | None = None
    data_wait_ms: Measured | None = None
    start_to_first_step_s: Measured | None = None
    peak_memory_mb: Measured | None = None


class RunRecord(_Part):
    """What run.json says of a run.

    Attributes:
        error: why it ended other than well, in one line.
        config: resolved; ``config_digest`` is that of what decides a result.
        seed: of the run; None where it ended before it had one.
        tested: ``best`` or ``last``; None before the test.
        tested_because: why those weights.
        best_epoch: the tested one, from 1; None where none was selected.
        steps_planned: optimizer steps that the learning rates are laid out for.
        departures: what ran other than configured, a line each.
        metrics: by name, e.g. ``test/acc`` (fractions in [0, 1]); None: not a number.
        parameters: of the network, frozen ones included.
        init: the weights it began with; None: its own, drawn with the seed.
        starts: all of them, the first one first.
        checkpoints: paths relative to the run folder.
    """

    schema_version: Literal[1] = Field(default=1, alias="schema")
    status: Status
    host: str = ""
    pid: Pid | None = None
    pid_started: int | None = None
    started: Time | None = None
    heartbeat: Time | None = None
    ended: Time | None = None
    error: str | None = None
    command: str = ""
    overrides: tuple[str, ...] = ()
    config_digest: Digest = ""
    config: dict[str, Any] | None = None
    seed: int | None = None
    threads: int | None = None
    resumed: bool = False
    tested: Literal["best", "last"] | None = None
    tested_because: str | None = None
    best_epoch: Count | None = None
    best_step: Count | None = None
    steps_planned: Count | None = None
    images_per_step: Count | None = None
    departures: tuple[str, ...] = ()
    git: Git | None = None
    packages: dict[str, str] = {}
    device: str | None = None
    starts: tuple[Start, ...] = ()
    data: Data = Data()
    parameters: Count | None = None
    init: Init | None = None
    frozen_parameters: Count = 0
    epochs: Count = 0
    steps: Count = 0
    timings: Timings = Timings()
    metrics: dict[str, float | None] = {}
    checkpoints: tuple[str, ...] = ()

    @field_validator("data", mode="before")
    @classmethod
    def _none_were_read(cls, data: Any) -> Any:
        return Data() if data is None else data

    @field_validator("config")
    @classmethod
    def _numbers_are_finite(cls, config: dict[str, Any] | None) -> Any:
        for key, value in flatten(config or {}):
            for number in value if isinstance(value, list) else [value]:
                if isinstance(number, int | float) and not abs(number) <= _MOST:
                    raise ValueError(f"{key}: must be a finite number")
        return config

    @field_validator("metrics")
    @classmethod
    def _accuracies_are_fractions(cls, metrics: dict[str, float | None]) -> Any:
        for name, value in metrics.items():
            if name.endswith("/acc") and value is not None and not 0 <= value <= 1:
                raise ValueError(f"{name}={value}: must lie in 0..1")
        return metrics

    @classmethod
    def read(cls, run_dir: Path) -> Self:
        """The record below ``run_dir``; a ``running`` whose process is gone is ``interrupted``.

        Raises:
            OSError: there is none. ValueError: it can't be read as one; says why in one line.
        """
        path = run_dir / FILE_NAME
        check_file(path, most=_MOST_BYTES)
        text = path.read_text(encoding="utf-8")
        try:
            record = cls.model_validate_json(text)
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"]))
            raise ValueError(f"{where or FILE_NAME}: {first['msg']}") from error
        if record.status == "running" and not record.is_alive():
            return record.model_copy(update={"status": "interrupted"})
        return record

    @property
    def cut_short(self) -> bool:
        """Whether it ended well, and before the last step that was laid out for it."""
        planned = self.steps_planned
        return self.status == "finished" and planned is not None and self.steps < planned

    @property
    def last_start(self) -> Start:
        """The last one, as the record itself tells of it."""
        shared = {name: getattr(self, name) for name in Start.model_fields if hasattr(self, name)}
        return Start(**shared, resumed_from_step=None if self.resumed else 0)

    @property
    def all_starts(self) -> tuple[Start, ...]:
        """Every start that the run has had, the first one first.

        A record of an older version tells of its last start alone, and not of the step it went on
        from; one that ended before it began (built wrong, or killed at once) of none.
        """
        return self.starts or ((self.last_start,) if self.packages else ())

    def with_fields(self, **fields: Any) -> Self:
        """The record with other values for some fields, each checked as when it is read."""
        return self.model_validate({**dict(self), **fields})

    def write(self, run_dir: Path) -> None:
        """Replaces run.json; raises OSError and leaves the old one as it was."""
        text = self.model_dump_json(by_alias=True, indent=2)
        write_atomically(run_dir / FILE_NAME, text + "\n")

    def is_alive(self) -> bool:
        """Whether the process that wrote the record still goes on."""
        if self.host != socket.gethostname():
            # another machine's processes can't be seen from here; its heartbeat can
            if self.heartbeat is None:
                return False
            return (datetime.now(UTC) - self.heartbeat).total_seconds() < 10 * HEARTBEAT_S
        if self.pid is None:
            return False
        try:
            os.kill(self.pid, 0)
        except (ProcessLookupError, OverflowError):
            return False
        except PermissionError:
            pass  # it lives, under another user
        # the number may have been given to another process since
        return self.pid_started == process_started(self.pid)


def record_of(run_dir: Path) -> RunRecord | None:
    """The record below ``run_dir``, or None while there is none that can be read."""
    try:
        return RunRecord.read(run_dir)
    except (OSError, ValueError):
        return None


class RecordFile:
    """The record of a run that goes on, kept true on disk.

    A thread refreshes ``heartbeat`` every 15 seconds; `update` merges fields and writes at once.
    A write that fails (a full disk) does not end the run: `update` returns False.

    Attributes:
        record: as it stands.
        refused: why the last write that failed did.
    """

    def __init__(self, run_dir: Path, record: RunRecord) -> None:
        self._run_dir = run_dir
        self._lock = threading.Lock()
        self._closed = threading.Event()
        self.refused: OSError | None = None
        pid = os.getpid()
        self.record = record.with_fields(
            host=socket.gethostname(), pid=pid, pid_started=process_started(pid), heartbeat=now()
        )
        self.record.write(run_dir)  # a run folder that can't hold its record is refused: OSError
        self._thread = threading.Thread(target=self._beat, name="heartbeat", daemon=True)
        self._thread.start()

    def update(self, **fields: Any) -> bool:
        """Sets fields, adds to ``metrics``, and writes; False if the disk refused."""
        with self._lock:
            if "metrics" in fields:
                fields["metrics"] = {**self.record.metrics, **_finite(fields["metrics"])}
            self.record = self.record.with_fields(**fields, heartbeat=now())
            try:
                self.record.write(self._run_dir)
            except OSError as error:
                self.refused = error
                return False
        return True

    def close(self, status: Status, error: str | None = None) -> bool:
        """Writes the ending and stops the heartbeat; False if the disk refused."""
        self._closed.set()
        return self.update(status=status, error=error, ended=now())

    def _beat(self) -> None:
        while not self._closed.wait(HEARTBEAT_S):
            self.update()


def close_for(run_dir: Path, *, status: Status, error: str | None, **known: Any) -> None:
    """Says in run.json how a run ended that could not say it itself.

    What an earlier attempt measured stays.

    Args:
        run_dir: of the run.
        status: the ending.
        error: why, in one line.
        known: fields that are known without having run it.
    """
    record = record_of(run_dir) or RunRecord(status=status, started=now())
    ending = {"status": status, "error": error, "ended": now(), "heartbeat": now()}
    record.with_fields(**known, **ending).write(run_dir)


def now() -> datetime:
    """The time in UTC, to the second."""
    return datetime.now(UTC).replace(microsecond=0)


def command_line(arguments: Sequence[str]) -> str:
    """The command that starts this run again, quoted for a shell; `MASK` for secrets in it."""
    return shlex.join(["python", "-m", "cifar_lab", *map(hide_in_override, arguments)])


def _finite(metrics: Mapping[str, float | None]) -> dict[str, float | None]:
    # JSON has no NaN: a metric that isn't a number is null there, and the error field says why
    return {k: v if v is not None and math.isfinite(v) else None for k, v in metrics.items()}


# --- who made a run -------------------------------------------------------------------------------

# The packages that a number can depend on; the others compose, draw and display.
DECIDING_PACKAGES = ("cifar-lab", "torch", "torchvision", "lightning", "torchmetrics", "numpy")


def made_otherwise(starts: Sequence[Start], here: Start) -> str:
    """What a run was made with that is different here; "" where nothing is.

    Args:
        starts: of the run. Those count whose work its weights hold: none before the last that
            began at step 0.
        here: what it has of ``git``, ``packages``, ``device`` and ``threads`` is compared.

    Returns:
        e.g. ``code 1f2e3d4 (here 5a6b7c8), torch 2.14.1 (here 2.15.0)``.
    """
    begun = [i for i, start in enumerate(starts) if start.resumed_from_step == 0]
    before = [_makers(start) for start in starts[begun[-1] if begun else 0 :]]
    parts = []
    for name, value in _makers(here).items():
        others = dict.fromkeys(m[name] for m in before if m.get(name, value) != value)
        if others:
            parts.append(f"{name} {', '.join(others)} (here {value})")
    return ", ".join(parts)


def _makers(start: Start) -> dict[str, str]:
    makers = {} if start.git is None else {"code": code_version(start.git)}
    own = sorted(start.packages.keys() - set(PACKAGES))
    makers |= {p: start.packages[p] for p in (*DECIDING_PACKAGES, *own) if p in start.packages}
    if start.device:
        makers["device"] = start.device
    if start.threads:  # the last bits of a step depend on their number
        makers["threads"] = str(start.threads)
    return makers


def code_version(git: Git) -> str:
    """``1f2e3d4``, or ``1f2e3d4+5a6b7c8d9e0f`` with uncommitted changes."""
    if not git.sha:
        return "of no commit"
    # an older version's record doesn't say which changes these were: they are none of here
    changes = f"+{git.diff or '?'}" if git.dirty else ""
    return f"{git.sha[:7]}{changes}"
