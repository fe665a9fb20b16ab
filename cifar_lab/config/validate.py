"""Whether a composed configuration can be built: every wrong value is one clear line.

Nodes with a ``_target_`` are `targets`'; the rest is ranges and rules that no constructor can see.
Nothing is built here.
"""

from __future__ import annotations

import inspect
import json
import math
import re
from typing import Any

from omegaconf import MISSING, DictConfig, OmegaConf

from cifar_lab.config.compose import (
    PARTS_LEFT_OUT_BY_NULL,
    plain,
    run_config,
    typed_overrides,
)
from cifar_lab.config.messages import suggestion
from cifar_lab.config.schema import Root
from cifar_lab.config.targets import check_has_target, check_target, locate, shown, target_nodes
from cifar_lab.errors import InputError
from cifar_lab.records.digest import flatten, key_of
from cifar_lab.records.processes import World


def check(cfg: DictConfig) -> None:
    """Everything that can be known before anything is built.

    Raises:
        InputError: a key outside the schema, a ``_target_`` that doesn't exist or doesn't take the
            arguments given, a value of the wrong type, a number that is not finite or out of range.
    """
    check_resolved(run_config(cfg))


def check_resolved(config: dict[str, Any]) -> None:
    """`check` of what `run_config` gave."""
    schema = set(Root.__dataclass_fields__)
    for key in config:
        if key not in schema:
            raise InputError(f"{key}: unknown key{suggestion(key, sorted(schema))}; see --help")
    for key, value in config.items():
        if value == MISSING:
            raise InputError(f"{key}: a run needs one; --help lists the options of {key}")
    _check_nodes(config)
    _check_trainer(config)
    for path, node in target_nodes(config, ""):
        check_target(path, node)
    for key, value in flatten(config):
        for number in value if isinstance(value, list) else [value]:
            if isinstance(number, float) and not math.isfinite(number):
                raise InputError(f"{key}={value}: must be a finite number")
    _check_ranges(config)


def _check_nodes(config: dict[str, Any]) -> None:
    """Whether each group is a node that can be built, or parts that are."""
    for group in ("data", "augment", "model", "loss", "optimizer", "scheduler", "trainer"):
        if not isinstance(config.get(group), dict):
            raise InputError(
                f"{group}={shown(config.get(group))}: must be a node with a _target_; an option "
                f"is chosen with {group}=NAME, in a file with `- override /{group}: NAME` in its "
                "defaults"
            )
        check_has_target(group, config[group])
    augment = config["augment"]
    if augment["_target_"] == "cifar_lab.data.augment.Pipeline":
        parts = augment.get("transforms")
        for name, node in parts.items() if isinstance(parts, dict) else ():
            if isinstance(node, dict):
                check_has_target(f"augment.transforms.{name}", node)
    for group in PARTS_LEFT_OUT_BY_NULL:
        parts = config[group]
        if isinstance(parts, dict) and "_target_" in parts:
            raise InputError(
                f"{group}._target_={shown(parts['_target_'])}: must lie below a name of its own, "
                f"as in +{group}.mine._target_=..."
            )
        if not isinstance(parts, dict):
            raise InputError(
                f"{group}={shown(parts)[:60]}: must be parts, each under a name of its own, as in "
                f"+{group}.mine._target_=..."
            )
        for name, node in parts.items():
            if not isinstance(node, dict):
                raise InputError(
                    f"{group}.{name}={shown(node)}: must be a node with a _target_, or null to "
                    "leave it out"
                )
            check_has_target(f"{group}.{name}", node)


