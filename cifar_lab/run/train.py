"""A run for a notebook: what the command line does, in this process."""

from __future__ import annotations

import time
from collections.abc import Sequence

from cifar_lab.config.compose import compose, path_at
from cifar_lab.config.overrides import check_mode, check_renamed, check_unique, normalized
from cifar_lab.config.targets import target_nodes
from cifar_lab.config.validate import check_not_a_sweep
from cifar_lab.errors import InputError
from cifar_lab.records.record import record_of
from cifar_lab.run.load import Run, load_run
from cifar_lab.run.run import Request, run


def train(overrides: Sequence[str] = ()) -> Run:
    """Trains and tests, as ``python -m cifar_lab`` with these words; the run as `load_run` has it.

    A folder (``hydra.run.dir=…``) that holds the same run is continued, or read if it is finished.

    Args:
        overrides: e.g. ``["model=resnet10", "optimizer.lr=0.03"]``.

    Raises:
        InputError: what the command line answers with one line and status 2.
        RuntimeError: the run failed or diverged; its record says why.
        Interrupted: it was stopped; the same call goes on.
    """
    from hydra.core.hydra_config import HydraConfig
    from hydra.core.utils import env_override

    started = time.perf_counter()
    if isinstance(overrides, str):
        raise InputError(f'{overrides}: must be a list, as in ["model=cnn", "seed=1"]')
    words = list(overrides)
    for word in words:
        if word.startswith("-"):
            raise InputError(f"{word}: train takes key=value; flags are the command line's")
        check_renamed(word)
    check_unique(words)
    check_mode(words, sweep=False)
    words = normalized(words)
    cfg = compose(words)
    check_not_a_sweep(cfg)
    HydraConfig.instance().set_config(cfg)
    run_dir = path_at(cfg, "hydra.run.dir").absolute()
    with env_override(cfg.hydra.job.env_set):
        asked = Request(cfg, run_dir=run_dir, overrides=words, started=started)
        status = run(asked)
    if status == 0:
        # the person's own configuration, which the folder's has just been found to be
        own = [str(node["_target_"]) for _, node in target_nodes(asked.config, "")]
        return load_run(run_dir, trust=own)
    record = record_of(run_dir)
    reason = f"exit status {status}" if record is None else record.error or record.status
    raise RuntimeError(f"{run_dir}: {reason}")
