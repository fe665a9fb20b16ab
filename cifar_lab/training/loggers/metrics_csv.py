"""metrics.csv: every logged scalar, a column each, whole at every instant."""

from __future__ import annotations

import csv
import io
from argparse import Namespace
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities import rank_zero_only

from cifar_lab.errors import InputError
from cifar_lab.records.files import write_atomically

FILE_NAME = "metrics.csv"


class MetricsCsv(Logger):
    """One row per epoch and step; a row fills up as the splits report.

    Columns are ``epoch``, ``step``, then the metrics in the order they were first logged; a column
    may appear late. Numbers keep their full precision (``float(text)`` gives the logged value
    back); an empty cell was not logged. The file is replaced whole at each save, on rank zero, and
    one that exists is continued.

    Args:
        save_dir: the run folder.
    """

    def __init__(self, *, save_dir: str | Path) -> None:
        super().__init__()
        self._dir = Path(save_dir)
        self._columns: list[str] = ["epoch", "step"]
        self._rows: list[dict[str, str]] | None = None  # None: the file hasn't been read
        self._saved = True

    @property
    def name(self) -> str:
        """The name of the logger."""
        return "metrics"

    @property
    def version(self) -> str:
        """None of its own: the run folder is the version."""
        return ""

    @property
    def experiment(self) -> Self:
        """What each of Lightning's loggers has, and a callback may look at."""
        return self

    @property
    def save_dir(self) -> str:
        """The run folder."""
        return str(self._dir)

    @rank_zero_only
    def resume(self, global_step: int) -> None:
        """Drops what a checkpoint after ``global_step`` steps does not know of.

        Lightning numbers the row of the n-th step n - 1, so rows with ``step >= global_step`` go.

        Raises:
            InputError: the file that exists is none of ours.
        """
        rows = self._read()
        kept = [row for row in rows if int(row["step"]) < global_step]
        if len(kept) < len(rows):
            self._rows, self._saved = kept, False
            self.save()

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Adds scalars to the row of their epoch and step."""
        rows = self._read()
        cells = {"step": str(step or 0), **{key: _text(value) for key, value in metrics.items()}}
        last = rows[-1] if rows else {}
        same_step = last.get("step") == cells["step"]
        same_epoch = cells.get("epoch", last.get("epoch")) == last.get("epoch")
        if same_step and same_epoch:
            last.update(cells)
        else:
            rows.append(cells)
        self._columns += [key for key in cells if key not in self._columns]
        self._saved = False

    def log_hyperparams(
        self, params: dict[str, Any] | Namespace, *args: Any, **kwargs: Any
    ) -> None:
        """Hyperparameters are the record's, not this file's."""

    @rank_zero_only
    def save(self) -> None:
        """Replaces the file; raises OSError and leaves it as it was."""
        if self._saved:
            return
        text = io.StringIO(newline="")
        writer = csv.DictWriter(text, self._columns, restval="", lineterminator="\n")
        writer.writeheader()
        writer.writerows(self._read())
        self._dir.mkdir(parents=True, exist_ok=True)
        write_atomically(self._dir / FILE_NAME, text.getvalue())
        self._saved = True

    def _read(self) -> list[dict[str, str]]:
        if self._rows is None:
            path = self._dir / FILE_NAME
            self._rows = []
            if path.exists():
                with open(path, newline="", encoding="utf-8") as file:
                    reader = csv.DictReader(file)
                    columns, rows = list(reader.fieldnames or []), list(reader)
                if columns[:2] != ["epoch", "step"] or not all(r["step"].isdigit() for r in rows):
                    raise InputError(f"{path}: is no metrics.csv of a run; move it away")
                self._columns = columns
                self._rows = [{k: v for k, v in row.items() if v} for row in rows]
        return self._rows


def _text(value: float) -> str:
    number = float(value)
    return str(int(number)) if isinstance(value, int) else repr(number)