def _check_trainer(config: dict[str, Any]) -> None:
    """Arguments of Lightning's Trainer that a run can't have, each with what does it instead."""
    trainer = config["trainer"]
    instead = {
        "logger": "is the group logger; logger=none for none",
        "callbacks": "is the groups callbacks and monitors",
        "default_root_dir": "is hydra.run.dir",
        "barebones": (
            "leaves out checkpoints, loggers and metrics, and with them the record of a run; use "
            "callbacks=none monitors=none logger=none"
        ),
        "reload_dataloaders_every_n_epochs": (
            "reads nothing anew: images stay in memory, and each epoch has its own order"
        ),
        "limit_predict_batches": "a run predicts no more than its test; use limit_test_batches",
        "model_registry": "is of Lightning's ModelCheckpoint; checkpoints lie in the run folder",
    }
    for key, reason in instead.items():
        if key in trainer:
            raise InputError(f"trainer.{key}={json.dumps(trainer[key])}: {reason}")
    if trainer.get("overfit_batches") and config["data"].get("shuffle", True):
        raise InputError(
            f"trainer.overfit_batches={trainer['overfit_batches']}: takes the same images again "
            "and again, and they are shuffled; add data.shuffle=false, or use debug=overfit"
        )
    algorithm = trainer.get("gradient_clip_algorithm")
    if algorithm is not None and trainer.get("gradient_clip_val") is None:
        raise InputError(
            f"trainer.gradient_clip_algorithm={algorithm}: clips nothing without "
            "trainer.gradient_clip_val"
        )
    bar = any(_is_bar(node) for node in (config["monitors"] or {}).values())
    wants = trainer.get("enable_progress_bar")
    if isinstance(wants, bool) and wants != bar:
        instead_of = "add monitors=progress" if wants else "~monitors.progress leaves it out"
        raise InputError(f"trainer.enable_progress_bar={json.dumps(wants)}: {instead_of}")
    keeps = bool((config["callbacks"] or {}).get("checkpoints"))
    wants = trainer.get("enable_checkpointing")
    if isinstance(wants, bool) and wants != keeps:
        instead_of = (
            "add callbacks=checkpoints" if wants else "~callbacks.checkpoints leaves it out"
        )
        raise InputError(f"trainer.enable_checkpointing={json.dumps(wants)}: {instead_of}")


def _is_bar(node: Any) -> bool:
    return isinstance(node, dict) and str(node.get("_target_")).endswith("ProgressBar")


# Arguments of Trainer that Lightning takes any number for.
_LEAST = {
    "accumulate_grad_batches": 1,
    "check_val_every_n_epoch": 1,
    "log_every_n_steps": 0,
    "num_sanity_val_steps": -1,
    "gradient_clip_val": 0,
    "min_epochs": 0,
    "min_steps": 0,
}
# Threads that no machine has; torch makes as many as it is told until memory ends.
MOST_THREADS = 1024
# Arguments of torch's schedules that are divided by or stand for a length.
_ABOVE_0 = ("gamma", "step_size", "T_max", "T_0")


