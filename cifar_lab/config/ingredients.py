"""A recipe without one of its ingredients, or with one alone: what ``ablation=...`` means.

An experiment names its ingredients below ``sweep.ingredients``, each with the overrides that leave
it out. ``ablation=without_NAME`` composes the experiment with these, ``ablation=only_NAME`` with
those of all others, and ``ablation=bare`` with those of all.

Some rest on another: alternation of a flip that is left out is nothing. Such a one alone is the
bare recipe, and no point of a sweep.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from omegaconf import DictConfig, OmegaConf

from cifar_lab.config.messages import COMPOSING_RAISES, explain, suggestion
from cifar_lab.config.overrides import normalized
from cifar_lab.errors import InputError
from cifar_lab.records.digest import deciding, key_of

BARE = "bare"
# What is no part of a recipe, and so nothing that an ingredient's overrides may set.
_OF_NO_RECIPE = ("ablation", "debug", "experiment", "hydra", "resume", "seed", "sweep")


def with_ablation(
    compose: Callable[[Sequence[str]], DictConfig], overrides: Sequence[str]
) -> DictConfig:
    """The configuration of the overrides, without what ``ablation`` leaves out.

    Args:
        compose: of overrides.
        overrides: normalized. One that sets what an ingredient's sets gives way to it.

    Raises:
        InputError: no such ingredient, one whose overrides can't be composed or change nothing, or
            an experiment that names none. What ``compose`` raises.
    """
    cfg = compose(overrides)
    if cfg.ablation is None:
        return cfg
    name, ingredients = str(cfg.ablation), _ingredients(cfg.sweep.ingredients)
    last = _last(_left_out(name, ingredients))
    alone = name.startswith("only_")
    if alone and last == _last(_left_out(BARE, ingredients)):
        raise InputError(
            f"ablation={name}: is the same as {BARE}: of {name.removeprefix('only_')} nothing is "
            "left where the others are left out"
        )
    kept = [override for override in overrides if key_of(override) not in last]
    changed = [*kept, *last.values()]
    try:
        without = compose(changed)
    except COMPOSING_RAISES as error:
        raise InputError(f"ablation={name}: {explain(error, changed)}") from error
    if not alone and _deciding(without) == _deciding(cfg):
        raise InputError(
            f"ablation={name}: changes nothing: what it leaves out isn't there; "
            f"~sweep.ingredients.{name.removeprefix('without_')} takes it off the list"
            if name != BARE
            else f"ablation={name}: changes nothing: no ingredient is there"
        )
    return without


def _last(left_out: Sequence[str]) -> dict[str, str]:
    """By key, the overrides that count.

    Raises:
        InputError: two of them give one key different values.
    """
    last: dict[str, str] = {}
    for override in normalized(left_out):
        before = last.setdefault(key_of(override), override)
        if before != override:
            raise InputError(
                f"sweep.ingredients: {before} and {override} are left out together, and are two "
                "values for one key; give both ingredients the same"
            )
    # what lies below a part that is left out itself goes with it
    gone = tuple(f"{key}." for key, override in last.items() if override.endswith("=null"))
    return {key: override for key, override in last.items() if not key.startswith(gone)}


def _deciding(cfg: DictConfig) -> dict[str, Any]:
    # as it is written: no weights are looked up for it
    plain = OmegaConf.to_container(cfg, resolve=False, enum_to_str=True)
    assert isinstance(plain, dict)
    of_none = ("hydra", "sweep", "ablation")
    return deciding({str(key): value for key, value in plain.items() if key not in of_none})


def points(ingredients: Any, mode: str) -> str:
    """The values of ``ablation`` for a sweep, as Hydra writes several.

    Args:
        ingredients: the node of ``sweep.ingredients``.
        mode: ``without``: the whole recipe, and it without each in turn; ``only``: nothing of it,
            and each alone that is something alone.
    """
    known = _ingredients(ingredients)
    names = list(known)
    if mode == "only":
        nothing = _last(_left_out(BARE, known))
        names = [name for name in names if _last(_left_out(f"only_{name}", known)) != nothing]
        if not names:
            raise InputError(
                "sweep.ingredients: none of them is anything alone, for each is left out with "
                "another; give each overrides of its own"
            )
    first = "null" if mode == "without" else BARE
    return ",".join([first, *(f"{mode}_{name}" for name in names)])


def _ingredients(node: Any) -> Mapping[str, Sequence[str]]:
    plain = OmegaConf.to_container(node) if OmegaConf.is_config(node) else node
    if not plain:
        raise InputError(
            "sweep.ingredients: the configuration names none; choose an experiment that does, e.g. "
            "experiment=speed94"
        )
    if not isinstance(plain, dict) or not all(_is_list_of_text(v) for v in plain.values()):
        raise InputError(
            "sweep.ingredients: must be a list of overrides for each name, as in flip: "
            "[augment.transforms.flip=null]"
        )
    ingredients = {str(name): value for name, value in plain.items()}
    for name, overrides in ingredients.items():
        where = f"sweep.ingredients.{name}"
        if not re.fullmatch(r"[A-Za-z0-9_-]+", name):
            raise InputError(f"{where}: must be called by letters, digits, _ and - alone")
        if not overrides:
            raise InputError(f"{where}: is empty; give the overrides that leave it out")
        for override in overrides:
            if re.split(r"[./]", key_of(override))[0] in _OF_NO_RECIPE:
                raise InputError(
                    f"{where}: {override} is no part of a recipe; give what is left out"
                )
    return ingredients


def _is_list_of_text(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(item, str) for item in value)


def _left_out(ablation: str, ingredients: Mapping[str, Sequence[str]]) -> list[str]:
    if ablation == BARE:
        return _all(ingredients.values())
    mode, _, name = ablation.partition("_")
    known = [f"{m}_{n}" for m in ("without", "only") for n in ingredients]
    if mode not in ("without", "only") or name not in ingredients:
        raise InputError(
            f"ablation={ablation}: no such ingredient{suggestion(ablation, known)}; must be null, "
            f"{BARE}, or without_ or only_ and one of {', '.join(ingredients)}"
        )
    if mode == "without":
        return list(ingredients[name])
    return _all(value for other, value in ingredients.items() if other != name)


def _all(overrides: Iterable[Sequence[str]]) -> list[str]:
    return [override for several in overrides for override in several]
