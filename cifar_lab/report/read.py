"""The runs below a folder, as their records, configurations and curves tell them."""

from __future__ import annotations

import os
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from zipfile import BadZipFile, ZipFile

import numpy as np
from numpy.typing import NDArray

from cifar_lab.records.credentials import masked
from cifar_lab.records.digest import deciding_as_run
from cifar_lab.records.files import check_file
from cifar_lab.records.record import FILE_NAME, RunRecord, Start
from cifar_lab.report.curves import Curves, read_curves

# What a file that is not what it should be may raise while it is read.
_NOT_READ = (OSError, ValueError, TypeError, ArithmeticError, RecursionError, MemoryError)
# 100,000 test images of 1,000 classes
_MOST_PREDICTIONS = 400 * 2**20
_MOST_CLASSES = 4096
_MOST_CONFIG = 2**20
# Of predictions that don't hold their own.
CLASSES = (
    *("airplane", "automobile", "bird", "cat", "deer"),
    *("dog", "frog", "horse", "ship", "truck"),
)


@dataclass(frozen=True, eq=False)
class Predictions:
    """What a run answered to the test images.

    Attributes:
        labels: (N,) true classes in dataset order.
        said: (N,) predicted ones.
        classes: what they are called.
    """

    labels: NDArray[np.int64]
    said: NDArray[np.int64]
    classes: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class Run:
    """One run folder.

    Attributes:
        name: the folder relative to what is reported on.
        settings: dotted keys and plain values of all that decides the result, but the seed.
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
    settings: Mapping[str, Any]
    overrides: tuple[str, ...]
    data: str | None
    data_name: str
    selection: float | None
    test: float | None
    epochs: float | None
    parameters: float | None
    fit_s: float | None
    images_per_s: float | None
    record: RunRecord = field(repr=False)
    curves: Curves = field(repr=False)

    @property
    def starts(self) -> tuple[Start, ...]:
        """What ran it. More than one where it was continued; those whose work was lost, because a
        later one began anew, are left out. Records of older versions know the last alone.
        """
        known = self.record.all_starts
        anew = [at for at, start in enumerate(known) if not start.resumed_from_step]
        return known[max(anew, default=0) :] or (self.record.last_start,)

    def predictions(self) -> Predictions | None:
        """What it answered to the test images; None where no predictions lie."""
        try:
            path = self.path / "predictions.npz"
            check_file(path, most=_MOST_PREDICTIONS)
            with ZipFile(path) as members:
                # a few bytes may unpack to any size
                if sum(member.file_size for member in members.infolist()) > _MOST_PREDICTIONS:
                    return None
            # opened here: np.load leaves the file open where it isn't one of its own
            with (
                open(path, "rb") as file,
                np.load(file, allow_pickle=False) as saved,
            ):
                labels, logits = saved["labels"], saved["logits"]
                classes = tuple(map(str, saved["classes"])) if "classes" in saved else ()
            said = logits.argmax(axis=1)
            if labels.shape != said.shape or not labels.size or labels.min() < 0:
                return None
            count = max(logits.shape[1], int(labels.max()) + 1)
            if count > _MOST_CLASSES:
                return None
            if len(classes) != count:  # written before predictions held the names
                ten = count == len(CLASSES) and self.data_name in ("cifar10", "synthetic")
                classes = CLASSES if ten else tuple(map(str, range(count)))
            return Predictions(labels.astype(np.int64), said.astype(np.int64), classes)
        except (*_NOT_READ, KeyError, EOFError, BadZipFile, zlib.error, NotImplementedError):
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
                record = RunRecord.read(folder)
                config = _config(folder, record)
            except _NOT_READ as error:
                broken.append((name, _reason(error)))
                continue
            try:
                curves = self._read_curves(folder)
            except _NOT_READ as error:
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


def _config(folder: Path, record: RunRecord) -> dict[str, Any]:
    """The resolved configuration: the record's, or as composed (interpolations stay text)."""
    config: Any = record.config
    if config is None:
        import yaml

        try:
            path = folder / ".hydra" / "config.yaml"
            check_file(path, most=_MOST_CONFIG)
            text = path.read_text("utf-8")
            # a few lines of references to references may stand for any number of values
            if any(isinstance(event, yaml.AliasEvent) for event in yaml.parse(text)):
                raise ValueError(f"{path.name}: holds references, as no run writes them")
            config = masked(yaml.safe_load(text))
        except (OSError, yaml.YAMLError) as error:
            raise ValueError(
                f"no configuration, neither in {FILE_NAME} nor in .hydra/config.yaml"
            ) from error
    if not isinstance(config, dict):
        raise ValueError("its configuration is no mapping")
    return config


def _run(folder: Path, name: str, record: RunRecord, config: dict[str, Any], curves: Curves) -> Run:
    data_node = config.get("data")
    target = str(data_node.get("_target_", "")) if isinstance(data_node, dict) else ""
    settings = deciding_as_run(config, device=record.device, cut_short=record.cut_short)
    return Run(
        path=folder,
        name=name,
        status=record.status,
        error=next(iter((record.error or "").splitlines()), None),
        seed=config.get("seed") if record.seed is None else record.seed,
        settings={key: value for key, value in settings.items() if key != "seed"},
        overrides=record.overrides,
        data=record.data.digest or None,
        data_name=record.data.name or target.rpartition(".")[2].lower() or "unknown",
        selection=_selection(record, curves),
        test=record.metrics.get("test/acc"),
        epochs=record.epochs,
        parameters=record.parameters,
        fit_s=record.timings.fit_s,
        images_per_s=record.timings.images_per_s,
        record=record,
        curves=curves,
    )


def _selection(record: RunRecord, curves: Curves) -> float | None:
    last, best = record.metrics.get("val/acc"), record.best_epoch
    if record.tested != "best" or best is None or "val/acc" not in curves:
        return last
    if "starts" in record.model_fields_set:
        return last  # and no row of a curve, which in an epoch validated twice may be another's
    # records of older versions hold the last epoch's; what was tested is the best one
    of_best = curves["val/acc"][curves["epoch"] == best]
    return float(of_best[-1]) if of_best.size and 0 <= of_best[-1] <= 1 else last


def _reason(error: Exception) -> str:
    if isinstance(error, OSError):
        return error.strerror or type(error).__name__
    return str(error).splitlines()[0] if str(error) else type(error).__name__
