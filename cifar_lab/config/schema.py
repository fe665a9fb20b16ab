"""The typed root of the configuration, and where ``conf/`` lies. The numbers live there alone."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any

from omegaconf import MISSING

CONFIG_NAME = "config"


class Resume(Enum):
    """What starting into a folder that already holds a run means."""

    auto = "auto"
    never = "never"
    must = "must"


class Compile(Enum):
    """How the network is compiled."""

    none = "none"
    default = "default"
    max = "max"


@dataclass
class Root:
    """The root of every configuration; groups are third-party nodes and stay YAML."""

    data: Any = MISSING
    augment: Any = MISSING
    model: Any = MISSING
    loss: Any = MISSING
    optimizer: Any = MISSING
    scheduler: Any = MISSING
    trainer: Any = MISSING
    callbacks: Any = MISSING
    logger: Any = MISSING
    seed: int = MISSING
    threads: int | None = MISSING
    channels_last: bool = MISSING
    compile: Compile = MISSING
    cuda_graph: bool = MISSING
    steps_per_call: int | None = MISSING
    resume: Resume = MISSING
    slots: int | None = MISSING
    retries: int = MISSING
    job_timeout: float | None = MISSING
    fail_fast: bool = MISSING
    report: bool = MISSING
    sweep: Any = MISSING


def conf_dir() -> Path:
    """``conf/``: inside the package in an installed wheel, beside it in the repository."""
    package = Path(__file__).resolve().parents[1]
    inside = package / "conf"
    return inside if inside.is_dir() else package.parent / "conf"
