"""A network that begins with another's weights, and layers that stay as they are.

Nothing is unpickled: checkpoints are read with ``weights_only``, the rest is safetensors.
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from cifar_lab.errors import InputError, listed, reason_of
from cifar_lab.records.checkpoint_file import DamagedError, load
from cifar_lab.records.weights import ALLOWED, SAFETENSORS, source_of

_NAMED = 3  # of the names that differ
# Counts batches for a momentum of None alone, and is no weight: older files lack it.
_COUNTER = "num_batches_tracked"
# In a Classifier's state; a network alone has none.
_PREFIX = "network."


@dataclass(frozen=True)
class Weights:
    """The tensors of a network.

    Attributes:
        tensors: by name within the network, on the CPU.
        sha256: of the file that they were read from, 64 hexadecimal digits.
    """

    tensors: dict[str, Tensor]
    sha256: str


def read(source: Mapping[str, Any], *, offline: bool = False) -> Weights:
    """The weights that `source_of` named.

    Args:
        source: what it gave.
        offline: fetch nothing.

    Raises:
        InputError: they can't be read, or aren't those that were named.
    """
    if name := source.get("torchvision"):
        return _of_torchvision(name, offline=offline)
    path = Path(source["path"])
    try:
        is_ours = path.suffix != SAFETENSORS
        tensors = _without_prefix(load(path)["state_dict"] if is_ours else _of_safetensors(path))
        sha256 = source_of(str(path))["sha256"]
    except DamagedError as error:
        raise InputError(f"init_from={path}: {error}; give another run or file") from error
    if sha256 != source["sha256"]:
        raise InputError(
            f"init_from={path}: has changed since this run was asked for ({sha256[:12]} now, "
            f"{source['sha256'][:12]} then); start it again"
        )
    if not tensors:
        raise InputError(f"init_from={path}: holds no weights of a network; {ALLOWED}")
    return Weights(tensors, sha256)


def _of_safetensors(path: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except (SafetensorError, OSError, ValueError) as error:
        raise DamagedError(f"{path.name} can't be read as safetensors ({error})") from error


def _without_prefix(state: Any) -> dict[str, Tensor]:
    found = state.items() if isinstance(state, Mapping) else ()
    tensors = {str(k): v for k, v in found if isinstance(v, Tensor) and _is_plain(v)}
    if not any(name.startswith(_PREFIX) for name in tensors):
        return tensors
    # what else a Classifier has, as class weights of its loss, is no part of the network
    names = [name for name in tensors if name.startswith(_PREFIX)]
    return {name.removeprefix(_PREFIX): tensors[name] for name in names}


def _is_plain(tensor: Tensor) -> bool:
    # a file from elsewhere may hold kinds that can't be copied into a network's
    dense = tensor.layout == torch.strided and not tensor.is_quantized
    return dense and tensor.device.type == "cpu"


def _of_torchvision(name: str, *, offline: bool) -> Weights:
    from torchvision.models import get_weight

    try:
        weights = get_weight(name)
    except (ValueError, KeyError, AttributeError) as error:
        raise InputError(
            f"init_from={name}: torchvision has no such weights; names are like "
            "ResNet18_Weights.IMAGENET1K_V1"
        ) from error
    file = Path(torch.hub.get_dir()) / "checkpoints" / Path(weights.url).name
    if offline and not file.exists():
        raise InputError(f"init_from={name}: data.offline=true, and there is no {file}")
    try:
        state = weights.get_state_dict(
            progress=sys.stderr.isatty(), check_hash=True, weights_only=True
        )
        with open(file, "rb") as opened:
            sha256 = hashlib.file_digest(opened, "sha256").hexdigest()
    except Exception as error:  # of the network, of the disk, or a file that was tampered with
        raise InputError(
            f"init_from={name}: can't be had from {weights.url} ({reason_of(error)}); put the "
            f"file there as {file}, or give a run or a file"
        ) from error
    return Weights(_without_prefix(state), sha256)


@dataclass(frozen=True)
class Taken:
    """What a network took from others' weights.

    Attributes:
        taken: how many tensors.
        new: names of those that are as the network made them.
        unused: names of those that the network has no place for.
    """

    taken: int
    new: tuple[str, ...] = ()
    unused: tuple[str, ...] = ()


def take_weights(
    network: nn.Module, found: Mapping[str, Tensor], *, classes: int, strict: bool
) -> Taken:
    """Copies tensors into the network, by name; draws no random number.

    Args:
        network: whose weights they become, parameters and buffers.
        found: by name within a network.
        classes: outputs of ``network``. One layer with as many outputs stays new where it differs
            in their number alone: the head, for other classes.
        strict: everything else must have a name and a shape of the network's; else what has not is
            left out.

    Raises:
        InputError: something differs, nothing fits, or a number isn't finite.
    """
    # without extra states, which hold what their network has counted
    own, found = (
        {k: v for k, v in x.items() if isinstance(v, Tensor)} for x in (network.state_dict(), found)
    )
    # a complex number can't be copied into a real one
    found = {k: v for k, v in found.items() if v.is_complex() == own.get(k, v).is_complex()}
    missing = [name for name in own if name not in found and not name.endswith(_COUNTER)]
    unused = [name for name in found if name not in own and not name.endswith(_COUNTER)]
    shaped = [name for name in own if name in found and found[name].shape != own[name].shape]
    head = _is_head(shaped, own, found, classes)
    if strict and (missing or unused or (shaped and not head)):
        raise InputError(
            f"is of another network: {_differences(own, found, missing, unused, shaped)}; "
            "init_strict=false takes what fits"
        )
    fitting = {name: found[name] for name in own if name in found and name not in shaped}
    if not any(name for name, _ in network.named_parameters() if name in fitting):
        differences = _differences(own, found, missing, unused, shaped)
        raise InputError(f"is of another network: {differences}; nothing fits")
    for name, tensor in fitting.items():
        if not bool(torch.isfinite(tensor).all()):
            raise InputError(f"{name} holds NaN or infinite numbers; give other weights")
    network.load_state_dict(fitting, strict=False)
    return Taken(
        len(fitting), tuple(name for name in own if name in {*missing, *shaped}), (*unused,)
    )


def _is_head(
    shaped: Sequence[str], own: Mapping[str, Tensor], found: Mapping[str, Tensor], classes: int
) -> bool:
    """Whether all tensors of another shape are one layer's, with another number of outputs."""
    layers = {name.rpartition(".")[0] for name in shaped}
    return len(layers) == 1 and all(
        own[name].ndim > 0
        and len(own[name]) == classes
        and own[name].shape[1:] == found[name].shape[1:]
        and own[name].ndim == found[name].ndim
        for name in shaped
    )