def _check_schedule(node: dict[str, Any]) -> None:
    """Of torch's, which take any number; ours check their own."""
    if not node["_target_"].startswith("torch."):
        return
    for name, value in node.items():
        if name == "milestones" and not (isinstance(value, list) and all(map(_is_count, value))):
            raise InputError(f"scheduler.{name}={shown(value)}: must be a list of whole numbers")
        if isinstance(value, bool) or not isinstance(value, int | float) or name == "last_epoch":
            continue
        given = f"scheduler.{name}={value}: must"
        if name in _ABOVE_0 and value <= 0:
            raise InputError(f"{given} be above 0")
        if value < 0:
            raise InputError(f"{given} be at least 0")


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _check_ranges(config: dict[str, Any]) -> None:
    optimizer, trainer = config["optimizer"], config["trainer"]
    for name, least_allowed in _LEAST.items():
        number = trainer.get(name)
        if number is not None and number < least_allowed:
            raise InputError(f"trainer.{name}={number}: must be at least {least_allowed}")
    for name, node in config["logger"].items():
        every = node.get("flush_logs_every_n_steps", 1)  # Lightning divides by it
        if isinstance(every, int) and every < 1:
            raise InputError(f"logger.{name}.flush_logs_every_n_steps={every}: must be at least 1")
    _check_schedule(config["scheduler"])
    smoothing = config["loss"].get("label_smoothing")
    if isinstance(smoothing, int | float) and not 0 <= smoothing < 1:
        raise InputError(f"loss.label_smoothing={smoothing}: must lie in [0, 1)")
    lr = optimizer.get("lr")
    if isinstance(lr, int | float) and lr <= 0:
        raise InputError(f"optimizer.lr={lr}: must be above 0, e.g. 0.01")
    epochs, steps = trainer.get("max_epochs"), trainer.get("max_steps", -1)
    if epochs is None and steps == -1:
        raise InputError("trainer.max_epochs=null: must be at least 1 (or set trainer.max_steps)")
    if epochs is not None and epochs < 1:
        raise InputError(
            f"trainer.max_epochs={epochs}: must be at least 1, or null with trainer.max_steps"
        )
    if steps is not None and steps != -1 and steps < 1:
        raise InputError(f"trainer.max_steps={steps}: must be at least 1, or -1 for no bound")
    least = trainer.get("min_epochs")
    if epochs is not None and least is not None and least > epochs:
        raise InputError(f"trainer.min_epochs={least}: must be at most max_epochs ({epochs})")
    longest = trainer.get("max_time")
    if isinstance(longest, str) and not re.fullmatch(r"\d+(:\d\d){3}", longest.strip()):
        raise InputError(
            f"trainer.max_time={longest}: must be days, hours, minutes and seconds, as "
            "00:01:30:00, or parts of them, as {minutes: 90}"
        )
    if longest is not None and not re.fullmatch(r"[^-]*[1-9][^-]*", str(longest)):
        raise InputError(f"trainer.max_time={longest}: must be above 0")
    if trainer.get("limit_train_batches") == 0:
        raise InputError("trainer.limit_train_batches=0: must be at least 1 batch (or a fraction)")
    if trainer.get("limit_test_batches") == 0:
        raise InputError(
            "trainer.limit_test_batches=0: must be at least 1 batch (or a fraction), for a run "
            "ends with its test"
        )
    tuned = config["tuned_batch_size"]
    if tuned is not None and tuned < 1:
        raise InputError(f"tuned_batch_size={tuned}: must be at least 1, or null")
    threads = config["threads"]
    if threads is not None and not 1 <= threads <= MOST_THREADS:
        raise InputError(f"threads={threads}: must lie in 1..{MOST_THREADS}, or null for all cores")
    steps = config["steps_per_call"]
    if steps is None or steps < 1:
        raise InputError(f"steps_per_call={json.dumps(steps)}: must be at least 1, the default")
    if config["seed"] < 0 or config["seed"] >= 2**32:
        raise InputError(f"seed={config['seed']}: must lie in 0..4294967295")


def check_not_a_sweep(cfg: DictConfig) -> None:
    """Raises InputError where a ``sweep=`` preset was chosen for what is one run."""
    given = {key_of(override) for override in typed_overrides(cfg.hydra)}
    missing = [key for key in cfg.hydra.sweeper.get("params") or {} if key not in given]
    if missing:
        name = cfg.hydra.runtime.choices.get("sweep") or "none"
        what = f"sweep={name}" if name != "none" else "hydra.sweeper.params"
        raise InputError(f"{what}: sweeps {', '.join(missing)}; it needs -m")


def check_hydra_callbacks(hydra: DictConfig) -> None:
    """Raises InputError for what Hydra would stumble over when the run folder is there."""
    from hydra.experimental.callback import Callback

    for name, node in plain(hydra.callbacks).items() if hydra.callbacks else ():
        path = f"hydra.callbacks.{name}"
        if not isinstance(node, dict):
            raise InputError(f"{path}={node}: must be a node with a _target_")
        check_target(path, node)
        kind = locate(path, node["_target_"])
        if inspect.isclass(kind) and not issubclass(kind, Callback):
            raise InputError(
                f"{path}._target_={node['_target_']}: must be a "
                "hydra.experimental.callback.Callback"
            )


def check_shared_folder(cfg: DictConfig, world: World) -> None:
    """Raises InputError where processes started side by side would each name another folder."""
    text = str(OmegaConf.to_container(cfg.hydra.run, resolve=False))
    if world.joined and ("${now:" in text or "${run_id:" in text):
        raise InputError(
            f"hydra.run.dir: the {world.size} processes that {world.launcher} started share one "
            "folder; name it, as in hydra.run.dir=outputs/runs/first"
        )


