"""One part from its node of the configuration; what a constructor refuses becomes one line."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cifar_lab.config.compose import plain
from cifar_lab.config.messages import first_line
from cifar_lab.config.targets import left_out, locate, settings_beside, takes_tensor
from cifar_lab.errors import InputError

if TYPE_CHECKING:
    from omegaconf import DictConfig


def build_part(path: str, node: DictConfig | dict[str, Any], **runtime: Any) -> Any:
    """Instantiates the node with plain containers, then calls it with what only the program has."""
    from hydra.errors import InstantiationException
    from hydra.utils import instantiate

    locate(path, node["_target_"])  # which says what Hydra doesn't: the module that isn't there
    try:
        factory = instantiate(node, _partial_=True, _convert_="all")
    except InstantiationException as error:
        raise InputError(f"{path}: {first_line(str(error.__cause__ or error))}") from error
    factory = _with_tensors(factory)
    if node.get("_partial_", False):
        # Hydra's own partial checks its target at each call: .7 ms, and a schedule has one a step
        return partial(factory.func, *factory.args, **{**factory.keywords, **runtime})
    with named(path):
        return factory(**runtime)


def _with_tensors(factory: partial[Any]) -> partial[Any]:
    """The factory with tensors for lists of numbers that are to be such, as a loss's weights."""
    import inspect
    from typing import get_type_hints

    target = factory.func
    lists = {name: value for name, value in factory.keywords.items() if isinstance(value, list)}
    if not lists:
        return factory
    import torch

    try:
        hints = get_type_hints(target.__init__ if inspect.isclass(target) else target)
    except Exception:  # names that exist for type checkers only
        return factory
    tensors = {
        name: torch.tensor(value, dtype=torch.float32)
        for name, value in lists.items()
        if takes_tensor(hints.get(name))
    }
    return partial(target, *factory.args, **{**factory.keywords, **tensors})


def factory_of(group: str, cfg: DictConfig) -> partial[Any]:
    """What is called with what only a run has, whether its node says ``_partial_`` or not."""
    target = locate(group, cfg[group]["_target_"])
    ours = (*settings_beside(group, target), "_partial_")
    node = {key: value for key, value in plain(cfg[group]).items() if key not in ours}
    factory: partial[Any] = build_part(group, {**node, "_partial_": True})
    return factory


@contextmanager
def named(path: str) -> Iterator[None]:
    """Whatever a constructor stumbles over becomes one line with the key's name before it."""
    from lightning.fabric.utilities.exceptions import MisconfigurationException

    from cifar_lab.training.trial import STOPS, reason

    try:
        yield
    except InputError as error:
        text = str(error)
        raise InputError(text if text.startswith(f"{path}.") else f"{path}.{text}") from error
    except (ValueError, TypeError, ModuleNotFoundError, MisconfigurationException) as error:
        text = first_line(str(error)) or type(error).__name__
        if match := re.search(r"unexpected keyword argument '(\w+)'", text):
            text += left_out(path, [match[1]])
        raise InputError(f"{path}: {text}") from error
    except STOPS as error:
        fetches = path == "model" and isinstance(error, OSError)
        raise InputError(f"{path}: {reason(error)}{_fetching() if fetches else ''}") from error


def _fetching() -> str:
    """Of a network whose constructor fetches weights, and can't."""
    import torch

    folder = Path(torch.hub.get_dir()) / "checkpoints"
    return (
        f"; torchvision's weights are looked for in {folder}, and weights=null (of a backbone: "
        "weights_backbone=null) begins without"
    )


def check_kind(path: str, part: Any, kind: type, word: str) -> None:
    """Raises InputError for a part of another kind than its group's."""
    if not isinstance(part, kind):
        raise InputError(f"{path}._target_: gives {type(part).__name__}; must give {word}")
