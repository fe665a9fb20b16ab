"""The runs below a folder, as their records, configurations and curves tell them."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray

from cifar_lab.records.digest import flatten, is_no_identity
from cifar_lab.records.record import FILE_NAME, read_record
from cifar_lab.report.curves import Curves, read_curves


@dataclass(frozen=True, eq=False)
class Run:
    """One run folder.

    Attributes:
        name: the folder relative to what is reported on.
        identity: dotted keys and plain values of all that decides the result, but the seed.
        data: SHA-256 of the decoded dataset; None where the run ended before it was read.
        selection: accuracy on the held-out images, in [0, 1], of the weights that were tested (of
            the last epoch where none were); None where nothing was held out.
        test: accuracy on the test images, in [0, 1].
    """

    path: Path
    name: str
    status: str
    error: str | None
    seed: Any
    identity: Mapping[str, Any]
    overrides: tuple[str, ...]
    data: str | None
    data_name: str
    selection: float | None
    test: float | None
    epochs: float | None
    parameters: float | None
    fit_s: float | None
    images_per_s: float | None
    record: Mapping[str, Any] = field(repr=False)
    curves: Curves = field(repr=False)

    @property
    def starts(self) -> tuple[Mapping[str, Any], ...]:
        """What ran it, as its record's fields of the same names: ``git``, ``packages``, ``device``,
        ``threads``. More than one where it was continued; those whose work was lost, because a
        later one began anew, are left out. Records of older versions know the last alone.
        """
        starts = self.record.get("starts")
        known = [s for s in starts if isinstance(s, dict)] if isinstance(starts, list) else []
        anew = [at for at, start in enumerate(known) if not start.get("resumed_from_step")]
        return tuple(known[max(anew, default=0) :]) or (self.record,)

    def predictions(self) -> tuple[NDArray[np.int64], NDArray[np.int64]] | None:
        """Test labels and predicted classes, (N,) each in dataset order; None where none lie."""
        try:
            # opened here: np.load leaves the file open where it isn't one of its own
            with (
                open(self.path / "predictions.npz", "rb") as file,
                np.load(file, allow_pickle=False) as saved,
            ):
                labels, logits = saved["labels"], saved["logits"]
            said = logits.argmax(axis=1)
            if labels.shape != said.shape or not labels.size or labels.min() < 0:
                return None
            return labels.astype(np.int64), said.astype(np.int64)
        except (OSError, ValueError, KeyError, EOFError, BadZipFile):
            return None


@dataclass(frozen=True)
class Reading:
    """All that was found: runs by name, and (folder, reason) of what could not be read."""

    runs: tuple[Run, ...]
    broken: tuple[tuple[str, str], ...]


class Reader:
    """Reads the runs below ``root``; what didn't change since the last reading is kept."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._curves: dict[Path, tuple[tuple[int, int], Curves]] = {}

    def read(self) -> Reading:
        """Every run below the root; a record that can't be read is told of, never an error."""
        runs: list[Run] = []
        broken: list[tuple[str, str]] = []
        for folder in _run_folders(self._root):
            name = folder.relative_to(self._root).as_posix()
            name = folder.resolve().name if name == "." else name
            try:
                record = read_record(folder)
                config = _config(folder, record)
            except (OSError, ValueError, RecursionError) as error:
                broken.append((name, _reason(error)))
                continue
            try:
                curves = self._read_curves(folder)
            except (OSError, ValueError) as error:
                broken.append((f"{name}/metrics.csv", f"curves left out: {_reason(error)}"))
                curves = {}
            runs.append(_run(folder, name, record, config, curves))
        return Reading(tuple(runs), tuple(broken))

    def _read_curves(self, folder: Path) -> Curves:
        try:
            stat = (folder / "metrics.csv").stat()
        except OSError:
            return read_curves(folder)
        state = (stat.st_mtime_ns, stat.st_size)
        known = self._curves.get(folder)
        if known is None or known[0] != state:
            known = self._curves[folder] = (state, read_curves(folder))
        return known[1]


def _run_folders(root: Path) -> Iterator[Path]:
    for folder, below, files in os.walk(root):
        if FILE_NAME in files:
            below.clear()  # a run folder holds no other
            yield Path(folder)
        else:
            below[:] = sorted(name for name in below if not name.startswith("."))


def _config(folder: Path, record: Mapping[str, Any]) -> dict[str, Any]:
    """The resolved configuration: the record's, or as composed (interpolations stay text)."""
    config = record.get("config")
    if config is None:
        import yaml

        try:
            config = yaml.safe_load((folder / ".hydra" / "config.yaml").read_text("utf-8"))
        except (OSError, yaml.YAMLError) as error:
            raise ValueError(
                f"no configuration, neither in {FILE_NAME} nor in .hydra/config.yaml"
            ) from error
    if not isinstance(config, dict):
        raise ValueError("its configuration is no mapping")
    return config


def _run(
    folder: Path, name: str, record: Mapping[str, Any], config: dict[str, Any], curves: Curves
) -> Run:
    data, metrics = _mapping(record.get("data")), _mapping(record.get("metrics"))
    timings = _mapping(record.get("timings"))
    flat = dict(flatten(config))
    digest = data.get("digest")
    data_node = config.get("data")
    target = str(data_node.get("_target_", "")) if isinstance(data_node, dict) else ""
    overrides = record.get("overrides")
    return Run(
        path=folder,
        name=name,
        status=str(record.get("status")),
        error=next(iter(str(record.get("error") or "").splitlines()), None),
        seed=record.get("seed", config.get("seed")),
        identity={k: v for k, v in flat.items() if k != "seed" and not is_no_identity(k)},
        overrides=tuple(map(str, overrides)) if isinstance(overrides, list) else (),
        data=None if digest is None else str(digest),
        data_name=str(data.get("name") or target.rpartition(".")[2].lower() or "unknown"),
        selection=_selection(record, metrics, curves),
        test=_number(metrics.get("test/acc")),
        epochs=_number(record.get("epochs")),
        parameters=_number(record.get("parameters")),
        fit_s=_number(timings.get("fit_s")),
        images_per_s=_number(timings.get("images_per_s")),
        record=record,
        curves=curves,
    )


def _selection(
    record: Mapping[str, Any], metrics: Mapping[str, Any], curves: Curves
) -> float | None:
    last = _number(metrics.get("val/acc"))
    best = _number(record.get("best_epoch"))
    if record.get("tested") != "best" or best is None or "val/acc" not in curves:
        return last
    if "starts" in record:
        return last  # and no row of a curve, which in an epoch validated twice may be another's
    # records of older versions hold the last epoch's; what was tested is the best one
    of_best = curves["val/acc"][curves["epoch"] == best]
    return float(of_best[-1]) if of_best.size and np.isfinite(of_best[-1]) else last


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}


def _number(value: Any) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return value


def _reason(error: Exception) -> str:
    if isinstance(error, OSError):
        return error.strerror or type(error).__name__
    return str(error).splitlines()[0] if str(error) else type(error).__name__
