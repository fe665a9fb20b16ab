"""The typed root of the configuration, and the checks that turn wrong input into one clear line.

Hydra composes; this module says where ``conf/`` is, what the root holds, and whether a composed
configuration can be built. The numbers live in ``conf/`` and nowhere else.
"""

from __future__ import annotations

import difflib
import hashlib
import inspect
import json
import math
import pkgutil
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from omegaconf import MISSING, DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from cifar_lab.errors import InputError

CONFIG_NAME = "config"
# Arguments that the door gives when it builds a group: never in YAML.
RUNTIME_ARGUMENTS = {
    "data": {"augment", "seed"},
    "optimizer": {"params"},
    "scheduler": {"step", "total_steps"},
    "trainer": {"callbacks", "logger", "default_root_dir"},
}
# Neither the result nor the data depend on these keys: they are no part of a run's identity.
NOT_IDENTITY = (
    *("data.root", "data.cache", "data.sources", "data.offline", "resume", "logger"),
    *("slots", "retries", "job_timeout", "fail_fast", "sweep"),
)

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


class Resume(Enum):
    """What starting into a folder that already holds a run means."""

    auto = "auto"
    never = "never"
    must = "must"


@dataclass
class Root:
    """The root of every configuration; groups are third-party nodes and stay YAML."""

    data: Any = MISSING
    augment: Any = MISSING
    model: Any = MISSING
    loss: Any = MISSING
    optimizer: Any = MISSING
    scheduler: Any = MISSING
    trainer: Any = MISSING
    callbacks: Any = MISSING
    logger: Any = MISSING
    seed: int = MISSING
    threads: int | None = MISSING
    resume: Resume = MISSING
    slots: int | None = MISSING
    retries: int = MISSING
    job_timeout: float | None = MISSING
    fail_fast: bool = MISSING
    sweep: Any = MISSING


def conf_dir() -> Path:
    """``conf/``: inside the package in an installed wheel, beside it in the repository."""
    package = Path(__file__).resolve().parent
    inside = package / "conf"
    return inside if inside.is_dir() else package.parent / "conf"


def register() -> None:
    """Registers the schema and the resolvers; the door calls it, importing does nothing."""
    ConfigStore.instance().store(name="schema", node=Root)
    if not OmegaConf.has_resolver("run_id"):
        import secrets

        # cached: the same in every place of one composition, new for every run
        OmegaConf.register_new_resolver("run_id", lambda: secrets.token_hex(3), use_cache=True)
        OmegaConf.register_new_resolver("job_name", job_name)


def searchpath_override(overrides: Sequence[str]) -> list[str]:
    """Lets folders under ``./conf`` of the working directory join the search path."""
    own = Path.cwd() / "conf"
    given = any(re.match(r"\+*hydra\.searchpath=", override) for override in overrides)
    if given or not own.is_dir() or own.resolve() == conf_dir().resolve():
        return []
    return [f"hydra.searchpath=['file://{own}']"]


def compose(overrides: Sequence[str]) -> DictConfig:
    """The configuration with its ``hydra`` node.

    Raises:
        InputError: an override that can't be read, an unknown key or group, a wrong type.
    """
    register()
    GlobalHydra.instance().clear()
    overrides = [*overrides, *searchpath_override(overrides)]
    # not as a context: the loader stays for the job that runs under it
    initialize_config_dir(version_base="1.3", config_dir=str(conf_dir()), job_name="cifar_lab")
    try:
        return hydra_compose(CONFIG_NAME, overrides=overrides, return_hydra_config=True)
    except (HydraException, OmegaConfBaseException) as error:
        raise explain(error, overrides) from error


def compose_group(group: str, overrides: Sequence[str]) -> dict[str, Any]:
    """One group of the composed configuration as plain containers, interpolations resolved."""
    node = compose(overrides)[group]
    return plain(node)


def plain(node: DictConfig) -> dict[str, Any]:
    """The node as dictionaries and lists, interpolations resolved, enums by name."""
    container = OmegaConf.to_container(node, resolve=True, enum_to_str=True)
    assert isinstance(container, dict)
    return {str(key): value for key, value in container.items()}


def run_config(cfg: DictConfig) -> dict[str, Any]:
    """The resolved configuration without Hydra's own node."""
    bare = cfg.copy()
    with open_dict(bare):
        bare.pop("hydra", None)
    return plain(bare)


