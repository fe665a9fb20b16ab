"""Nodes with a ``_target_``: what they name, and whether it takes the arguments given.

They are held against the signatures of their targets (docs/decisions/0002); nothing is called.
"""

from __future__ import annotations

import inspect
import json
import pkgutil
from collections.abc import Iterator, Sequence
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from cifar_lab.config.messages import first_line, suggestion
from cifar_lab.errors import InputError
from cifar_lab.records.digest import flatten

# Arguments that the program gives when it builds a group: never in YAML.
RUNTIME_ARGUMENTS = {
    "data": {"augment", "seed"},
    "optimizer": {"params"},
    "scheduler": {"step", "total_steps"},
    "trainer": {"callbacks", "logger", "default_root_dir"},
}
# Arguments that the dataset gives where they are null or left out.
FROM_THE_DATASET = {"model": {"num_classes", "image_size"}}
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


def check_target(path: str, node: dict[str, Any]) -> None:
    """Raises InputError: no such target, or an argument that is unknown, missing or mistyped."""
    target = locate(path, node["_target_"])
    from_data = FROM_THE_DATASET.get(path, set())
    arguments = {
        key: value
        for key, value in node.items()
        if not _is_instantiate_key(key) and not (key in from_data and value is None)
    }
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
            if required and name not in (*arguments, *runtime, *from_data):
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
    for path, node in target_nodes(config, ""):
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
        if isinstance(value, dict | list) and list(target_nodes(value, "")):
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
