"""Whether a composed configuration can be built: every wrong value is one clear line.

Third-party nodes are held against the signatures of their targets (docs/decisions/0002); the rest
is ranges and rules that no constructor can see. Nothing is built here.
"""

from __future__ import annotations

import inspect
import json
import math
import pkgutil
from collections.abc import Iterator, Sequence
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from omegaconf import DictConfig

from cifar_lab.config import Root, first_line, run_config, suggestion
from cifar_lab.errors import InputError
from cifar_lab.identity import flatten

# Arguments that the door gives when it builds a group: never in YAML.
RUNTIME_ARGUMENTS = {
    "data": {"augment", "seed"},
    "optimizer": {"params"},
    "scheduler": {"step", "total_steps"},
    "trainer": {"callbacks", "logger", "default_root_dir"},
}
# What a `_target_` read back from a run folder may come from.
MODULES_OF_A_RUN = (
    "cifar_lab.data",
    "cifar_lab.model",
    "cifar_lab.training",
    "torch.nn",
    "torch.optim",
    "torchvision.models",
    "torchvision.transforms",
    "lightning.pytorch.Trainer",
    "lightning.pytorch.trainer",
    "lightning.pytorch.callbacks",
    "lightning.pytorch.loggers",
    "lightning.pytorch.strategies",
    "lightning.pytorch.profilers",
    "lightning.pytorch.plugins",
    "torchmetrics",
)


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
    for path, node in _target_nodes(config, ""):
        _check_target(path, node)
    for key, value in flatten(config):
        for number in value if isinstance(value, list) else [value]:
            if isinstance(number, float) and not math.isfinite(number):
                raise InputError(f"{key}={value}: must be a finite number")
    _check_ranges(config)


def _target_nodes(node: Any, path: str) -> Iterator[tuple[str, dict[str, Any]]]:
    if isinstance(node, dict):
        if "_target_" in node:
            yield path, node
        for key, value in node.items():
            yield from _target_nodes(value, f"{path}.{key}" if path else str(key))
    elif isinstance(node, list):
        for index, value in enumerate(node):
            yield from _target_nodes(value, f"{path}[{index}]")


def _check_target(path: str, node: dict[str, Any]) -> None:
    target = locate(path, node["_target_"])
    arguments = {key: value for key, value in node.items() if not _is_instantiate_key(key)}
    try:
        signature = inspect.signature(target)
    except ValueError:  # built in C, no signature to hold the arguments against
        return
    parameters = signature.parameters
    takes_any = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    runtime = RUNTIME_ARGUMENTS.get(path, set())
    if path.startswith("logger."):
        runtime = {"save_dir"}
    known = [name for name in parameters if name not in runtime]
    for name in arguments:
        if name not in known and not takes_any:
            raise InputError(
                f"{path}.{name}: unknown key{suggestion(name, known)}; "
                f"{node['_target_']} takes {', '.join(known)}"
            )
    if not node.get("_partial_", False):
        for name, parameter in parameters.items():
            required = parameter.default is parameter.empty and parameter.kind in (
                parameter.POSITIONAL_OR_KEYWORD,
                parameter.KEYWORD_ONLY,
            )
            if required and name not in arguments and name not in runtime:
                raise InputError(f"{path}.{name}: missing; {node['_target_']} needs it")
    _check_types(path, target, arguments)


def _is_instantiate_key(key: str) -> bool:
    return key in ("_target_", "_partial_", "_args_", "_convert_", "_recursive_")


def locate(path: str, target: Any) -> Any:
    """The class or function that ``path._target_`` names; raises InputError."""
    try:
        found = pkgutil.resolve_name(str(target))
    except Exception as error:
        raise InputError(f"{path}._target_={target}: {first_line(str(error))}") from error
    if not callable(found):
        raise InputError(f"{path}._target_={target}: is no class or function")
    return found


