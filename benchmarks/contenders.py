"""Who is measured: ours through its door, the programs beside it, and whatever a person adds."""

from __future__ import annotations

import json
import math
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.child import Ended
from benchmarks.stand_in import ZIP_NAME
from cifar_lab.records.record import FILE_NAME

WARMUP_STEPS = 20  # as in cifar_lab.training.callbacks.timings, which a test holds it against
EVALUATION_BATCHES = 2  # validation and test are no part of the rate; their start-up is a matter of
PRECISIONS = ("32-true", "bf16-mixed")

# Ours three times: as a person gets it who sets nothing, with the bare loop's memory format, and
# with mixed precision, whatever the others' is.
FLAVOURS: dict[str, tuple[str, ...]] = {
    "ours": (),
    "plain": ("channels_last=false",),
    "bf16": ("trainer.precision=bf16-mixed",),
}


@dataclass(frozen=True, kw_only=True)
class Network:
    """One of the networks of the project's goals.

    Attributes:
        overrides: that compose it.
        batch_size: images per step, on the CPU and on a GPU.
        steps: timed ones, likewise.
        goals: least ratio of ours to a contender, likewise; issue-wide promises, not measurements.
    """

    title: str
    overrides: tuple[str, ...]
    batch_size: tuple[int, int]
    steps: tuple[int, int]
    goals: Mapping[str, tuple[float | None, float | None]] = field(default_factory=dict)


NETWORKS = {
    "cnn": Network(
        title="the report's CNN",
        overrides=("model=cnn",),
        batch_size=(100, 100),
        steps=(100, 2000),
        goals={"bare": (0.98, 0.95), "report": (2, None), "template": (2, 20)},
    ),
    "resnet10": Network(
        title="resnet10, [2,2,2,2]",
        overrides=("model=resnet10",),
        batch_size=(128, 512),
        steps=(10, 300),
        goals={"bare": (0.98, 0.97), "report": (1.2, 8), "template": (None, 5)},
    ),
    "resnet1111": Network(
        title="resnet10, [1,1,1,1]",
        overrides=("model=resnet10", "model.num_blocks=[1,1,1,1]"),
        batch_size=(128, 512),
        steps=(20, 300),
        goals={"bare": (None, 0.97)},
    ),
}


@dataclass(frozen=True, kw_only=True)
class Workload:
    """What all contenders of a table train.

    Attributes:
        data: a folder that `stand_in.make` filled.
        network: a key of `NETWORKS`.
        steps: timed ones, after `WARMUP_STEPS`.
        device: "cpu", "cuda" or "mps".
        threads: of torch; None leaves it to torch.
        workers: of the template's DataLoader.
    """

    data: Path
    network: str
    batch_size: int
    steps: int
    device: str
    precision: str
    threads: int | None
    workers: int

    @property
    def cache(self) -> Path:
        """Where ours finds the images decoded."""
        return self.data / "cache"


@dataclass(frozen=True, kw_only=True)
class Reading:
    """What a contender told; the names are those of `Measurement`."""

    images_per_s: float | None = None
    accuracy: float | None = None
    start_s: float | None = None


@dataclass(frozen=True, kw_only=True)
class Contender:
    """A program that takes its turn.

    Attributes:
        name: in the table.
        command: given an empty folder of its own, its command; a string is for the shell.
        read: what it told, given its ending and that folder; raises ValueError where it didn't.
        cwd: where it runs; None is the folder of its own.
        env: added to the environment.
    """

    name: str
    command: Callable[[Path], Sequence[str] | str]
    read: Callable[[Ended, Path], Reading]
    cwd: Path | None = None
    env: Mapping[str, str] = field(default_factory=dict)


# --- ours ---------------------------------------------------------------------------------------


def ours(name: str, workload: Workload) -> Contender:
    """The real program with its callbacks and loggers, through its door; one of `FLAVOURS`."""

    def command(folder: Path) -> list[str]:
        return our_command(workload, WARMUP_STEPS + workload.steps, folder, *FLAVOURS[name])

    return Contender(name=name, command=command, read=lambda _, run: read_record(run))


