"""What the supervisor and its workers say to each other; neither side imports the other."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

CHECK = "cifar_lab.sweep.worker:check"
OPEN = "cifar_lab.sweep.worker:open_data"
RUN_JOB = "cifar_lab.sweep.worker:run_job"


def data_key(config: Mapping[str, Any]) -> str:
    """What points have in common that read the same images: their resolved data group."""
    return json.dumps(config["data"], sort_keys=True)


@dataclass(frozen=True)
class Open:
    """Points, composed, whose images are to be found, and where the `Found` of each go."""

    cfgs: Sequence[DictConfig]
    reply: Connection


@dataclass(frozen=True)
class Found:
    """A point's images.

    Attributes:
        digest: of them; None: the official ones, not on this machine.
        error: why there are none, in one line.
    """

    digest: str | None = None
    error: str | None = None


@dataclass(frozen=True)
class Check:
    """Points to look at before the first job (composed, resolved), and where `Findings` go."""

    cfgs: Sequence[DictConfig]
    configs: Sequence[dict[str, Any]]
    reply: Connection


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
        images: the digest of each point's. Empty where a point is wrong.
        warnings: what makes accuracies on some of these images too high, or jobs slower than they
            need be.
    """

    wrong: list[tuple[int, str]]
    kind: str
    devices: int
    per_job: int
    work: list[float] = field(default_factory=list)
    images: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Task:
    """One job.

    Attributes:
        cfg: composed.
        run_dir: the folder it runs in.
        images: the digest of those that it is to run on.
        on_gpus: whether its place is one on GPUs.
    """

    cfg: DictConfig
    overrides: tuple[str, ...]
    run_dir: Path
    images: str
    on_gpus: bool = False
