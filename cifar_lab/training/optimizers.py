"""Optimizers of named parameters, in groups by role or by name."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer, SparseAdam

from cifar_lab.errors import InputError
from cifar_lab.training.schedules import end_of

# What a factory is called with: (name, parameter) pairs, or groups of them with their options.
NamedParameters = Sequence[tuple[str, nn.Parameter]] | Sequence[dict[str, Any]]
ROLES = ("norms", "biases", "filters", "weights")
_NORMS = (
    *(nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm, nn.LayerNorm),
    *(nn.GroupNorm, nn.RMSNorm, nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d),
)
# A Classifier's parts; a person knows the names within their network.
_PREFIXES = {"network.": "", "_loss.": "loss."}


@dataclass(frozen=True)
class OptimizerFactory:
    """Makes the optimizer of a network; what ``optimizer`` in the configuration becomes.

    Attributes:
        make: (named parameters, or groups of them) -> the optimizer: one of torch's classes with
            its arguments, or a function of a person's own.
        groups: by name, options of some parameters in place of the optimizer's own. ``parameters``
            says which: roles (`ROLES`) and patterns of names (``fc*``, ``layer4.*.weight``), one or
            a list. ``lr_scale`` multiplies ``optimizer.lr``; everything else is the optimizer's
            (``lr``, ``weight_decay``, ``momentum``). ``until`` is a share of the fit: the whole
            schedule runs within it, and the parameters stay as they are from there on. A parameter
            is in the first group that fits.
    """

    make: Callable[..., Optimizer]
    groups: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    def __call__(self, module: nn.Module) -> Optimizer:
        """The optimizer of all of the module's parameters that want a gradient.

        Args:
            module: a network, or a Classifier; names are those within the network.

        Raises:
            InputError: a group has no parameter or no way to say which, or the optimizer is of a
                kind that a fit can't use.
        """
        named = [(_name(n), p) for n, p in module.named_parameters() if p.requires_grad]
        optimizer = self.make(self._grouped(module, named) if self.groups else named)
        if reason := _unusable(optimizer):
            raise InputError(f"_target_: {type(optimizer).__name__} {reason}")
        own = {id(parameter) for parameter in module.parameters()}
        for parameter in (p for group in optimizer.param_groups for p in group["params"]):
            if id(parameter) not in own:
                raise InputError(
                    f"_target_: gives an optimizer of a parameter {tuple(parameter.shape)} that "
                    "is none of the network's; it must be of those that it is called with"
                )
        return optimizer

    def _grouped(
        self, module: nn.Module, named: Sequence[tuple[str, nn.Parameter]]
    ) -> list[dict[str, Any]]:
        role = dict(roles(module))
        rest, grouped = dict(named), []
        for key, settings in self.groups.items():
            words = _words(f"groups.{key}", settings)
            mine = [(n, p) for n, p in rest.items() if any(_fits(w, n, role[n]) for w in words)]
            if not mine:
                names, asked = ", ".join(name for name, _ in named[:3]), settings["parameters"]
                raise InputError(
                    f"groups.{key}.parameters={_shown(asked)}: no parameter is left that fits; "
                    f"roles are {', '.join(ROLES)}, names are like {names}"
                )
            for name, _ in mine:
                del rest[name]
            grouped.append({"params": mine, **self._options(f"groups.{key}", settings)})
        # the first group's learning rate is the one that is logged: that of what is in no group
        return [*([{"params": list(rest.items())}] if rest else []), *grouped]

    def _options(self, where: str, settings: Mapping[str, Any]) -> dict[str, Any]:
        options = {k: v for k, v in settings.items() if k not in ("parameters", "lr_scale")}
        known = _arguments(self.make)
        if known and (unknown := sorted(set(options) - {*known, "until"})):
            raise InputError(
                f"{where}.{unknown[0]}: unknown key; must be parameters, lr_scale, until or the "
                f"optimizer's: {', '.join(known)}"
            )
        until = options.get("until", 1)
        if not _is_at_least_0(until) or not 0 < until <= 1:
            raise InputError(f"{where}.until={until}: must be a share of the fit, in (0, 1]")
        for name, value in options.items():
            if name in ("lr", "weight_decay", "momentum") and not _is_at_least_0(value):
                raise InputError(f"{where}.{name}={value}: must be a number, at least 0")
        scale = settings.get("lr_scale")
        if scale is None:
            return options
        if not _is_at_least_0(scale):
            raise InputError(f"{where}.lr_scale={scale}: must be a number, at least 0")
        rate = inspect.signature(self.make).parameters.get("lr")
        base = None if rate is None else rate.default
        if "lr" in options or not _is_at_least_0(base):
            raise InputError(f"{where}.lr_scale={scale}: needs optimizer.lr, and no lr beside it")
        return {**options, "lr": base * scale}


def check_steps(optimizer: Optimizer, steps: int) -> None:
    """Raises InputError where a fit of so many steps is over before the optimizer is at its rate.

    Or where the optimizer is done before the fit, with no parameter left that learns.
    """
    for group in optimizer.param_groups:
        if (warmup := group.get("warmup_steps") or 0) > steps:
            raise InputError(
                f"warmup_steps={warmup}: the fit ends after {steps} optimizer steps, and would "
                f"never be at its rate; must be at most {steps}"
            )
    ends = [end_of(group, steps) for group in optimizer.param_groups]
    if max(ends) < steps:
        until = max(group["until"] for group in optimizer.param_groups)
        raise InputError(
            f"groups: each parameter is in a group that stops, the last one at until={until}, and "
            "nothing would learn from there on; leave until out of one, or make the fit shorter"
        )


def try_step(factory: OptimizerFactory, network: nn.Module) -> None:
    """One step on a copy of the network, with a small gradient everywhere.

    Raises:
        InputError: it leaves weights that are no numbers. Whatever else the optimizer raises.
    """
    try:
        trial = copy.deepcopy(network)
    except Exception:  # of weights that are computed from others, for instance
        return
    parameters = [p for p in trial.parameters() if p.requires_grad]
    if not all(parameter.is_leaf for parameter in parameters):  # a copied script's are none
        return
    optimizer = factory(trial)
    if hasattr(optimizer, "train"):  # a schedule-free one steps in this mode alone
        optimizer.train()
    for parameter in parameters:
        parameter.grad = torch.full_like(parameter, 1e-3)
    with torch.random.fork_rng(devices=[]):
        optimizer.step()
    if not all(bool(torch.isfinite(parameter).all()) for parameter in parameters):
        raise InputError(
            f"_target_: {type(optimizer).__name__} makes weights NaN or infinite in its first step"
        )


def roles(module: nn.Module) -> Iterator[tuple[str, str]]:
    """Name and role of each parameter.

    ``norms``: those of normalization layers, torch's and what is called one and has vectors;
    ``biases``: named so elsewhere; ``filters``: the others with four dimensions; ``weights``: what
    is left.
    """
    for prefix, part in module.named_modules():
        called_norm = "norm" in type(part).__name__.lower()
        for name, parameter in part.named_parameters(prefix, recurse=False):
            if isinstance(part, _NORMS) or (called_norm and parameter.ndim <= 1):
                yield _name(name), "norms"
            elif name.rpartition(".")[2] == "bias":
                yield _name(name), "biases"
            else:
                yield _name(name), "filters" if parameter.ndim == 4 else "weights"


def _name(name: str) -> str:
    for prefix, instead in _PREFIXES.items():
        if name.startswith(prefix):
            return instead + name.removeprefix(prefix)
    return name


def _words(where: str, settings: Any) -> list[str]:
    words = settings.get("parameters") if isinstance(settings, Mapping) else None
    words = [words] if isinstance(words, str) else words
    if not isinstance(words, list) or not words or not all(isinstance(w, str) for w in words):
        raise InputError(
            f"{where}.parameters={_shown(words)}: must be roles ({', '.join(ROLES)}) or patterns "
            "of names, one or a list"
        )
    return words


def _shown(words: Any) -> str:
    if isinstance(words, list):
        return f"[{','.join(map(str, words))}]"
    return "null" if words is None else str(words)


def _fits(word: str, name: str, role: str) -> bool:
    return word == role or fnmatchcase(name, word)


def _arguments(make: Callable[..., Optimizer]) -> list[str]:
    """The names of the options of a group; empty where an own factory may have any."""
    if not inspect.isclass(getattr(make, "func", make)):
        return []
    parameters = inspect.signature(make).parameters.values()
    if any(p.kind is p.VAR_KEYWORD for p in parameters):
        return []
    return [p.name for p in parameters if p.name != "params"]


def _is_at_least_0(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and value >= 0


def _unusable(optimizer: Any) -> str | None:
    """Why a fit can't use it; None where it can."""
    if not isinstance(optimizer, Optimizer):
        return "is no torch.optim.Optimizer"
    closure = inspect.signature(type(optimizer).step).parameters.get("closure")
    if closure is not None and closure.default is closure.empty:
        return (
            "computes the loss several times in a step, and each time would count in the metrics; "
            "use one that steps without a closure, as sgd and adamw do"
        )
    if any("lr" not in group for group in optimizer.param_groups):
        return "has groups of parameters without lr, which the schedule sets; give it one"
    if isinstance(optimizer, SparseAdam):
        return "takes sparse gradients, and those of a network on images are dense; use adamw"
    return None