def our_command(workload: Workload, steps: int, folder: Path, *more: str) -> list[str]:
    """``python -m cifar_lab`` with the report's recipe and nothing that the bare loop lacks."""
    accelerator = {"cuda": "gpu"}.get(workload.device, workload.device)
    return [
        *(sys.executable, "-m", "cifar_lab", "experiment=report"),
        *NETWORKS[workload.network].overrides,
        *(f"data.root={workload.data / ZIP_NAME}", f"data.cache={workload.cache}"),
        *(f"data.batch_size={workload.batch_size}", "data.val_size=1000"),
        *(f"trainer.max_steps={steps}", "trainer.max_epochs=100000"),
        *(f"trainer.limit_{split}_batches={EVALUATION_BATCHES}" for split in ("val", "test")),
        *(f"trainer.accelerator={accelerator}", f"trainer.precision={workload.precision}"),
        *([] if workload.threads is None else [f"threads={workload.threads}"]),
        *(f"hydra.run.dir={folder / 'run'}", *more),
    ]


def read_record(folder: Path) -> Reading:
    """From the record of a run that `our_command` started."""
    timings: dict[str, Any] = json.loads((folder / "run" / FILE_NAME).read_text())["timings"]
    return Reading(
        images_per_s=timings.get("images_per_s"), start_s=timings["start_to_first_step_s"]
    )


# --- the programs beside it -----------------------------------------------------------------------


def program(name: str, module: str, workload: Workload, *flags: str) -> Contender:
    """One of `benchmarks.programs`."""

    def command(folder: Path) -> list[str]:
        module_name = f"benchmarks.programs.{module}"
        return [sys.executable, "-m", module_name, *_arguments(workload), *flags]

    return Contender(name=name, command=command, read=_read_last_line)


def _arguments(workload: Workload) -> list[str]:
    threads = [] if workload.threads is None else [f"--threads={workload.threads}"]
    return [
        *(f"--data={workload.data}", f"--network={workload.network}"),
        *(f"--batch-size={workload.batch_size}", f"--steps={workload.steps}"),
        *(f"--device={workload.device}", f"--precision={workload.precision}"),
        *(f"--workers={workload.workers}", *threads),
    ]


MAKERS: dict[str, Callable[[Workload], Contender]] = {
    **{name: partial(ours, name) for name in FLAVOURS},
    "bare": lambda workload: program("bare", "bare", workload),
    "tuned": lambda workload: program("tuned", "bare", workload, "--tuned"),
    "report": lambda workload: program("report", "report_loop", workload),
    "template": lambda workload: program("template", "template", workload),
}
TITLES = {
    "ours": "ours",
    "plain": "ours, contiguous",
    "bf16": "ours, bf16-mixed",
    "bare": "bare PyTorch loop",
    "tuned": "bare, our memory settings",
    "report": "the report's loop",
    "template": "Lightning template manner",
}

# --- programs from elsewhere ----------------------------------------------------------------------


def outside(name: str, command: str) -> Contender:
    """A person's own command, run by the shell in the working directory."""
    return Contender(name=name, command=lambda _: command, read=_read_last_line, cwd=Path.cwd())


def _read_last_line(ended: Ended, folder: Path) -> Reading:
    return read_last_line(ended.output)


def read_last_line(output: str) -> Reading:
    """What the last line of a program's output says.

    It may be JSON with ``images_per_s`` and ``accuracy`` (a fraction), either or both. Else its
    last number counts: with a per cent sign behind it, or between 0 and 1, it is an accuracy;
    any other is images/s. A line without a number says nothing; wall time is known all the same.
    """
    lines = [line for line in output.splitlines() if line.strip()]
    last = lines[-1] if lines else ""
    try:
        told = json.loads(last)
    except ValueError:
        told = None
    if isinstance(told, dict):
        known = {key: told.get(key) for key in ("images_per_s", "accuracy")}
        for key, value in known.items():
            if value is not None and (
                isinstance(value, bool) or not isinstance(value, int | float)
            ):
                raise ValueError(f"{key}={value!r} on its last line is no number")
        if (rate := known["images_per_s"]) is not None and not 0 < rate < math.inf:
            raise ValueError(f"images_per_s={rate!r} on its last line is no rate")
        return Reading(**known)
    numbers = re.findall(r"(?<![\w.])(\d[\d,]*(?:\.\d+)?(?:[eE][+-]?\d+)?)\s*(%?)", last)
    if not numbers:
        return Reading()
    value, percent = float(numbers[-1][0].replace(",", "")), numbers[-1][1]
    if percent:
        return Reading(accuracy=value / 100)
    return Reading(accuracy=value) if value <= 1 else Reading(images_per_s=value)
