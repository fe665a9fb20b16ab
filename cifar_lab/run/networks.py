"""The network from its node: for so many classes and such images."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from omegaconf import OmegaConf

from cifar_lab.config.targets import FROM_THE_DATASET, locate
from cifar_lab.errors import InputError
from cifar_lab.run.parts import build_part, check_kind

if TYPE_CHECKING:
    from omegaconf import DictConfig
    from torch import nn

    from cifar_lab.data.dataset import Dataset


def build_model(cfg: DictConfig, dataset: Dataset) -> nn.Module:
    """`build_network` for a dataset."""
    return build_network(cfg, len(dataset.classes), dataset.image_size[-1])


def build_network(cfg: DictConfig, classes: int, width: int) -> nn.Module:
    """The network for so many classes and images of that width; what it takes by name decides.

    Raises:
        InputError: as `build`, and for another number of classes.
    """
    given = cfg.model.get("num_classes")
    if given is not None and given != classes:
        raise InputError(
            f"model.num_classes={given}: the data has {classes} classes; leave it out, or give "
            f"{classes}"
        )
    from torch import nn

    unsaid = {name for name in FROM_THE_DATASET["model"] if cfg.model.get(name) is None}
    node = OmegaConf.masked_copy(cfg.model, [str(key) for key in cfg.model if key not in unsaid])
    if _hands_on(cfg.model["_target_"]):
        _check_pretrained(cfg, classes)
    network: nn.Module = build_part("model", node, **from_the_dataset(cfg.model, classes, width))
    check_kind("model", network, nn.Module, "a torch.nn.Module")
    return network


def from_the_dataset(model: DictConfig, classes: int, width: int) -> dict[str, int]:
    """The arguments of a network that it leaves to the dataset.

    Args:
        model: the group's node; what it sets stays.
        classes: of the dataset.
        width: S of its images, (3, S, S).
    """
    _, names = takes_by_name(target := model["_target_"])
    known = {"num_classes": classes, "image_size": width}
    assert set(known) == FROM_THE_DATASET["model"]
    taken = names | {"num_classes"} if _hands_on(target) else names
    return {k: v for k, v in known.items() if model.get(k) is None and k in taken}


def _hands_on(target: object) -> bool:
    """Whether it is a function of torchvision's: they hand on what they don't know themselves."""
    return takes_by_name(str(target))[0] and str(target).startswith("torchvision.models.")


def _check_pretrained(cfg: DictConfig, classes: int) -> None:
    """Raises InputError for weights of torchvision's that are of other classes, or aren't here."""
    import torch
    from torchvision.models import get_model_weights

    node = cfg.model
    given, function = node.get("weights"), str(node["_target_"]).rpartition(".")[2]
    if function == "get_model":
        function = str(node.get("name"))
    try:
        known = get_model_weights(function)
        found = known[str(given or "DEFAULT").rpartition(".")[2]]
    except (ValueError, KeyError):
        return  # torchvision's own to refuse
    legacy = node.get("pretrained") is True
    of_them = len(found.meta.get("categories", ()))
    if (given is not None or legacy) and of_them != classes:
        key = "model.pretrained=true" if legacy else f"model.weights={given}"
        raise InputError(
            f"{key}: are weights for {of_them} classes, and the data has {classes}; use "
            f"init_from={known.__name__}.{found.name}, which begins with them under a new head"
        )
    file = Path(torch.hub.get_dir()) / "checkpoints" / Path(found.url).name
    if given is not None and OmegaConf.select(cfg, "data.offline") and not file.exists():
        raise InputError(f"model.weights={given}: data.offline=true, and there is no {file}")


def takes_by_name(target: str) -> tuple[bool, set[str]]:
    """Whether a network takes arguments of any name, and which it takes by name."""
    import inspect

    try:
        parameters = inspect.signature(locate("model", target)).parameters
    except ValueError:  # built in C
        return False, set()
    by_name = {name for name, p in parameters.items() if p.kind is not p.VAR_KEYWORD}
    return len(by_name) < len(parameters), by_name
