"""A run's curves: metrics.csv, or its TensorBoard events where there is none."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from cifar_lab.records.files import check_file

# 400,000 rows of a usual run
_MOST_BYTES = 64 * 2**20
_MOST_EPOCHS = 1e9
Curves = dict[str, NDArray[np.float64]]


def read_curves(run_dir: Path) -> Curves:
    """One value an epoch: ``epoch`` (counted from 1) and a column for each metric, NaN where none.

    The test's values are no curve and are left out. Empty where the run has logged nothing yet.

    Raises:
        OSError, ValueError: the file can't be read as what it should be.
    """
    path = run_dir / "metrics.csv"
    if path.exists():
        check_file(path, most=_MOST_BYTES)
    table = _from_csv(path) if path.exists() else _from_events(run_dir / "tensorboard")
    if table.empty:
        return {}
    names = [name for name in table if name != "step" and not str(name).startswith("test/")]
    table = table[names].dropna(how="all", subset=[name for name in names if name != "epoch"])
    if not table["epoch"].is_unique:
        table = table.groupby("epoch", as_index=False, sort=True).last()  # of each cell that is set
    columns = {str(name): table[name].to_numpy(np.float64) for name in names}
    if not (abs(columns["epoch"]) < _MOST_EPOCHS).all():
        raise ValueError("an epoch is no number that a run gets to")
    columns["epoch"] = columns["epoch"] + 1
    return {name: column for name, column in columns.items() if not np.isnan(column).all()}


def _from_csv(path: Path) -> pd.DataFrame:
    try:
        table = pd.read_csv(path)
    except pd.errors.EmptyDataError:
        return pd.DataFrame()
    except pd.errors.ParserError as error:
        raise ValueError(str(error)) from error
    if "epoch" not in table:
        raise ValueError("has no column epoch")
    return table.dropna(subset="epoch")


def _from_events(folder: Path) -> pd.DataFrame:
    if not folder.is_dir():
        return pd.DataFrame()
    # this reader falls back to a stub where TensorFlow isn't installed, and never needs torch
    from tensorboard.backend.event_processing.event_accumulator import (
        EventAccumulator,
    )

    events = EventAccumulator(
        str(folder), size_guidance={"scalars": 0, "tensors": 0, "images": 1, "histograms": 1}
    )
    events.Reload()
    series = {
        tag: {event.step: event.value for event in events.Scalars(tag)}
        for tag in events.Tags()["scalars"]
    }
    epochs = series.get("train/loss") or series.get("val/loss") or {}
    if not epochs:
        return pd.DataFrame()
    # events know steps only: an epoch ends where its training loss was logged
    steps = sorted(epochs)
    table = pd.DataFrame({tag: pd.Series(values) for tag, values in series.items()}, index=steps)
    return table.assign(epoch=range(len(steps)))
