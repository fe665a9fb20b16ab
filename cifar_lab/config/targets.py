"""Nodes with a ``_target_``: what they name, and whether it takes the arguments given.

They are held against the signatures of their targets (docs/decisions/0002); nothing is called.
"""

from __future__ import annotations

import inspect
import json
import pkgutil
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from enum import EnumType
from numbers import Number
from pathlib import PurePosixPath
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from cifar_lab.config.messages import first_line, suggestion
from cifar_lab.errors import InputError
from cifar_lab.records.digest import MOVED, flatten

# Arguments that the program gives when it builds a group: never in YAML.
RUNTIME_ARGUMENTS = {
    "data": {"augment", "seed"},
    "trainer": {"callbacks", "logger", "default_root_dir"},
}
# Keys of a node that are Hydra's `instantiate`'s.
_INSTANTIATE = ("_target_", "_partial_", "_args_", "_convert_", "_recursive_")
# Arguments that the dataset gives where they are null or left out.
FROM_THE_DATASET = {"model": {"num_classes", "image_size"}}
# What a `_target_` read back from a run folder may come from, by the group that it is a part of.
PARTS_OF_A_RUN: dict[str, tuple[str, ...]] = {
    # of timm the factory alone: the package has functions that unpickle files
    "model": ("cifar_lab.model", "torch.nn", "torchvision.models", "timm.create_model"),
    "data": ("cifar_lab.data.datamodule", "torchvision.transforms"),
    "augment": ("cifar_lab.data.augment", "cifar_lab.data.auto_augment"),
    "loss": ("torch.nn",),
    "optimizer": (
        *("torch.optim", "cifar_lab.training.optimizers", "cifar_lab.training.muon"),
        "cifar_lab.training.schedule_free",
    ),
    "scheduler": ("torch.optim.lr_scheduler", "cifar_lab.training.schedules"),
    "trainer": (
        "lightning.pytorch.Trainer",
        "lightning.pytorch.trainer",
        "lightning.pytorch.strategies",
        "lightning.pytorch.profilers",
        "lightning.pytorch.plugins",
    ),
    "callbacks": ("cifar_lab.training.callbacks", "lightning.pytorch.callbacks"),
    "monitors": ("cifar_lab.training.callbacks", "lightning.pytorch.callbacks"),
    "logger": ("cifar_lab.training.loggers", "lightning.pytorch.loggers"),
}
# Modules whose functions are parts; elsewhere classes alone are.
_FUNCTIONS = (
    *("torchvision.models", "timm.models", "torch.nn.functional"),
    *("cifar_lab.training.schedules", "cifar_lab.training.optimizers"),
    *("cifar_lab.training.schedule_free", "cifar_lab.model.timm_network"),
)
# Where a name from PARTS_OF_A_RUN was defined, if elsewhere.
_DEFINED_IN = {"timm.create_model": "timm.models"}
# Groups whose parts write files.
_WRITING = ("trainer", "callbacks", "monitors", "logger")
# Their arguments that Lightning takes from the working directory on.
_FOLDERS = ("dirpath", "save_dir", "default_root_dir", "root_dir", "log_dir", "nvme_path")


