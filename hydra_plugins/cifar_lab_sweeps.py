"""How Hydra finds the launcher and the sweepers of cifar_lab: it looks in ``hydra_plugins`` only.

Hydra imports this file in every run: what the plugins do lies in cifar_lab.sweep.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.core.utils import JobReturn
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf, open_dict, read_write

# conf/config.yaml's; the slots name the folders themselves
_SUBDIR = "${job_name:${hydra.overrides.task}}"


class SlotsLauncher(Launcher):
    """Runs jobs in processes of their own, in slots of devices."""

    def setup(
        self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig
    ) -> None:
        """Keeps what `launch` needs, and tells the fork server which data to open."""
        from cifar_lab.errors import InputError
        from cifar_lab.sweep import process

        named = OmegaConf.to_container(config.hydra.sweep, resolve=False)
        if isinstance(named, dict) and named["subdir"] != _SUBDIR:
            raise InputError(
                f"hydra.sweep.subdir={named['subdir']}: a job's folder is named by what was swept "
                "and a digest, by which it is found again; leave it out, or use "
                "hydra/launcher=basic"
            )

        self.hydra_context = hydra_context
        self.config = config
        self.swept: Sequence[str] | None = None
        process.tell_data(_data_of(config))

    def launch(
        self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int
    ) -> Sequence[JobReturn]:
        """Runs a batch to its end; a failed job ends the program with status 1."""
        from cifar_lab.sweep.launch import run_grid

        status = run_grid(
            self.config, self.hydra_context.config_loader, job_overrides, swept=self.swept
        )
        if status:
            raise SystemExit(status)
        return []


class PointsSweeper(BasicSweeper):
    """All combinations, as Hydra's basic sweeper makes them, or the points an Optuna study wants.

    Writes nothing before the check.
    """

    def __init__(self, params: dict[str, str] | None) -> None:
        super().__init__(max_batch_size=None, params=params)

    def setup(
        self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig
    ) -> None:
        """Finds the sweep's folder: ``newest``, relative to the working directory, or as given."""
        from cifar_lab.config.validate import check_hydra_callbacks
        from cifar_lab.errors import InputError

        if not isinstance(self.params, Mapping):
            raise InputError(f"hydra.sweeper.params={self.params}: must be keys and their values")
        check_hydra_callbacks(config.hydra)
        _resolve_folder(config)
        super().setup(hydra_context=hydra_context, task_function=task_function, config=config)

    def sweep(self, arguments: list[str]) -> Any:
        """Runs the grid, or under ``sweep=optuna`` the search."""
        from cifar_lab.errors import InputError

        assert self.hydra_context is not None
        assert self.config is not None
        loader = self.hydra_context.config_loader
        overrides = OverridesParser.create(config_loader=loader).parse_overrides(
            [*self._parse_config(), *arguments]
        )
        if OmegaConf.select(self.config, "sweep.sampler") is not None:
            if not isinstance(self.launcher, SlotsLauncher):
                raise InputError("sweep=optuna: needs hydra/launcher=slots")
            return self._search(overrides)
        swept = {override.get_key_element(): override for override in overrides}
        keys = [key for key, override in swept.items() if override.is_sweep_override()]
        for key in keys:
            if not swept[key].is_discrete_sweep():
                raise InputError(
                    f"{swept[key].input_line}: a grid needs values, e.g. {key}=0.01,0.1; "
                    "sweep=optuna searches intervals"
                )
        (batch,) = self.split_arguments(overrides, None)
        if not batch:
            raise InputError(f"{', '.join(keys)}: no values to sweep over; check the pattern")
        if isinstance(self.launcher, SlotsLauncher):
            self.launcher.swept = keys
            return self.launcher.launch(batch, initial_job_idx=0)
        from cifar_lab.sweep.hydra_launchers import run_grid

        assert self.launcher is not None
        if status := run_grid(self.config, loader, self.launcher, batch):
            raise SystemExit(status)
        return None

    def _search(self, overrides: list[Override]) -> None:
        from cifar_lab.errors import InputError

        try:
            import optuna  # noqa: F401
        except ModuleNotFoundError as error:
            raise InputError(
                "sweep=optuna: Optuna is not installed; pip install 'cifar-lab[optuna]'"
            ) from error
        from cifar_lab.sweep.launch import run_search

        assert self.hydra_context is not None
        assert self.config is not None
        status = run_search(self.config, self.hydra_context.config_loader, overrides)
        if status:
            raise SystemExit(status)


def _data_of(config: DictConfig) -> dict[str, Any] | None:
    try:
        node = OmegaConf.to_container(config.data, resolve=True, enum_to_str=True)
        json.dumps(node)
    except Exception:  # the check of the points says what is wrong with it
        return None
    return {str(key): value for key, value in node.items()} if isinstance(node, dict) else None


def _resolve_folder(config: DictConfig) -> None:
    from cifar_lab.sweep.folder import resolve

    with read_write(config), open_dict(config):
        config.hydra.sweep.dir = str(resolve(config.hydra.sweep.dir))
