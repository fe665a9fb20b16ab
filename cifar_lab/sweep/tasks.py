"""What the supervisor and its workers say to each other; neither side imports the other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

CHECK = "cifar_lab.sweep.worker:check"
RUN_JOB = "cifar_lab.sweep.worker:run_job"


@dataclass(frozen=True)
class Check:
    """Points to look at before the first job (composed, resolved), and where `Findings` go."""

    cfgs: Sequence[DictConfig]
    configs: Sequence[dict[str, Any]]
    answer: Connection


@dataclass(frozen=True)
class Findings:
    """What only a process with torch can know.

    Attributes:
        wrong: (index, message) of every point that can't be built.
        kind: of device: cuda, mps or cpu.
        devices: how many of it this machine shows.
        per_job: how many of it the largest point asks for.
        work: of each point, floating-point operations of its network times its epochs; 0 where
            they can't be counted. Empty where a point is wrong.
    """

    wrong: list[tuple[int, str]]
    kind: str
    devices: int
    per_job: int
    work: list[float] = field(default_factory=list)


@dataclass(frozen=True)
class Task:
    """One job: composed, and the folder it runs in."""

    cfg: DictConfig
    overrides: tuple[str, ...]
    run_dir: Path