def check_targets_of_record(config: dict[str, Any], *, also: Sequence[str] = ()) -> None:
    """Whether a configuration read back from a run folder names nothing but parts of a run.

    A folder may come from anybody, and a ``_target_`` is code that runs. Call it before anything is
    built from a record or from ``.hydra/``. Both the name and where the object was defined count:
    ``torch.nn.os.system`` is none of torch.nn.

    Args:
        config: resolved, as the record has it.
        also: further modules to accept, those of the person's own networks.

    Raises:
        InputError: a ``_target_`` from elsewhere, or a value that is still to be interpolated.
    """
    allowed = (*MODULES_OF_A_RUN, *also)
    for path, node in _target_nodes(config, ""):
        target = str(node["_target_"])
        inside = _lies_in(target.replace(":", "."), allowed)
        if not inside or not _lies_in(str(locate(path, target).__module__), allowed):
            raise InputError(
                f"{path}._target_={target}: not a part of a run ({', '.join(allowed)}); "
                "it was not called"
            )
    for key, value in flatten(config):
        if "${" in json.dumps(value):
            raise InputError(f"{key}={_shown(value)}: a record holds values, no interpolation")


def _lies_in(name: str, modules: Sequence[str]) -> bool:
    return any(name == module or name.startswith(f"{module}.") for module in modules)


def _check_types(path: str, target: Any, arguments: dict[str, Any]) -> None:
    from pydantic import ConfigDict, PydanticUserError, TypeAdapter, ValidationError
    from pydantic.errors import PydanticSchemaGenerationError

    function = target.__init__ if inspect.isclass(target) else target
    try:
        hints = get_type_hints(function)
    except Exception:  # names that exist for type checkers only
        return
    for name, value in arguments.items():
        hint = hints.get(name, Any)
        if isinstance(value, dict | list) and list(_target_nodes(value, "")):
            continue  # built from nodes that are checked themselves
        try:
            adapter = TypeAdapter(hint, config=ConfigDict(arbitrary_types_allowed=True))
            # as JSON: YAML's lists stand for tuples there, but text doesn't stand for numbers
            adapter.validate_json(json.dumps(value), strict=True)
        except ValidationError as error:
            allowed = _in_words(hint) or first_line(error.errors()[0]["msg"])
            raise InputError(f"{path}.{name}={_shown(value)}: must be {allowed}") from error
        except (PydanticSchemaGenerationError, PydanticUserError, NameError, TypeError):
            continue  # a type that no YAML value can be held against