def target_nodes(node: Any, path: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every node below this one that has a ``_target_``, with its dotted path."""
    if isinstance(node, dict):
        if "_target_" in node:
            yield path, node
        for key, value in node.items():
            yield from target_nodes(value, f"{path}.{key}" if path else str(key))
    elif isinstance(node, list):
        for index, value in enumerate(node):
            yield from target_nodes(value, f"{path}[{index}]")


def check_has_target(path: str, node: dict[str, Any]) -> None:
    """Raises InputError where a node doesn't say what to build."""
    target = node.get("_target_")
    if not isinstance(target, str) or not target.strip():
        given = f"={shown(target)}: must be" if "_target_" in node else ": missing; must be"
        # what is set of a part that another option doesn't have
        without = f"; ~{path} leaves it out" if "." in path and "_target_" not in node else ""
        raise InputError(f"{path}._target_{given} the dotted name of a class or function{without}")


def check_target(path: str, node: dict[str, Any]) -> None:
    """Raises InputError: no such target, or an argument that is unknown, missing or mistyped.

    Args:
        path: of the node, as ``callbacks.ema``: what the message begins with.
        node: plain containers, ``_target_`` among them.
    """
    check_has_target(path, node)
    target = locate(path, node["_target_"])
    from_data, settings = FROM_THE_DATASET.get(path, set()), settings_beside(path, target)
    arguments = {
        key: value
        for key, value in node.items()
        if not (key in _INSTANTIATE or key in settings or (key in from_data and value is None))
    }
    try:
        signature = inspect.signature(target)
    except ValueError:  # built in C, no signature to hold the arguments against
        return
    parameters = signature.parameters
    takes_any = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    runtime = RUNTIME_ARGUMENTS.get(path, set())
    if path.startswith("logger."):  # those of others may write where they are told
        ours = str(target.__module__).startswith("cifar_lab.")
        runtime = {"save_dir"} if ours or "save_dir" not in node else set()
    if path in ("optimizer", "scheduler"):
        # called with the parameters; with the optimizer, or the step and the steps of the fit
        given = 2 if path == "scheduler" and "interval" not in settings else 1
        runtime = set(list(parameters)[:given])
    known = [name for name in parameters if name not in runtime]
    unknown = [name for name in arguments if name not in known and not takes_any]
    for name in unknown[:1]:
        if name in runtime:
            raise InputError(f"{path}.{name}: is what a run gives by itself; leave it out")
        near = suggestion(name, known)
        raise InputError(
            f"{path}.{name}: unknown key{near}; {node['_target_']} takes "
            + (", ".join(known) or "none")
            + ("" if near else left_out(path, unknown))
        )
    completed = path in ("optimizer", "scheduler")  # partial, and called with no more than runtime
    if completed:
        runtime |= {"total_steps"}
    if completed or not node.get("_partial_", False):
        for name, parameter in parameters.items():
            required = parameter.default is parameter.empty and parameter.kind in (
                parameter.POSITIONAL_OR_KEYWORD,
                parameter.KEYWORD_ONLY,
            )
            if required and name not in (*arguments, *runtime, *from_data):
                later = not completed and not inspect.isclass(target)
                called = ", or is called later: _partial_: true" if later else ""
                raise InputError(f"{path}.{name}: missing; {node['_target_']} needs it{called}")
    _check_types(path, target, arguments)


def left_out(path: str, names: Sequence[str]) -> str:
    """What to say of arguments that are of the target that an option had, before it was changed.

    Args:
        path: of the node.
        names: of the arguments.
    """
    if "[" in path:  # an entry of a list has no key
        return ""
    return "; leave out what was of another target: " + " ".join(f"~{path}.{n}" for n in names)


def settings_beside(path: str, target: Any) -> tuple[str, ...]:
    """Keys of a group's node that are ours, and no arguments of its target."""
    if path == "optimizer":
        return ("groups",)
    return ("interval", "monitor") if path == "scheduler" and makes_scheduler(target) else ()


def is_of_a_library(make: Any) -> bool:
    """Whether an optimizer or schedule is torch's or ours, bound to arguments or not.

    What those take is known; a person's own is tried out before a run.
    """
    target = getattr(make, "func", make)
    return str(getattr(target, "__module__", "")).startswith(("torch.optim", "cifar_lab."))


def makes_scheduler(target: Any) -> bool:
    """Whether it is called with the optimizer, and is no pure function of the step."""
    if inspect.isclass(target):
        from torch.optim.lr_scheduler import LRScheduler

        return issubclass(target, LRScheduler)
    return next(iter(inspect.signature(target).parameters), None) == "optimizer"


def locate(path: str, target: Any) -> Any:
    """The class or function that ``path._target_`` names; raises InputError."""
    try:
        found = pkgutil.resolve_name(str(target))
        if inspect.ismodule(found):  # torchvision.models.alexnet is a function of that name too
            package, _, name = str(target).rpartition(".")
            found = getattr(sys.modules.get(package), name, found)
    except Exception as error:
        module, _, name = str(target).rpartition(".")
        if module in MOVED:
            now = f"{MOVED[module]}.{name}"
            raise InputError(f"{path}._target_={target}: is called {now} now") from error
        raise InputError(f"{path}._target_={target}: {first_line(str(error))}") from error
    if not callable(found):
        raise InputError(f"{path}._target_={target}: is no class or function")
    return found


def check_targets_of_record(config: dict[str, Any], *, also: Sequence[str] = ()) -> None:
    """Whether a configuration read back from a run folder names nothing but parts of a run.

    A folder may come from anybody, and a ``_target_`` is code that runs. Call it before anything is
    built from a record or from ``.hydra/``, with the groups that are built. Both the name and where
    the object was defined count: ``torch.nn.os.system`` is none of torch.nn. Files are written in
    the run folder alone: no path of a part that writes may lead out of it.

    Args:
        config: resolved, as the record has it; some of its groups do.
        also: further modules to accept, the person's own. ``nets`` is ``nets.…`` too.

    Raises:
        InputError: a ``_target_`` from elsewhere, a value that is still to be interpolated, a path
            out of the folder. Nothing has been called, and nothing of elsewhere imported.
    """
    for path, node in target_nodes(config, ""):
        target = str(node["_target_"]).replace(":", ".")
        if _lies_in(target, also):
            continue
        allowed = PARTS_OF_A_RUN.get(re.split(r"[.\[]", path)[0], ())
        if not _lies_in(target, allowed) or not _is_part(locate(path, target), allowed):
            raise InputError(f"{path}._target_={target}: {_foreign(target)}")
    for key, value in flatten(config):
        if "${" in json.dumps(value):
            raise InputError(f"{key}={shown(value)}: a record holds values, no interpolation")
        writes = key.startswith(tuple(f"{group}." for group in _WRITING))
        if writes and (_leads_out(value) or (value and key.rpartition(".")[2] in _FOLDERS)):
            raise InputError(f"{key}={shown(value)}: leads out of the run folder")


def _is_part(found: Any, allowed: Sequence[str]) -> bool:
    module = str(getattr(found, "__module__", None))
    defined = (*allowed, *(_DEFINED_IN[name] for name in allowed if name in _DEFINED_IN))
    return _lies_in(module, defined) and (inspect.isclass(found) or _lies_in(module, _FUNCTIONS))


def _foreign(target: str) -> str:
    text = "is not a part of a run, and a run folder may come from anybody; it was not called"
    top = target.partition(".")[0]
    ours = {module.partition(".")[0] for names in PARTS_OF_A_RUN.values() for module in names}
    if not top.isidentifier() or top in ours or top in sys.stdlib_module_names:
        return text
    return f'{text}. If it is your own, trust it by name: --trust {top} (in Python trust=["{top}"])'


def _leads_out(value: Any) -> bool:
    if isinstance(value, list):
        return any(map(_leads_out, value))
    if not isinstance(value, str):
        return False
    path = PurePosixPath(value.replace("\\", "/"))
    return path.is_absolute() or value.startswith("~") or ".." in path.parts or value[1:3] == ":\\"


def _lies_in(name: str, modules: Sequence[str]) -> bool:
    return any(name == module or name.startswith(f"{module}.") for module in modules)


def _check_types(path: str, target: Any, arguments: dict[str, Any]) -> None:
    from pydantic import ConfigDict, PydanticUserError, TypeAdapter, ValidationError
    from pydantic.errors import PydanticSchemaGenerationError
    from pydantic_core import SchemaError

    function = target.__init__ if inspect.isclass(target) else target
    try:
        hints = get_type_hints(function)
    except Exception:  # names that exist for type checkers only
        return
    for name, value in arguments.items():
        hint = hints.get(name, Any)
        if isinstance(value, dict | list) and list(target_nodes(value, "")):
            continue  # built from nodes that are checked themselves
        if isinstance(value, list) and takes_tensor(hint):
            if not value or not all(_is_number(number) for number in value):
                raise InputError(f"{path}.{name}={shown(value)}: must be a list of numbers")
            continue  # `build` makes a tensor of it
        if isinstance(value, str) and (names := _weights_of(hint)):
            if value.rpartition(".")[2] not in names:
                allowed = ", ".join(names)
                raise InputError(f"{path}.{name}={value}: must be {allowed} or null")
            continue  # torchvision's functions take names
        try:
            adapter = TypeAdapter(hint, config=ConfigDict(arbitrary_types_allowed=True))
            try:
                # as JSON: YAML's lists stand for tuples there, but text doesn't stand for numbers
                adapter.validate_json(json.dumps(value), strict=True)
            except ValidationError as error:
                if all(each["type"] != "needs_python_object" for each in error.errors()):
                    raise
                adapter.validate_python(value, strict=True)  # a class that JSON has no kind for
        except ValidationError as error:
            said = first_line(error.errors()[0]["msg"])
            allowed = "a list of numbers or null" if takes_tensor(hint) else _in_words(hint)
            allowed = ", ".join([*_weights_of(hint), "null"]) if _weights_of(hint) else allowed
            allowed = allowed or re.sub(r"^Input should be ", "", said)
            raise InputError(f"{path}.{name}={shown(value)}: must be {allowed}") from error
        except (
            PydanticSchemaGenerationError,
            PydanticUserError,
            SchemaError,
            NameError,
            TypeError,
        ):
            continue  # a type that no YAML value can be held against


def takes_tensor(hint: Any) -> bool:
    """Whether a type hint takes a tensor, or null, and nothing else."""
    torch = sys.modules.get("torch")
    taken = [kind for kind in get_args(hint) or [hint] if kind is not NoneType]
    return torch is not None and taken == [torch.Tensor]


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _weights_of(hint: Any) -> list[str]:
    """The names of torchvision's weights that a hint takes; none for any other hint."""
    kinds = [kind for kind in (hint, *get_args(hint)) if isinstance(kind, EnumType)]
    names = [
        name
        for kind in kinds
        if kind.__module__.startswith("torchvision.models.")
        for name in kind.__members__
    ]
    return list(dict.fromkeys(names))


def shown(value: Any) -> str:
    """A value as a person types it."""
    return value if isinstance(value, str) else json.dumps(value)


def _in_words(hint: Any) -> str:
    # "an integer or null", for the types that a YAML value can have; others are left out
    if hint in _WORDS:
        return _WORDS[hint]
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is Literal:
        return ", ".join(str(item) for item in arguments)
    if origin in (Union, UnionType):
        each = [word for argument in arguments if (word := _in_words(argument))]
        # the names of several Literals are one list
        words = [word for words in each for word in words.split(", ")]
        if not words:
            return ""
        *first, last = dict.fromkeys(words)
        return f"{', '.join(first)} or {last}" if first else last
    if inspect.isclass(origin or hint) and issubclass(origin or hint, Mapping):
        return "a dictionary"
    if origin is not None and inspect.isclass(origin) and issubclass(origin, Sequence):
        inner = _in_words(arguments[0]) if arguments else ""
        if origin is tuple and Ellipsis not in arguments:
            return f"a list of {len(arguments)} ({inner} each)" if inner else "a list"
        return f"a list ({inner} each)" if inner else "a list"
    return ""


_WORDS: dict[Any, str] = {
    int: "an integer",
    float: "a number",
    Number: "a number",
    bool: "true or false",
    str: "text",
    NoneType: "null",
}
