"""Two lines at the bottom of a terminal: a bar, and below it the figures. Nothing elsewhere."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterable
from time import perf_counter

from rich.console import Console, RenderableType
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.text import Text

REFRESH_S = 0.5  # at most two drawings per second: one takes about 0.5 ms of the training thread


class _TwoLines(Progress):
    figures = ""

    def get_renderables(self) -> Iterable[RenderableType]:
        yield from super().get_renderables()
        yield Text(self.figures, style="cyan", no_wrap=True, overflow="ellipsis")


class Display:
    """A bar that is drawn when it is told to, in the caller's thread.

    Attributes:
        due: the `perf_counter` from which on a drawing is wanted; infinite while closed.

    Args:
        console: where to draw; None is standard error, or nowhere when that is no terminal.
    """

    def __init__(self, console: Console | None = None) -> None:
        if console is None and sys.stderr.isatty():
            # not rich's own judgement: FORCE_COLOR makes it take any file for a terminal
            console = Console(stderr=True)
        drawable = console is not None and console.is_terminal and not console.is_dumb_terminal
        self._console = console if drawable else None
        self._lines: _TwoLines | None = None
        self.enabled = True
        self.due = math.inf

    @property
    def is_open(self) -> bool:
        """Whether it is on the screen."""
        return self._lines is not None

    def open(self, name: str, total: float | None) -> None:
        """Draws an empty bar; does nothing without a terminal, or when it is open already.

        Args:
            name: before the bar.
            total: batches; None: nobody knows.
        """
        if self._console is None or not self.enabled or self._lines is not None:
            return
        self._lines = _TwoLines(
            TextColumn("[bold]{task.description}"),
            BarColumn(bar_width=None),
            MofNCompleteColumn(),
            TextColumn("{task.fields[left]}"),
            console=self._console,
            auto_refresh=False,  # no thread beside the training
            transient=True,
            expand=True,
            # what is printed to a file must not turn up in the terminal instead
            redirect_stdout=sys.stdout.isatty(),
        )
        self._bar = self._lines.add_task(name, total=total, left="")
        self._lines.start()
        self.due = perf_counter() + REFRESH_S

    def close(self) -> None:
        """Leaves the terminal as it was, with the cursor back."""
        self.due = math.inf
        if self._lines is not None:
            lines, self._lines = self._lines, None
            lines.stop()

    def set(
        self, name: str, completed: int, total: float | None, left: str = "", figures: str = ""
    ) -> None:
        """What the next drawing shows.

        Args:
            name: before the bar.
            completed: batches.
            total: batches; None: nobody knows.
            left: behind the bar.
            figures: the line below it.
        """
        if self._lines is not None:
            self._lines.figures = figures
            self._lines.update(
                self._bar, description=name, completed=completed, total=total, left=left
            )

    def draw(self) -> None:
        """Draws now; the next one is due in half a second."""
        if self._lines is not None:
            self._lines.refresh()
            self.due = perf_counter() + REFRESH_S

    def print_above(self, *lines: RenderableType) -> None:
        """Prints lines that stay, and draws the bar below them."""
        if self._lines is not None:
            self._lines.console.print(*lines, sep="\n")
            self.draw()