def check_devices(trainer: dict[str, Any], optimizer: dict[str, Any]) -> str:
    """The kind of device: cuda, mps or cpu.

    Raises:
        InputError: this machine doesn't have the devices or the precision asked for.
    """
    kind = accelerator(str(trainer.get("accelerator", "auto")))
    present = devices_present(kind)
    unit = {"cuda": "GPU(s)", "mps": "Apple GPU", "cpu": "CPU processes"}[kind]
    devices = trainer.get("devices", "auto")
    if isinstance(devices, int) and devices != -1 and not 1 <= devices <= present:
        raise InputError(
            f"trainer.devices={devices}: this machine has {present} {unit}; "
            f"must lie in 1..{present}, or -1 for all"
        )
    if isinstance(devices, list) and any(i >= present for i in devices):
        raise InputError(
            f"trainer.devices={devices}: this machine has {present} {unit}, counted from 0"
        )
    if trainer.get("sync_batchnorm") and kind != "cuda":
        raise InputError(
            f"trainer.sync_batchnorm=true: torch's SyncBatchNorm needs CUDA, and this is {kind}"
        )
    check_precision(str(trainer.get("precision", "32-true")), kind)
    check_fused(trainer, optimizer, kind)
    check_squares(trainer, optimizer)
    return kind


def check_averages(config: dict[str, Any]) -> None:
    """Raises InputError where a callback averages weights that are too coarse for it.

    In bfloat16, which has 8 bits, ``average + 0.01 * (weights - average)`` is ``average`` until the
    two are a fifth apart.
    """
    from lightning.pytorch.callbacks import StochasticWeightAveraging, WeightAveraging

    precision = str(config["trainer"].get("precision", "32-true"))
    if precision not in ("bf16-true", "16-true"):
        return
    for name, node in (config["callbacks"] or {}).items():
        kind = locate(f"callbacks.{name}", node["_target_"])
        if inspect.isclass(kind) and issubclass(kind, WeightAveraging | StochasticWeightAveraging):
            raise InputError(
                f"callbacks.{name}: averages of weights in half precision stand still; "
                f"trainer.precision={precision} must be {precision.partition('-')[0]}-mixed or "
                "32-true with it"
            )


def check_processes(trainer: dict[str, Any], kind: str, world: World) -> None:
    """Whether those who started this process started as many as the run has devices.

    Args:
        trainer: the resolved group.
        kind: of device, as `check_devices` gives it.
        world: who started this process.

    Raises:
        InputError: too few or too many processes, or a strategy whose processes can't be one run.
    """
    strategy, nodes = trainer.get("strategy"), trainer.get("num_nodes") or 1
    copies = strategy.get("start_method") if isinstance(strategy, dict) else strategy
    if any(word in str(copies) for word in ("spawn", "fork", "notebook")):
        raise InputError(
            f"trainer.strategy={copies}: its processes would be copies of this one, and all would "
            "write the record; use trainer.strategy=ddp"
        )
    if nodes > 1 and not world.launcher:
        raise InputError(
            f"trainer.num_nodes={nodes}: this process was started alone; start one for each "
            "device on every node, with srun or torchrun"
        )
    if not world.joined:
        return
    devices = _devices_per_node(trainer.get("devices", "auto"), kind)
    fits = world.size == devices * nodes and world.nodes in (None, nodes)
    if not fits or world.local_rank >= devices:
        raise InputError(
            f"trainer.devices={devices}: {world.launcher} started {world.size} processes "
            f"({world.said}), and a run is one for each device on each of trainer.num_nodes="
            f"{nodes}; set them so, or start a single process, which starts the others"
        )


def _devices_per_node(devices: object, kind: str) -> int:
    if isinstance(devices, list):
        return len(devices)
    if str(devices) in ("auto", "-1"):
        return devices_present(kind) if kind == "cuda" else 1
    names = [name for name in str(devices).split(",") if name.strip()]
    return int(names[0]) if len(names) == 1 and names[0].isdecimal() else len(names)


def devices_present(kind: str) -> int:
    """How many devices of a ``kind`` (`accelerator`) this machine has; of the CPU, processes."""
    import os

    import torch

    if kind == "cuda":  # no other kind asks CUDA for anything: a CPU run leaves the GPU alone
        return torch.cuda.device_count()
    return 1 if kind == "mps" else max(2, os.cpu_count() or 1)


