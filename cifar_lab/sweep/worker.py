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
from typing import Any

from hydra import version
from hydra.core.utils import setup_globals
from omegaconf import DictConfig

from cifar_lab.config.compose import register
from cifar_lab.config.messages import first_line
from cifar_lab.config.validate import (
    accelerator,
    check_devices,
    check_resolved,
    precision_warning,
)
from cifar_lab.data.datamodule import DataModule
from cifar_lab.data.dataset import Dataset
from cifar_lab.errors import InputError
from cifar_lab.records.credentials import guard_streams, learn
from cifar_lab.records.digest import config_digest
from cifar_lab.records.record import Data, close_for, command_line
from cifar_lab.run import compatibility
from cifar_lab.run.build import (
    ALONE,
    FIT_TOGETHER,
    build,
    build_data,
    build_optimizer,
    build_schedule,
)
from cifar_lab.run.networks import build_model
from cifar_lab.run.run import Request, data_warnings, run
from cifar_lab.run.trials import try_optimizer
from cifar_lab.sweep.tasks import Check, Findings, Found, Open, Task, data_key
from cifar_lab.training.initial_weights import freeze


def check(request: Check) -> int:
    """Builds what the points are made of, once per part, and replies with the `Findings`."""
    _register()
    learn(request.configs)
    import torch

    wrong: list[tuple[int, str]] = []
    seen: set[tuple[str, str]] = set()
    kinds, per_job = [], 1
    datasets: dict[str, Dataset] = {}
    warnings: dict[str, None] = {}
    for index, (cfg, resolved) in enumerate(zip(request.cfgs, request.configs, strict=True)):
        try:
            trainer = resolved["trainer"]
            parts = {(key, json.dumps(node, sort_keys=True)) for key, node in resolved.items()}
            # two that are fine each with another may not fit each other
            together = json.dumps([resolved[key] for key in FIT_TOGETHER], sort_keys=True)
            parts.add((" ".join(FIT_TOGETHER), together))
            if parts - seen:
                check_resolved(resolved)
            kinds.append(accelerator(str(trainer.get("accelerator", "auto"))))
            precision = str(trainer.get("precision", "32-true"))
            if line := precision_warning(precision, kinds[-1]):
                warnings[line] = None
            compatibility.check(resolved)
            per_job = max(per_job, _devices(trainer.get("devices", 1)))
            new = {key for key, _ in parts - seen} - {"seed", "threads"}
            known = datasets.get(data_key(resolved))
            module = _build_new(cfg, resolved, new, known)
            if module is not None and data_key(resolved) not in datasets:
                datasets[data_key(resolved)] = module.dataset
                warnings |= dict.fromkeys(data_warnings(resolved, Data(**module.facts)))
            seen |= parts
        except InputError as error:
            wrong.append((index, str(error)))
        except Exception as error:  # what no check foresees is wrong all the same
            wrong.append((index, first_line(f"{type(error).__name__}: {error}")))
    kind = "cuda" if "cuda" in kinds else kinds[0] if kinds else "cpu"
    count = torch.cuda.device_count() if kind == "cuda" else 1
    if kind != "cuda":
        per_job = 1
    if wrong:
        request.reply.send(Findings(wrong, kind, count, per_job))
        return 0
    # the first point with a data group has been built with all that belongs to it
    found = [datasets[data_key(resolved)] for resolved in request.configs]
    digests, work = [data.digest for data in found], _work(request, found)
    request.reply.send(Findings(wrong, kind, count, per_job, work, digests, list(warnings)))
    return 0


def open_data(request: Open) -> int:
    """Finds the images of points that have run before, and replies with the `Found` of each."""
    _register()
    found = []
    for cfg in request.cfgs:
        try:
            data = build_data(cfg).at_hand()
            found.append(Found() if data is None else Found(digest=data.digest))
        except InputError as error:
            found.append(Found(error=str(error)))
        except Exception as error:
            found.append(Found(error=first_line(f"{type(error).__name__}: {error}")))
    request.reply.send(found)
    return 0


