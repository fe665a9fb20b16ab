"""Hydra as a sweep meets it."""

from __future__ import annotations

from hydra import initialize_config_dir
from hydra.core.config_loader import ConfigLoader
from hydra.core.global_hydra import GlobalHydra
from hydra.types import RunMode
from omegaconf import DictConfig

from cifar_lab.config.compose import register
from cifar_lab.config.schema import conf_dir


def hydra_of(*overrides: str) -> tuple[ConfigLoader, DictConfig]:
    """Hydra's loader and the sweep's own configuration."""
    register()
    GlobalHydra.instance().clear()
    initialize_config_dir(version_base="1.3", config_dir=str(conf_dir()), job_name="cifar_lab")
    loader = GlobalHydra.instance().config_loader()
    return loader, loader.load_configuration("config", list(overrides), RunMode.MULTIRUN)
