"""What a sweep leaves beside its runs: results.csv, always current, and at the end the report."""

from __future__ import annotations

import csv
import io
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cifar_lab import signals
from cifar_lab.formats import csv_cell
from cifar_lab.records.credentials import hide, masked
from cifar_lab.records.files import write_atomically
from cifar_lab.sweep.supervisor import SweepJob

_METRICS = ("val/acc", "val/loss", "test/acc", "test/loss", "train/acc", "train/loss")


def write_results(sweep_dir: Path, jobs: Sequence[SweepJob]) -> None:
    """Replaces ``results.csv`` whole: job, status, the swept values, seed, epochs, metrics, time.

    Accuracies are fractions; ``fit_s`` is seconds. A disk that refuses does not end the sweep: the
    records hold all of it.

    Args:
        sweep_dir: the sweep's folder.
        jobs: in the order of the rows.
    """
    swept = list(dict.fromkeys(key for job in jobs for key in job.point.swept))
    columns = ["job", "status", *swept, "seed", "epochs", *_METRICS, "fit_s", "error"]
    text = io.StringIO()
    writer = csv.DictWriter(text, list(dict.fromkeys(columns)), lineterminator="\n")
    writer.writeheader()
    writer.writerows(_row(job) for job in jobs)
    try:
        write_atomically(sweep_dir / "results.csv", text.getvalue())
    except OSError:
        return


def write_report(sweep_dir: Path) -> None:
    """Has a process of its own compare the sweep's runs; it prints the table and where the page is.

    What it fails in is one line: the sweep itself has ended as it has.
    """
    command = [sys.executable, "-m", "cifar_lab.report", str(sweep_dir)]
    try:
        with signals.shielded():  # Ctrl-C reaches the report itself
            done = subprocess.run(command, stderr=subprocess.PIPE, text=True)
    except OSError as error:
        reason = str(error)
    else:
        if not done.returncode:
            return
        lines = done.stderr.strip().splitlines()
        reason = lines[-1] if lines else f"exit status {done.returncode}"
    print(f"cifar_lab: no report was written: {reason}", file=sys.stderr, flush=True)


def _row(job: SweepJob) -> dict[str, Any]:
    record = job.record
    metrics = {} if record is None else record.metrics
    row = {
        "job": job.run_dir.name,
        "status": job.status,
        **masked(job.point.swept),
        "seed": job.point.config["seed"],
        "epochs": None if record is None else record.epochs,
        **{name: metrics.get(name) for name in _METRICS},
        "fit_s": None if record is None else record.timings.fit_s,
        "error": None if job.error is None else hide(job.error),
    }
    return {key: csv_cell(value) for key, value in row.items()}