def _differences(
    own: Mapping[str, Tensor],
    found: Mapping[str, Tensor],
    missing: Sequence[str],
    unused: Sequence[str],
    shaped: Sequence[str],
) -> str:
    parts = []
    if shaped:
        shapes = [f"{n} {tuple(found[n].shape)}, here {tuple(own[n].shape)}" for n in shaped]
        parts.append(f"has {listed(shapes, _NAMED, '; ')}")
    if missing:
        parts.append(f"lacks {listed(missing, _NAMED)}")
    if unused:
        parts.append(f"has {listed(unused, _NAMED)}, which this network lacks")
    return "; ".join(parts)


def freeze(network: nn.Module, patterns: Sequence[str]) -> list[nn.Module]:
    """Takes parameters out of the training: they get no gradient, and no optimizer.

    Args:
        network: to freeze parts of.
        patterns: of names within it, e.g. ``stages.0.*``.

    Returns:
        The layers with running statistics (BatchNorm) whose parameters are all frozen; one without
        parameters where a pattern fits its statistics' names. They stay in evaluation mode: what
        they normalize with is frozen too.

    Raises:
        InputError: a pattern fits nothing, or nothing is left to train.
    """
    parameters = dict(network.named_parameters())
    names = [*parameters, *(name for name, _ in network.named_buffers())]
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in names):
            like = ", ".join(list(parameters)[:_NAMED])
            raise InputError(f"freeze={pattern}: no parameter's name fits; names are like {like}")
    frozen = {name for name in names if any(fnmatchcase(name, p) for p in patterns)}
    for name in frozen & parameters.keys():
        parameters[name].requires_grad_(False)
    if patterns and not any(p.requires_grad for p in parameters.values()):
        raise InputError(f"freeze={','.join(patterns)}: nothing is left to train")
    norms = []
    for prefix, layer in network.named_modules():
        if getattr(layer, "running_mean", None) is None:
            continue
        at = f"{prefix}." if prefix else ""
        its = [f"{at}{name}" for name, _ in layer.named_parameters(recurse=False)]
        if frozen.issuperset(its or [f"{at}running_mean"]):
            norms.append(layer.eval())
    if patterns and not norms and not frozen & parameters.keys():
        raise InputError(
            f"freeze={','.join(patterns)}: fits statistics alone, and they are frozen with the "
            "parameters of their layer: name these too"
        )
    return norms