def digest(config: dict[str, Any]) -> str:
    """SHA-256 of what decides a run's result: the configuration without `NOT_IDENTITY`."""
    identity = {key: value for key, value in flatten(config) if not is_no_identity(key)}
    text = json.dumps(identity, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def is_no_identity(key: str) -> bool:
    """Whether a dotted key has no part in what a run computes."""
    return any(key == name or key.startswith(name + ".") for name in NOT_IDENTITY)


def flatten(config: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted keys and leaves; lists and empty dictionaries are leaves."""
    for key, value in config.items():
        path = f"{prefix}{key}"
        if isinstance(value, dict) and value:
            yield from flatten(value, path + ".")
        else:
            yield path, value


# --- what Hydra says, in one line -------------------------------------------------------------


def explain(error: Exception, overrides: Sequence[str]) -> InputError:
    """The composition error as one line: the value, what is allowed, what to do."""
    text = str(error)
    if isinstance(error, OverrideParseException):
        return InputError(
            f"{error.override}: can't be read as key=value ({first_line(text)}); "
            "quote values that hold brackets, commas or spaces, e.g. 'model.num_blocks=[1,1]'"
        )
    if isinstance(error, MissingConfigException) and (found := _missing_option(text)):
        return found
    patterns = (r"Could not override '([^']+)'", r"is not in struct\s+full_key: (\S+)")
    for pattern in patterns:
        if match := re.search(pattern, text):
            return _unknown_key(match.group(1), overrides)
    if match := re.search(r"Error merging override (\S+?)=(.*)", text):
        reason = first_line(text[match.end() :]) or first_line(str(error.__cause__ or ""))
        return InputError(f"{match.group(1)}={match.group(2)}: {reason}")
    return InputError(first_line(text))


def first_line(text: str) -> str:
    """The first line that says something, without its full stop."""
    return next((line.strip() for line in text.splitlines() if line.strip()), "").rstrip(".")


def _missing_option(text: str) -> InputError | None:
    match = re.search(r"Could not find '([^']+)/([^'/]+)'", text)
    listed = r"Available options in '[^']+':\s*(.*?)(?:Config search|$)"
    options = re.search(listed, text, re.DOTALL)
    if not match or not options:
        return None
    group, name = match.groups()
    available = [line.split()[0] for line in options.group(1).splitlines() if line.split()]
    return InputError(
        f"{group}={name}: no such option{_suggestion(name, available)}; "
        f"available: {', '.join(available)}"
    )


def _unknown_key(key: str, overrides: Sequence[str]) -> InputError:
    return InputError(f"{key}: unknown key{_suggestion(key, _known_keys(overrides))}; see --help")


def _known_keys(overrides: Sequence[str]) -> list[str]:
    # the keys of what the person chose, as far as it composes: choices of groups have no dot
    chosen = [o for o in overrides if "." not in o.partition("=")[0] and "=" in o]
    for choice in (chosen, []):
        GlobalHydra.instance().clear()
        initialize_config_dir(version_base="1.3", config_dir=str(conf_dir()), job_name="cifar_lab")
        try:
            cfg = hydra_compose(CONFIG_NAME, overrides=choice)
        except (HydraException, OmegaConfBaseException):
            continue
        container = OmegaConf.to_container(cfg, resolve=False)
        assert isinstance(container, dict)
        leaves = [key for key, _ in flatten(container)]
        groups = {key.rpartition(".")[0] for key in leaves} - {""}
        return sorted({*leaves, *groups, "experiment", "debug"})
    return []


def _suggestion(word: str, known: Sequence[str]) -> str:
    near = difflib.get_close_matches(word, known, n=1, cutoff=0.6)
    if not near and "." not in word:
        # a bare `lr` means `optimizer.lr`
        near = [key for key in known if key.rpartition(".")[2] == word][:1]
    return f" (did you mean {near[0]}?)" if near else ""


# --- whether a composed configuration can be built --------------------------------------------


def check(cfg: DictConfig) -> None:
    """Everything that can be known before anything is built.

    Raises:
        InputError: a key outside the schema, a ``_target_`` that doesn't exist or doesn't take the
            arguments given, a value of the wrong type, a number that is not finite or out of range.
    """
    config = run_config(cfg)
    schema = set(Root.__dataclass_fields__)
    for key in config:
        if key not in schema:
            raise InputError(f"{key}: unknown key{_suggestion(key, sorted(schema))}; see --help")
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
                f"{path}.{name}: unknown key{_suggestion(name, known)}; "
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


def check_devices(trainer: dict[str, Any]) -> None:
    """Whether this machine has the devices and the precision asked for; raises InputError."""
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


def job_name(overrides: Sequence[str]) -> str:
    """A short readable folder name without brackets or commas: what was varied, and a digest."""
    own = [o.lstrip("+~") for o in overrides if not o.lstrip("+~").startswith("hydra")]
    code = hashlib.sha256("\n".join(sorted(own)).encode()).hexdigest()[:6]
    return "-".join([*job_words(own), code])[-100:].lstrip("-.")


def job_words(overrides: Sequence[str]) -> list[str]:
    """Each override as a word for a file name, e.g. ``lr0.1``."""
    words = []
    for override in overrides:
        key, _, value = override.lstrip("+~").partition("=")
        name = key.rpartition(".")[2]
        value = value.strip("[]'\"")
        if _is_number(value) and len(value) > 8:
            value = f"{float(value):.4g}"
        # of a group (model=cnn) the option says enough
        word = value if "." not in key and not _is_number(value) else f"{name}{value}"
        words.append(re.sub(r"[^A-Za-z0-9.+_-]+", ".", word).strip("."))
    return words


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
