"""What a person sees of a sweep: a live table on a terminal, plain lines elsewhere.

Everything comes from run.json files, as the supervisor last read them.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from cifar_lab.formats import clock
from cifar_lab.sweep.results import write_results
from cifar_lab.sweep.supervisor import SweepJob

_STYLE = {"running": "cyan", "finished": "green", "failed": "red", "diverged": "red"}
_ORDER = ("running", "failed", "diverged", "queued", "finished", "pruned", "interrupted")


class SweepView:
    """Shows a list of jobs that others change, and keeps results.csv current.

    Args:
        jobs: all of the sweep; may grow.
        sweep_dir: where results.csv goes.
        slots: how many jobs run at a time, for the time left.
        expected: how many jobs there will be.
    """

    def __init__(
        self,
        jobs: Sequence[SweepJob],
        *,
        sweep_dir: Path,
        slots: int,
        expected: int,
    ) -> None:
        self._jobs = jobs
        self._sweep_dir = sweep_dir
        self._slots = slots
        self._expected = expected
        self._console = Console(highlight=False)
        self._live: Live | None = None

    def __enter__(self) -> Self:
        write_results(self._sweep_dir, self._jobs)
        if self._console.is_terminal:
            self._live = Live(console=self._console, auto_refresh=False, transient=False)
            self._live.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._live is not None:
            self._live.update(self._table(), refresh=True)
            self._live.stop()
        write_results(self._sweep_dir, self._jobs)

    def started(self, job: SweepJob) -> None:
        """A line for the start, where no table shows it."""
        if self._live is None:
            again = f", attempt {job.attempts}" if job.attempts > 1 else ""
            self._line(f"start    {job.run_dir.name} on {job.slot}{again}")

    def ended(self, job: SweepJob) -> None:
        """A line for the ending, and results.csv anew."""
        write_results(self._sweep_dir, self._jobs)
        if self._live is not None:
            return
        accuracy = None if job.record is None else job.record.metrics.get("val/acc")
        parts = [
            f"{'again' if job.status == 'queued' else job.status:<8} {job.run_dir.name}",
            "" if accuracy is None else f"val/acc {accuracy:.4f}",
            f"{job.took_s:.1f} s",
            job.error or "",
            f"[{self._done()}/{self._expected}]{self._time_left()}",
        ]
        self._line("  ".join(part for part in parts if part))

    def tick(self) -> None:
        """Draws the table anew."""
        if self._live is not None:
            self._live.update(self._table(), refresh=True)

    def _line(self, text: str) -> None:
        self._console.print(Text(text), soft_wrap=True)

    def _done(self) -> int:
        return sum(job.status not in ("queued", "running") for job in self._jobs)

    def _time_left(self) -> str:
        took = [j.took_s for j in self._jobs if j.status == "finished" and not j.before]
        left = self._expected - self._done()
        if not took or not left:
            return ""
        return f" about {clock(sum(took) / len(took) * left / self._slots)} left"

    def _table(self) -> Table:
        counts = Counter(job.status for job in self._jobs)
        words = [f"{counts[status]} {status}" for status in _ORDER if counts[status]]
        table = Table(title=", ".join(words) + self._time_left(), title_justify="left", box=None)
        for column in ("job", "state", "epoch", "val/acc", "time", "left", "device"):
            table.add_column(column, no_wrap=True, overflow="ellipsis")
        rank: Callable[[SweepJob], int] = lambda job: _ORDER.index(job.status)  # noqa: E731
        room = max(3, self._console.height - 5)
        for job in sorted(self._jobs, key=rank)[:room]:
            table.add_row(*_row(job), style=_STYLE.get(job.status, ""))
        return table


def _row(job: SweepJob) -> tuple[str, ...]:
    if job.status == "queued":
        return (job.run_dir.name, "queued", "", "", "", "", "")
    epochs = 0 if job.record is None else job.record.epochs
    wanted = job.point.config["trainer"].get("max_epochs")
    accuracy = None if job.record is None else job.record.metrics.get("val/acc")
    return (
        job.run_dir.name,
        job.status + (" before" if job.before else ""),
        f"{epochs}/{wanted}" if wanted else str(epochs),
        "" if accuracy is None else f"{accuracy:.4f}",
        "" if job.before else clock(job.took_s),
        _left(job, epochs, wanted),
        job.slot,
    )


def _left(job: SweepJob, epochs: int, wanted: int | None) -> str:
    done = epochs - job.epochs_at_start
    if job.status != "running" or not wanted or done < 1:
        return ""
    return clock((time.monotonic() - job.started) / done * (wanted - epochs))