def _build_new(
    cfg: DictConfig, resolved: dict[str, Any], groups: set[str], dataset: Dataset | None
) -> DataModule | None:
    """Builds the parts of these groups; all of the run, if they need others; then its data."""
    from cifar_lab.training.schedules import TorchSchedule

    alone = groups <= set(ALONE) and dataset is not None
    # one of torch's schedulers is laid out for a trainer and its data
    if alone and not (groups and isinstance(build_schedule(cfg), TorchSchedule)):
        assert dataset is not None
        check_devices(resolved["trainer"], resolved["optimizer"])
        if "optimizer" in groups:
            frozen = resolved.get("freeze") or []
            key = json.dumps([resolved["model"], frozen], sort_keys=True)
            network = _network(key, frozen, cfg, dataset)
            try_optimizer(cfg, build_optimizer(cfg), network)
        return None
    return build(cfg, resolved, Path("unused").absolute()).data


_networks: dict[str, Any] = {}


def _network(node: str, frozen: list[str], cfg: DictConfig, dataset: Dataset) -> Any:
    """The network of the points at hand, made once: what an optimizer is tried on."""
    if node not in _networks:
        _networks.clear()  # one at a time: they may be large
        _networks[node] = build_model(cfg, dataset)
        freeze(_networks[node], frozen)
    return _networks[node]


def _work(request: Check, datasets: list[Dataset]) -> list[float]:
    operations: dict[str, int] = {}
    work = []
    for cfg, resolved, data in zip(request.cfgs, request.configs, datasets, strict=True):
        shape = [len(data.classes), *data.image_size]
        network = json.dumps([resolved["model"], shape], sort_keys=True)
        if network not in operations:
            operations[network] = _operations(cfg, data)
        work.append(float(operations[network] * (resolved["trainer"].get("max_epochs") or 1)))
    return work


def _operations(cfg: DictConfig, data: Dataset) -> int:
    """Of the forward pass of two images, which is not computed; 0 where it can't be counted."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    try:
        with torch.device("meta"), FlopCounterMode(display=False) as counter:
            build_model(cfg, data)(torch.empty(2, *data.image_size))
    except Exception:  # a network that looks at its values, for instance
        return 0
    return int(counter.get_total_flops())


def _devices(devices: object) -> int:
    if isinstance(devices, list):
        raise InputError(
            f"trainer.devices={devices}: the sweep places its jobs on devices; give a number"
        )
    return devices if isinstance(devices, int) and devices > 0 else 1


def run_job(task: Task) -> int:
    """Runs the job as it would run alone; what it can't say itself is put on record."""
    started = time.perf_counter()
    _register()
    os.environ.update(task.cfg.hydra.job.env_set)
    asked = Request(
        task.cfg,
        run_dir=task.run_dir,
        overrides=task.overrides,
        started=started,
        images=task.images or None,
    )
    try:
        if task.on_gpus:
            check_gpu(task.cfg)
        return run(asked)
    except Exception as error:
        text = f"{type(error).__name__}: {error}"
        if isinstance(error, InputError):
            text, status = str(error), 2
        else:
            import traceback

            traceback.print_exc()
            status = 1
        print(f"cifar_lab: {text}", flush=True)
        close_for(
            task.run_dir,
            status="failed",
            error=first_line(text),
            host=socket.gethostname(),
            pid=os.getpid(),
            command=command_line(task.overrides),
            overrides=task.overrides,
            config_digest=config_digest(asked.config),
            config=asked.config,
            seed=asked.config["seed"],
            device=platform.machine(),
        )
        return status


def check_gpu(cfg: DictConfig) -> None:
    """Raises InputError where the job would train on the CPU in a place that is a GPU's."""
    name = str(cfg.trainer.get("accelerator", "auto"))
    if name != "cpu" and accelerator(name) == "cpu":
        visible = os.environ.get("CUDA_VISIBLE_DEVICES")
        raise InputError(
            f"CUDA_VISIBLE_DEVICES={visible}: the sweep gave this job that GPU, and torch finds "
            "none there; see nvidia-smi, or set trainer=cpu"
        )


def _register() -> None:
    guard_streams()
    version.setbase("1.3")  # as the command line does: a job stays in the working directory
    setup_globals()
    register()