def accelerator(name: str) -> str:
    """The kind of device that ``trainer.accelerator`` means here: cuda, mps or cpu.

    Raises:
        InputError: this machine has none, or there is no such kind.
    """
    kinds = {"auto": ("cuda", "mps"), "gpu": ("cuda", "mps"), "cuda": ("cuda",), "mps": ("mps",)}
    if name == "cpu":
        return "cpu"  # without a look at others: each job of a sweep on the CPU would start CUDA
    if name not in kinds:
        raise InputError(f"trainer.accelerator={name}: must be one of {', '.join((*kinds, 'cpu'))}")
    import torch

    def there(kind: str) -> bool:
        return torch.cuda.is_available() if kind == "cuda" else torch.backends.mps.is_available()

    found = next((kind for kind in kinds[name] if there(kind)), None)
    if found is None and name != "auto":
        raise InputError(
            f"trainer.accelerator={name}: this machine has none; use trainer.accelerator=auto"
        )
    return found or "cpu"


def check_fused(trainer: dict[str, Any], optimizer: dict[str, Any], kind: str) -> None:
    """Refuses fused steps where float16's scaler gets in their way; ``kind`` as `accelerator`."""
    scaled = str(trainer.get("precision", "32-true")) in ("16-mixed", "16")
    if not (scaled and optimizer.get("fused")):
        return
    # a fused step takes float16's scale out of the gradients itself: too late for clipping
    if trainer.get("gradient_clip_val") or kind == "mps":
        what = "on MPS" if kind == "mps" else "with trainer.gradient_clip_val"
        raise InputError(
            f"optimizer.fused=true: can't be used {what} and trainer.precision=16-mixed; "
            "set optimizer.fused=false"
        )
    # the rule of a first step differs then, and which one is the first only the device knows
    if dampening := optimizer.get("dampening"):
        raise InputError(
            f"optimizer.dampening={dampening}: can't be used with optimizer.fused=true and "
            "trainer.precision=16-mixed; set optimizer.fused=false"
        )


def check_squares(trainer: dict[str, Any], optimizer: dict[str, Any]) -> None:
    """Refuses squares of gradients in float16: the small ones are 0 there, and are divided by."""
    from torch import optim

    adaptive: tuple[type[optim.Optimizer], ...] = (
        *(optim.Adam, optim.NAdam, optim.RAdam, optim.Adamax, optim.Adafactor),
        *(optim.Adagrad, optim.Adadelta, optim.RMSprop),
    )
    kind = locate("optimizer", optimizer["_target_"])
    half = str(trainer.get("precision", "32-true")) == "16-true"
    if half and inspect.isclass(kind) and issubclass(kind, adaptive):
        raise InputError(
            f"trainer.precision=16-true: {kind.__name__} keeps squares of gradients, for which "
            "float16 is too coarse; use 16-mixed, bf16-true or optimizer=sgd"
        )


def check_precision(precision: str, kind: str) -> None:
    """Refuses a ``trainer.precision`` that this ``kind`` of device lacks (`accelerator`)."""
    import torch

    if kind == "cuda":
        # the question starts CUDA: asked where the answer matters
        lacks = precision.startswith("bf16") and not torch.cuda.is_bf16_supported()
    else:
        lacking = {
            "cpu": ("16", "transformer-engine"),
            "mps": ("64", "bf16", "transformer-engine"),
        }
        lacks = precision.startswith(lacking[kind])
    if lacks:
        advice = {"cpu": "32-true, 64-true or bf16-mixed", "mps": "32-true or 16-mixed"}
        raise InputError(
            f"trainer.precision={precision}: this device ({kind}) lacks it; "
            f"use {advice.get(kind, '32-true or 16-mixed')}"
        )


def emulates_bfloat16() -> bool:
    """Whether this processor is known to have no instructions for bfloat16.

    torch computes in it all the same, several times slower than in float32 (docs/benchmarks.md).
    """
    import torch

    has = torch.cpu.get_capabilities()
    # the last is ARM's
    known = [has[name] for name in ("avx512_bf16", "amx_bf16", "bf16") if name in has]
    return bool(known) and not any(known)


def precision_warning(precision: str, kind: str) -> str | None:
    """The line about a ``trainer.precision`` that this ``kind`` of device emulates, if any."""
    import torch

    if not precision.startswith("bf16") or kind != "cpu" or not emulates_bfloat16():
        return None
    name = torch.cpu.get_capabilities().get("cpu_name", "this processor")
    return (
        f"trainer.precision={precision}: {name} has no instructions for bfloat16 and emulates them "
        "slowly; trainer.precision=32-true is faster here"
    )
