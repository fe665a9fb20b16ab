"""The typed root of the configuration, and where ``conf/`` lies. The numbers live there alone."""

from __future__ import annotations

from dataclasses import dataclass, field
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


class MatmulPrecision(Enum):
    """How exactly float32 matrices are multiplied: torch.set_float32_matmul_precision."""

    highest = "highest"
    high = "high"
    medium = "medium"


# What conf/trainer leaves at Lightning's own defaults: known without a +, and no part of a run's
# resolved configuration until it is given another value.
TRAINER_DEFAULTS: dict[str, Any] = {
    "num_nodes": 1,
    "logger": None,
    "callbacks": None,
    "fast_dev_run": False,
    "min_epochs": None,
    "min_steps": None,
    "max_time": None,
    "limit_predict_batches": None,
    "overfit_batches": 0.0,
    "val_check_interval": None,
    "enable_checkpointing": None,
    "enable_progress_bar": None,
    "gradient_clip_algorithm": None,
    "benchmark": None,
    "inference_mode": True,
    "use_distributed_sampler": True,
    "detect_anomaly": False,
    "barebones": False,
    "plugins": None,
    "sync_batchnorm": False,
    "reload_dataloaders_every_n_epochs": 0,
    "default_root_dir": None,
    "enable_autolog_hparams": True,
    "model_registry": None,
}


@dataclass
class Sweep:
    """Of a sweep as a whole, and of none of its runs; what is null here is of ``sweep=optuna``."""

    slots: int | None = MISSING
    retries: int = MISSING
    job_timeout: float | None = MISSING
    fail_fast: bool = MISSING
    report: bool = MISSING
    # of an experiment: by name, the overrides that leave an ingredient out (`config.ingredients`)
    ingredients: dict[str, list[str]] = field(default_factory=dict)
    storage: str | None = None
    study: str | None = None
    n_trials: int | None = None
    sampler: str | None = None
    seed: int | None = None
    pruner: str | None = None
    min_epochs: int | None = None
    objectives: list[str] | None = None
    directions: list[str] | None = None


@dataclass
class Root:
    """The root of every configuration; groups are third-party nodes and stay YAML."""

    data: Any = MISSING
    augment: Any = MISSING
    model: Any = MISSING
    loss: Any = MISSING
    optimizer: Any = MISSING
    scheduler: Any = MISSING
    trainer: Any = field(default_factory=lambda: dict(TRAINER_DEFAULTS))
    callbacks: Any = MISSING
    monitors: Any = MISSING
    logger: Any = MISSING
    seed: int = MISSING
    threads: int | None = MISSING
    channels_last: bool = MISSING
    compile: Compile = MISSING
    matmul_precision: MatmulPrecision = MISSING
    cuda_graph: bool = MISSING
    steps_per_call: int | None = MISSING
    tta: str = MISSING
    ablation: str | None = MISSING
    tuned_batch_size: int | None = MISSING
    resume: Resume = MISSING
    init_from: str | None = MISSING
    init_strict: bool = MISSING
    freeze: Any = MISSING
    distill: Any = MISSING
    hard_examples: Any = MISSING
    sweep: Sweep = field(default_factory=Sweep)


def conf_dir() -> Path:
    """``conf/``: inside the package in an installed wheel, beside it in the repository."""
    package = Path(__file__).resolve().parents[1]
    inside = package / "conf"
    return inside if inside.is_dir() else package.parent / "conf"
