"""Hydra's own job runner, entered here and nowhere else: callbacks, train.log and ``.hydra/``."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, cast

from cifar_lab.config.messages import first_line
from cifar_lab.config.schema import CONFIG_NAME
from cifar_lab.config.written import without_secrets
from cifar_lab.errors import InputError
from cifar_lab.records.credentials import learn
from cifar_lab.records.processes import rank

if TYPE_CHECKING:
    from hydra._internal.callbacks import Callbacks
    from hydra.core.config_loader import ConfigLoader
    from omegaconf import DictConfig


def learn_secrets(hydra: DictConfig) -> None:
    """Remembers what Hydra's node has of them: no run's configuration holds it."""
    from omegaconf import OmegaConf

    for node in (hydra.callbacks, hydra.job.env_set):
        if node is not None:
            learn(OmegaConf.to_container(node, resolve=True))


def make_callbacks(cfg: DictConfig) -> Callbacks:
    """Those of ``hydra.callbacks``, with the secrets that they are given.

    Raises:
        InputError: one can't be built, or is none of Hydra's.
    """
    from hydra._internal.callbacks import Callbacks
    from hydra.errors import InstantiationException
    from hydra.experimental.callback import Callback
    from hydra.utils import instantiate

    made = Callbacks()
    for name, node in (cfg.hydra.callbacks or {}).items():
        path = f"hydra.callbacks.{name}"
        try:
            callback = instantiate(node)
        except InstantiationException as error:
            raise InputError(f"{path}: {first_line(str(error.__cause__ or error))}") from error
        if not isinstance(callback, Callback):
            given = type(callback).__name__
            raise InputError(
                f"{path}._target_: gives {given}; must give a hydra.experimental.callback.Callback"
            )
        made.callbacks.append(callback)
    return made


def run_in_hydra_job(
    cfg: DictConfig, run_dir: Path, task: Callable[[], int], callbacks: Callbacks
) -> int:
    """Calls ``task`` as Hydra would in ``run_dir``, and returns its exit status."""
    from hydra.core.global_hydra import GlobalHydra
    from hydra.core.utils import run_job
    from hydra.types import HydraContext, RunMode
    from omegaconf import open_dict, read_write

    with read_write(cfg.hydra), open_dict(cfg.hydra):
        cfg.hydra.mode = RunMode.RUN
        cfg.hydra.run.dir = str(run_dir)
        kept = cfg.hydra.output_subdir
        if rank() > 0 or (kept is not None and (run_dir / kept).exists()):
            cfg.hydra.output_subdir = None  # the first start's is never overwritten
    cfg = without_secrets(cfg)  # it is what Hydra writes down; the task has its own
    # a process that a sweep started has composed nothing; running a job doesn't either
    known = GlobalHydra.instance().is_initialized()
    loader = cast("ConfigLoader", GlobalHydra.instance().config_loader() if known else None)
    callbacks.on_run_start(config=cfg, config_name=CONFIG_NAME)
    try:
        done = run_job(
            task_function=lambda _: task(),
            config=cfg,
            job_dir_key="hydra.run.dir",
            job_subdir_key=None,
            hydra_context=HydraContext(config_loader=loader, callbacks=callbacks),
            configure_logging=rank() == 0,
        )
    except OSError as error:  # .hydra or train.log: the task itself lets nothing out
        print(
            f"cifar_lab: {error.filename or run_dir} can't be written ({error.strerror}); "
            "free some space there, or choose another hydra.run.dir",
            file=sys.stderr,
        )
        return 1
    callbacks.on_run_end(config=cfg, config_name=CONFIG_NAME, job_return=done)
    status: int = done.return_value
    return status
