"""From the start of a process to its first step, and where the time of its imports goes."""

from __future__ import annotations

import re
import subprocess
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from benchmarks.child import Ended
from benchmarks.contenders import Contender, Reading, Workload, our_command, read_record
from benchmarks.measurement import Measurement, values

TABLE = "start-up"
INTERPRETER, IMPORTS, OURS, HELP = "interpreter", "imports", "ours", "help"
GOAL = 1.15  # greatest ratio of ours to imports
TITLES = {
    INTERPRETER: "Python up to our first line",
    IMPORTS: "import torch, lightning",
    OURS: "ours: to the first step's end, data cached",
    HELP: "python -m cifar_lab --help, whole",
}
_IMPORTS = "import torch, lightning"
# CUDA starts with its first use; the first convolution loads cuDNN
_FIRST_CONVOLUTION = (
    "; x = torch.rand(8, 3, 32, 32, device='cuda'); "
    "torch.nn.functional.conv2d(x, x); torch.cuda.synchronize()"
)


def contenders(workload: Workload) -> list[Contender]:
    """All rows of the table; the clock of each stops at its first line or where ours says."""
    reference = _IMPORTS + (_FIRST_CONVOLUTION if workload.device == "cuda" else "")
    return [
        # what has been imported when the door starts its clock
        _python(INTERPRETER, "import cifar_lab.signals"),
        _python(IMPORTS, reference),
        Contender(
            name=OURS,
            command=lambda folder: our_command(workload, 1, folder),
            read=lambda _, folder: Reading(start_s=read_record(folder).start_s),
        ),
        Contender(
            name=HELP,
            command=lambda _: [sys.executable, "-m", "cifar_lab", "--help"],
            read=lambda ended, _: Reading(start_s=ended.wall_s),
        ),
    ]


def _python(name: str, code: str) -> Contender:
    return Contender(
        name=name,
        command=lambda _: [sys.executable, "-c", f"{code}; print(flush=True)"],
        read=lambda ended, _: Reading(start_s=_first_line_s(ended)),
    )


def _first_line_s(ended: Ended) -> float:
    if ended.first_line_s is None:
        raise ValueError("it printed nothing")
    return ended.first_line_s


def with_interpreter(measurements: Sequence[Measurement]) -> list[Measurement]:
    """Ours from the start of the process on: its own clock starts after the interpreter's start."""
    before = values(measurements, INTERPRETER, "start_s")
    return [
        replace(m, start_s=m.start_s + before[m.round])
        if m.contender == OURS and m.start_s is not None and m.round in before
        else m
        for m in measurements
    ]


# --- --imports --------------------------------------------------------------------------------


@dataclass(frozen=True)
class Imported:
    """One module: milliseconds of its own, and with all that it was first to import."""

    name: str
    own_ms: float
    total_ms: float


def imported(command: Sequence[str], cwd: Path) -> list[Imported]:
    """What a Python command (without the interpreter) imports, by ``-X importtime``.

    Raises:
        RuntimeError: it failed.
    """
    done = subprocess.run(
        [sys.executable, "-X", "importtime", *command], cwd=cwd, capture_output=True, text=True
    )
    if done.returncode:
        last = (done.stderr.strip().splitlines() or [""])[-1]
        raise RuntimeError(f"{' '.join(command[:3])} ...: exit status {done.returncode}: {last}")
    return read_importtime(done.stderr)


def read_importtime(text: str) -> list[Imported]:
    """From the lines that ``-X importtime`` writes to standard error."""
    found = re.findall(r"^import time:\s+(\d+) \|\s+(\d+) \| +(\S+)$", text, re.MULTILINE)
    return [Imported(name, int(own) / 1e3, int(total) / 1e3) for own, total, name in found]


def by_package(modules: Sequence[Imported], depth: int = 1) -> Counter[str]:
    """Milliseconds of their own, added up over the first ``depth`` parts of the names."""
    sums: Counter[str] = Counter()
    for module in modules:
        sums[".".join(module.name.split(".")[:depth])] += module.own_ms  # type: ignore[assignment]  # a Counter of floats
    return sums


def import_lists(workload: Workload, cwd: Path) -> tuple[list[Imported], list[Imported]]:
    """(what a run of one step imports until its end, what ``import torch, lightning`` does)."""
    command = our_command(workload, 1, cwd)[1:]
    return imported(command, cwd), imported(["-c", _IMPORTS], cwd)
