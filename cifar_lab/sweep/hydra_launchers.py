"""A grid that one of Hydra's own launchers runs, in this process, in others, or on other machines.

Only how a job ended is ours to say, and its record says it: what a launcher hands back depends on
where its jobs ran.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from cifar_lab.config.messages import COMPOSING_RAISES, explain, first_line
from cifar_lab.config.overrides import check_merged, normalized
from cifar_lab.config.written import without_secrets
from cifar_lab.errors import InputError, Interrupted, JobFailed
from cifar_lab.records.record import record_of
from cifar_lab.sweep.folder import SweepFolder
from cifar_lab.sweep.launch import print_continue
from cifar_lab.sweep.points import at, split, varying

if TYPE_CHECKING:
    from hydra.core.config_loader import ConfigLoader
    from hydra.core.utils import JobReturn
    from hydra.plugins.launcher import Launcher
    from omegaconf import DictConfig


def run_grid(
    master: DictConfig, loader: ConfigLoader, launcher: Launcher, batch: Sequence[Sequence[str]]
) -> int:
    """Runs the batch to its end and lists what failed; returns the exit status.

    Args:
        master: the sweep's own configuration, ``hydra.sweep.dir`` among it.
        loader: Hydra's.
        launcher: set up.
        batch: each job's overrides.

    Raises:
        InputError: a job that can't be composed, or a folder that can't be had; nothing has run.
        Interrupted: stopped; the command that continues has been printed.
    """
    from omegaconf import OmegaConf

    swept = varying(batch)
    labels = [
        {key.lstrip("+~"): value for key, value in map(split, job) if key in swept} for job in batch
    ]
    jobs = [normalized(overrides) for overrides in batch]
    folders = [
        _folder(master, loader, job, number, label)
        for number, (job, label) in enumerate(zip(jobs, labels, strict=True))
    ]
    sweep = SweepFolder(Path(master.hydra.sweep.dir))
    returned: Sequence[JobReturn] = []
    lost = ""
    with sweep.locked():
        OmegaConf.save(
            without_secrets(master), sweep.path / "multirun.yaml"
        )  # as Hydra's sweeper does
        try:
            returned = launcher.launch(jobs, initial_job_idx=0)
        except Interrupted as stop:
            print_continue(sweep.path)
            stop.told = True
            raise
        except Exception as error:  # whatever a launcher makes of a process that it lost
            lost = first_line(f"{type(error).__name__}: {error}")
    failed = []
    for number, label in enumerate(labels):
        done = returned[number] if number < len(returned) else None
        folder = _reported(done) or folders[number]
        if reason := failure(folder, done, lost):
            name = " ".join(f"{key}={value}" for key, value in label.items()) or folder.name
            failed.append(f"  {name}: {reason}; folder: {folder}")
    if lost:
        print(f"cifar_lab: the launcher stopped: {lost}", file=sys.stderr)
    if failed:
        print("\n".join([f"{len(failed)} of {len(jobs)} jobs failed:", *failed]), file=sys.stderr)
    return 1 if failed or lost else 0


def _folder(
    master: DictConfig,
    loader: ConfigLoader,
    overrides: Sequence[str],
    number: int,
    label: dict[str, str],
) -> Path:
    """Where a job will run, as far as it is known before; raises InputError as `run_grid`."""
    from omegaconf import open_dict
    from omegaconf.errors import OmegaConfBaseException

    try:
        cfg = loader.load_sweep_config(master, list(overrides))
        check_merged(cfg, overrides)
        if cfg.ablation is not None:
            raise InputError(f"ablation={cfg.ablation}: needs hydra/launcher=slots")
    except COMPOSING_RAISES as error:
        raise at(label, str(explain(error, list(overrides)))) from error
    with open_dict(cfg):
        cfg.hydra.job.id = cfg.hydra.job.num = number
    with suppress(OmegaConfBaseException):  # what only the launcher can know, its own job's number
        return Path(master.hydra.sweep.dir, str(cfg.hydra.sweep.subdir)).absolute()
    return Path(master.hydra.sweep.dir).absolute()


def _reported(done: JobReturn | None) -> Path | None:
    if done is None or done.hydra_cfg is None:
        return None
    return Path(str(done.hydra_cfg.hydra.runtime.output_dir))


def failure(folder: Path, done: JobReturn | None, lost: str) -> str:
    """Why a job counts as failed; empty where its record says that it doesn't."""
    record = record_of(folder)
    if record is not None and record.status not in ("finished", "pruned"):
        return f"{record.status}: {record.error or 'its process is gone'}"
    # not by `return_value`, which raises what it holds and writes to standard error
    raised = getattr(done, "_return_value", None)
    if isinstance(raised, JobFailed):  # beside a record, too: of another run in the same folder
        return raised.reason
    if isinstance(raised, Exception):
        return first_line(f"{type(raised).__name__}: {raised}")
    return "" if record else lost or "left no record"