def _shown(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _in_words(hint: Any) -> str:
    # "an integer or null", for the types that a YAML value can have; others are left out
    if hint in _WORDS:
        return _WORDS[hint]
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is Literal:
        return ", ".join(str(item) for item in arguments)
    if origin in (Union, UnionType):
        words = [word for argument in arguments if (word := _in_words(argument))]
        return " or ".join(dict.fromkeys(words))
    if origin is not None and inspect.isclass(origin) and issubclass(origin, Sequence):
        inner = _in_words(arguments[0]) if arguments else ""
        return f"a list ({inner} each)" if inner else "a list"
    return ""


_WORDS: dict[Any, str] = {
    int: "an integer",
    float: "a number",
    bool: "true or false",
    str: "text",
    NoneType: "null",
}


def _check_ranges(config: dict[str, Any]) -> None:
    optimizer, trainer = config["optimizer"], config["trainer"]
    lr = optimizer.get("lr")
    if isinstance(lr, int | float) and lr <= 0:
        raise InputError(f"optimizer.lr={lr}: must be above 0, e.g. 0.01")
    epochs, steps = trainer.get("max_epochs"), trainer.get("max_steps", -1)
    if epochs is None and steps == -1:
        raise InputError("trainer.max_epochs=null: must be at least 1 (or set trainer.max_steps)")
    if epochs is not None and epochs < 1:
        raise InputError(f"trainer.max_epochs={epochs}: must be at least 1")
    if trainer.get("limit_train_batches") == 0:
        raise InputError("trainer.limit_train_batches=0: must be at least 1 batch (or a fraction)")
    threads = config["threads"]
    if threads is not None and threads < 1:
        raise InputError(f"threads={threads}: must be at least 1, or null for all cores")
    steps = config["steps_per_call"]
    if steps is not None and steps < 1:
        raise InputError(f"steps_per_call={steps}: must be at least 1, or null to suit the device")
    for key, least in (("slots", 1), ("retries", 0)):
        if config[key] is not None and config[key] < least:
            raise InputError(f"{key}={config[key]}: must be at least {least}")
    if config["job_timeout"] is not None and config["job_timeout"] <= 0:
        raise InputError(f"job_timeout={config['job_timeout']}: must be above 0 seconds, or null")
    if config["seed"] < 0 or config["seed"] >= 2**32:
        raise InputError(f"seed={config['seed']}: must lie in 0..4294967295")


def check_not_a_sweep(cfg: DictConfig) -> None:
    """Raises InputError where a ``sweep=`` preset was chosen for what is one run."""
    given = {override.partition("=")[0].lstrip("+~") for override in cfg.hydra.overrides.task}
    missing = [key for key in cfg.hydra.sweeper.get("params") or {} if key not in given]
    if missing:
        name = cfg.hydra.runtime.choices.get("sweep")
        raise InputError(f"sweep={name}: sweeps {', '.join(missing)}; it needs -m")


def check_across(config: dict[str, Any]) -> None:
    """Rules between groups that no constructor can see; raises InputError."""
    for name, callback in config["callbacks"].items() if config["callbacks"] else ():
        monitor = str(callback.get("monitor", ""))
        stops = callback["_target_"].endswith("EarlyStopping")
        if stops and monitor.startswith("val/") and config["data"].get("val_size") == 0:
            raise InputError(
                f"callbacks.{name}.monitor={monitor}: nothing is held out with data.val_size=0; "
                "set data.val_size, or leave the callback out"
            )


def check_devices(trainer: dict[str, Any], optimizer: dict[str, Any]) -> str:
    """The kind of device: cuda, mps or cpu.

    Raises:
        InputError: this machine doesn't have the devices or the precision asked for.
    """
    import os

    import torch

    kind = accelerator(str(trainer.get("accelerator", "auto")))
    cpus = max(2, os.cpu_count() or 1)
    present = {"cuda": torch.cuda.device_count(), "mps": 1, "cpu": cpus}[kind]
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
    _check_precision(str(trainer.get("precision", "32-true")), kind)
    _check_fused(trainer, optimizer, kind)
    return kind


def accelerator(name: str) -> str:
    """The kind of device that ``trainer.accelerator`` means here: cuda, mps or cpu.

    Raises:
        InputError: this machine has none, or there is no such kind.
    """
    import torch

    cuda, mps = torch.cuda.is_available(), torch.backends.mps.is_available()
    found = {
        "auto": "cuda" if cuda else "mps" if mps else "cpu",
        "gpu": "cuda" if cuda else "mps" if mps else "",
        "cuda": "cuda" if cuda else "",
        "mps": "mps" if mps else "",
        "cpu": "cpu",
    }
    if name not in found:
        raise InputError(f"trainer.accelerator={name}: must be one of {', '.join(found)}")
    if not found[name]:
        raise InputError(
            f"trainer.accelerator={name}: this machine has none; use trainer.accelerator=auto"
        )
    return found[name]


def _check_fused(trainer: dict[str, Any], optimizer: dict[str, Any], kind: str) -> None:
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


def _check_precision(precision: str, kind: str) -> None:
    import torch

    lacking = {
        "cpu": ("16", "transformer-engine"),
        "mps": ("64", "bf16", "transformer-engine"),
        "cuda": () if kind != "cuda" or torch.cuda.is_bf16_supported() else ("bf16",),
    }[kind]
    if precision.startswith(lacking):
        advice = {"cpu": "32-true, 64-true or bf16-mixed", "mps": "32-true or 16-mixed"}
        raise InputError(
            f"trainer.precision={precision}: this device ({kind}) lacks it; "
            f"use {advice.get(kind, '32-true or 16-mixed')}"
        )
