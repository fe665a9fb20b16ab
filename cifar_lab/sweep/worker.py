"""What runs in the processes that the supervisor starts: the check of all points, and one job.

The supervising part never imports this module: it names its functions by their import path.
"""

from __future__ import annotations

import json
import os
import platform
import socket
import time
from pathlib import Path

from hydra import version
from hydra.core.utils import setup_globals
from omegaconf import DictConfig

from cifar_lab import checks, config, identity
from cifar_lab.errors import InputError
from cifar_lab.job import Job, run_under_hydra
from cifar_lab.record import command_line
from cifar_lab.sweep.folder import close_record
from cifar_lab.sweep.tasks import Check, Findings, Task


def check(request: Check) -> int:
    """Builds what the points are made of, once per part, and answers with the `Findings`."""
    _register()
    import torch

    wrong: list[tuple[int, str]] = []
    seen: set[str] = set()
    kinds, per_job = [], 1
    for index, (cfg, resolved) in enumerate(zip(request.cfgs, request.configs, strict=True)):
        try:
            checks.check_resolved(resolved)
            kinds.append(checks.accelerator(str(resolved["trainer"].get("accelerator", "auto"))))
            checks.check_across(resolved)
            per_job = max(per_job, _devices(resolved["trainer"].get("devices", 1)))
            parts = {json.dumps([key, node], sort_keys=True) for key, node in resolved.items()}
            # seeds and threads are only numbers; every other part is built once
            new = {part for part in parts - seen if not part.startswith(('["seed"', '["threads"'))}
            if new:
                _build(cfg)
            seen |= parts
        except InputError as error:
            wrong.append((index, str(error)))
        except Exception as error:  # what no check foresees is wrong all the same
            wrong.append((index, config.first_line(f"{type(error).__name__}: {error}")))
    kind = "cuda" if "cuda" in kinds else kinds[0] if kinds else "cpu"
    count = {"cuda": torch.cuda.device_count(), "mps": 1, "cpu": 1}[kind]
    request.answer.send(Findings(wrong, kind, count, per_job if kind == "cuda" else 1))
    return 0


def _build(cfg: DictConfig) -> None:
    job = Job(cfg, run_dir=Path("unused").absolute(), overrides=[], started=time.perf_counter())
    job.build()


def _devices(devices: object) -> int:
    if isinstance(devices, list):
        raise InputError(
            f"trainer.devices={devices}: the sweep places its jobs on devices; give a number"
        )
    return devices if isinstance(devices, int) and devices > 0 else 1


def run_job(task: Task) -> int:
    """Runs the job as the door would run it alone; what it can't say itself is put on record."""
    started = time.perf_counter()
    _register()
    job = Job(task.cfg, run_dir=task.run_dir, overrides=list(task.overrides), started=started)
    try:
        if job.finished_before():
            return 0
        job.build()
        job.make_folder()
        return run_under_hydra(job)
    except Exception as error:
        text = f"{type(error).__name__}: {error}"
        if isinstance(error, InputError):
            text, status = str(error), 2
        else:
            import traceback

            traceback.print_exc()
            status = 1
        print(f"cifar_lab: {text}", flush=True)
        close_record(
            task.run_dir,
            {
                "host": socket.gethostname(),
                "pid": os.getpid(),
                "command": command_line(task.overrides),
                "overrides": list(task.overrides),
                "config_digest": identity.digest(job.config),
                "config": job.config,
                "seed": job.config["seed"],
                "device": platform.machine(),
            },
            "failed",
            config.first_line(text),
        )
        return status


def _register() -> None:
    version.setbase("1.3")  # as the door does: a job stays in the working directory
    setup_globals()
    config.register()
