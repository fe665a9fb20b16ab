"""The trainer with its callbacks, loggers and plugins."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cifar_lab.config.targets import locate
from cifar_lab.errors import InputError
from cifar_lab.records import processes
from cifar_lab.run import compatibility
from cifar_lab.run.parts import build_part, check_kind

if TYPE_CHECKING:
    from lightning.pytorch import Trainer
    from omegaconf import DictConfig


def build_callbacks(resolved: dict[str, Any]) -> dict[str, Any]:
    """By their dotted keys, in the order in which they run."""
    from lightning.pytorch import Callback

    made = {
        f"{group}.{name}": build_part(f"{group}.{name}", node)
        for group in ("monitors", "callbacks")
        for name, node in resolved[group].items()
    }
    for key, part in made.items():
        check_kind(key, part, Callback, "a lightning.pytorch.Callback")
    compatibility.check_one_bar(list(made), list(made.values()))
    return made


def build_trainer(
    cfg: DictConfig, resolved: dict[str, Any], callbacks: list[Any], run_dir: Path
) -> Trainer:
    """Lightning's trainer with callbacks and loggers; raises InputError as `build` does."""
    import lightning.pytorch as lightning
    from lightning.pytorch.loggers import Logger
    from lightning.pytorch.profilers import Profiler

    loggers = [
        build_part(f"logger.{name}", node, **_save_dir(node, run_dir))
        for name, node in resolved["logger"].items()
    ]
    for name, part in zip(resolved["logger"], loggers, strict=True):
        check_kind(f"logger.{name}", part, Logger, "a lightning.pytorch.loggers.Logger")
    trainer: Trainer = build_part(
        "trainer",
        resolved["trainer"],
        plugins=plugins_of(cfg),
        callbacks=callbacks,
        logger=loggers or False,
        default_root_dir=str(run_dir),
        **_switches(callbacks, resolved),
    )
    check_kind("trainer", trainer, lightning.Trainer, "a lightning.pytorch.Trainer")
    profiler = getattr(trainer, "profiler", None)
    check_kind("trainer.profiler", profiler, Profiler, "one of lightning.pytorch.profilers")
    return trainer


def plugins_of(cfg: DictConfig) -> list[Any]:
    """The configured plugins, and what tells Lightning who started this process.

    Left to itself Lightning looks at variables that lie about in shells (`distributed`).
    """
    from hydra.utils import instantiate
    from lightning.fabric.plugins.environments.cluster_environment import ClusterEnvironment
    from lightning.fabric.plugins.environments.lightning import LightningEnvironment
    from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
    from lightning.fabric.plugins.environments.torchelastic import TorchElasticEnvironment

    plugins = instantiate(cfg.trainer.get("plugins"), _convert_="all") or []
    plugins = plugins if isinstance(plugins, list) else [plugins]
    if any(isinstance(plugin, ClusterEnvironment) for plugin in plugins):
        raise InputError(
            "trainer.plugins: cifar_lab finds out by itself who started its processes; leave the "
            "cluster environment out"
        )
    world = processes.find()
    if world.launcher == "torchrun":
        return [*plugins, TorchElasticEnvironment()]
    if world.launcher == "srun":
        # it reads the allocation's numbers; the step's have been held against the devices
        nodes = cfg.trainer.get("num_nodes") or 1
        os.environ["SLURM_NTASKS"], os.environ["SLURM_NNODES"] = str(world.size), str(nodes)
        os.environ["SLURM_NTASKS_PER_NODE"] = str(world.size // nodes)
        # how a run goes on is its folder's business: no SIGUSR1, no job put back by Lightning
        return [*plugins, SLURMEnvironment(auto_requeue=False)]
    return [*plugins, LightningEnvironment()]


def _save_dir(node: dict[str, Any], run_dir: Path) -> dict[str, str]:
    import inspect

    target = locate("logger", node["_target_"])
    takes = "save_dir" in inspect.signature(target).parameters and "save_dir" not in node
    return {"save_dir": str(run_dir)} if takes else {}


def _switches(callbacks: list[Any], resolved: dict[str, Any]) -> dict[str, bool]:
    """Trainer's switches that follow from the callbacks: without them Lightning adds its own."""
    from lightning.pytorch.callbacks import Checkpoint, ProgressBar

    derived = {
        "enable_progress_bar": any(isinstance(c, ProgressBar) for c in callbacks),
        "enable_checkpointing": any(isinstance(c, Checkpoint) for c in callbacks),
    }
    return {key: value for key, value in derived.items() if key not in resolved["trainer"]}


def device_name(trainer: Any) -> str:
    """What a trainer's devices are called, for the record."""
    import platform

    import torch

    device = trainer.strategy.root_device
    if device.type == "cuda":
        return f"{trainer.num_devices} x {torch.cuda.get_device_name(device)}"
    name = platform.processor() or platform.machine()
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            models = [line.partition(":")[2] for line in file if line.startswith("model name")]
        name = models[0].strip() if models else name
    except OSError:
        pass
    return f"{device.type}: {name}, {os.cpu_count()} cores"
