"""Keeps every slot busy with one process, and brings each job to an ending that is on record."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing import connection
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Protocol

from cifar_lab import signals
from cifar_lab.errors import memory_ran_out
from cifar_lab.records.record import SETTLED, RunRecord, Status, close_for, record_of
from cifar_lab.sweep import process
from cifar_lab.sweep.points import Point
from cifar_lab.sweep.tasks import RUN_JOB, Task

_TICK_S = 0.2
# What a job may take to save its checkpoint after SIGTERM.
_GRACE_S = 30.0


@dataclass(frozen=True)
class Slot:
    """A place for one job at a time: a share of a device.

    Attributes:
        name: for the table, e.g. ``cuda:1``.
        environment: what its processes get beside the sweep's own.
    """

    name: str
    environment: Mapping[str, str]


@dataclass
class SweepJob:
    """One job and how far it is.

    Attributes:
        status: ``queued``, or as in the record.
        before: ended in an earlier start of the sweep.
        record: run.json as last read; None before there is one.
    """

    point: Point
    run_dir: Path
    status: str = "queued"
    before: bool = False
    record: RunRecord | None = None
    error: str | None = None
    attempts: int = 0
    slot: str = ""
    started: float = 0.0  # time.monotonic
    took_s: float = 0.0
    epochs_at_start: int = 0


class Source(Protocol):
    """Where jobs come from: a list, or a search that asks for them one by one."""

    def next(self) -> SweepJob | None:
        """The next job to start; None when there is none at this moment."""

    def prunes(self, job: SweepJob) -> bool:
        """Whether a running job, its record just read, is not worth its time."""

    def ended(self, job: SweepJob) -> None:
        """Called once when a job has ended for good."""


class View(Protocol):
    """What a person sees."""

    def started(self, job: SweepJob) -> None:
        """A job got its process."""

    def ended(self, job: SweepJob) -> None:
        """A job has ended, or waits for its next attempt (status ``queued``)."""

    def tick(self) -> None:
        """Called a few times a second."""


@dataclass
class _Running:
    job: SweepJob
    slot: Slot
    process: ForkServerProcess
    stop: str | None = None  # why it was told to stop
    kill_at: float | None = None


class Supervisor:
    """Runs what a source gives in slots; see `run`.

    Args:
        slots: as many jobs run at a time.
        source: of jobs.
        view: is told of what happens.
        retries: further attempts after a lost process or when memory ran out.
        job_timeout_s: a job that takes longer is stopped; None: never.
        fail_fast: stop all jobs at the first failure.
    """

    def __init__(
        self,
        *,
        slots: Sequence[Slot],
        source: Source,
        view: View,
        retries: int,
        job_timeout_s: float | None,
        fail_fast: bool,
    ) -> None:
        self._free = list(slots)
        self._source = source
        self._view = view
        self._retries = retries
        self._timeout_s = job_timeout_s
        self._fail_fast = fail_fast
        self._running: list[_Running] = []
        self._again: list[SweepJob] = []
        self._stopping: str | None = None

    def run(self) -> None:
        """Returns when every job has ended, or after the first failure under ``fail_fast``.

        Ctrl-C and SIGTERM stop the jobs in order; a second one kills them.

        Raises:
            Interrupted: after the jobs have ended.
        """
        try:
            with signals.deferred():
                while self._step():
                    self._view.tick()
        finally:
            for running in self._running:  # after a second signal, or an error of our own
                process.kill(running.process)

    def _step(self) -> bool:
        if signals.pending():
            self._stop_all("interrupted")
        while self._free and self._stopping is None:
            job = self._again.pop(0) if self._again else self._source.next()
            if job is None:
                break
            self._start(job, self._free.pop(0))
        if not self._running:
            return False
        connection.wait([running.process.sentinel for running in self._running], _TICK_S)
        for running in list(self._running):
            if running.process.exitcode is None:
                self._watch(running)
            else:
                self._running.remove(running)
                self._free.append(running.slot)
                self._conclude(running)
        return True

    def _start(self, job: SweepJob, slot: Slot) -> None:
        job.run_dir.mkdir(parents=True, exist_ok=True)
        job.attempts += 1
        job.status, job.slot, job.started = "running", slot.name, time.monotonic()
        before = record_of(job.run_dir)
        job.epochs_at_start = 0 if before is None else before.epochs
        point = job.point
        on_gpus = "CUDA_VISIBLE_DEVICES" in slot.environment
        task = Task(point.cfg, point.overrides, job.run_dir, point.images, on_gpus)
        worker = process.start(
            RUN_JOB,
            task,
            environment={**os.environ, **slot.environment},
            output=job.run_dir / "console.log",
            name=job.run_dir.name,
        )
        self._running.append(_Running(job, slot, worker))
        self._view.started(job)

    def _watch(self, running: _Running) -> None:
        job, now = running.job, time.monotonic()
        if (record := record_of(job.run_dir)) is not None:
            job.record = record
        job.took_s = now - job.started
        if running.stop is None:
            if self._timeout_s is not None and job.took_s > self._timeout_s:
                self._stop(running, "timeout")
            elif job.record and job.record.status == "running" and self._source.prunes(job):
                self._stop(running, "pruned")
        elif running.kill_at is not None and now > running.kill_at:
            process.kill(running.process)
            running.kill_at = None

    def _stop_all(self, why: str) -> None:
        if self._stopping is None:
            self._stopping = why
            for running in self._running:
                if running.stop is None:
                    self._stop(running, why)

    def _stop(self, running: _Running, why: str) -> None:
        running.stop = why
        # a hang takes no checkpoint: what didn't move for job_timeout gets less time
        running.kill_at = time.monotonic() + (5.0 if why == "timeout" else _GRACE_S)
        with suppress(ProcessLookupError):
            os.kill(running.process.pid or 0, signal.SIGTERM)

    # --- endings ---------------------------------------------------------------------------------

    def _conclude(self, running: _Running) -> None:
        job, code = running.job, running.process.exitcode
        assert code is not None
        job.took_s = time.monotonic() - job.started
        job.record = record_of(job.run_dir)
        ending, error = "lost", None
        if job.record is not None:
            ending, error = job.record.status, job.record.error
        if job.record and ending not in SETTLED and job.record.pid != running.process.pid:
            ending = "lost"  # what lies there is an earlier attempt's
        if ending in ("interrupted", "running", "lost"):  # it could not say how it ended
            process.kill(running.process)  # ranks and loaders that it may have left behind
        if ending in SETTLED:
            job.status, job.error = ending, error
        elif running.stop in ("interrupted", "fail_fast") and ending != "failed":
            job.status, job.error = "interrupted", None
        elif running.stop == "pruned":
            self._settle(job, "pruned", None)
        elif running.stop == "timeout":
            self._settle(
                job, "failed", f"sweep.job_timeout={self._timeout_s}: took longer, was stopped"
            )
        elif ending == "failed":
            job.status, job.error = "failed", str(error)
            if self._stopping is None and memory_ran_out(job.error) and self._may_retry(job):
                job.status = "queued"
        elif self._stopping is None and self._may_retry(job):
            job.status, job.error = "queued", _how_it_died(code)
        else:
            self._settle(job, "failed", _how_it_died(code))
        running.process.close()
        self._view.ended(job)
        if job.status == "queued":
            self._again.append(job)
            return
        self._source.ended(job)
        if self._fail_fast and job.status in ("failed", "diverged"):
            self._stop_all("fail_fast")

    def _may_retry(self, job: SweepJob) -> bool:
        return job.attempts <= self._retries

    def _settle(self, job: SweepJob, status: Status, error: str | None) -> None:
        job.status, job.error = status, error
        close_for(job.run_dir, status=status, error=error, **job.point.known)
        job.record = record_of(job.run_dir)


def _how_it_died(code: int) -> str:
    if code == -signal.SIGKILL:
        return "killed by SIGKILL, as the system does when memory runs out"
    if code < 0:
        return f"killed by {signal.Signals(-code).name}"
    if code == 255:
        return "its process was lost"
    if code > 128:
        return f"stopped from outside by {signal.Signals(code - 128).name}"
    return f"its process ended with status {code}"
