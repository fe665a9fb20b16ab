"""A recipe without one of its ingredients, or with one alone: what ``ablation=...`` means.

An experiment names its ingredients below ``sweep.ingredients``, each with the overrides that leave
it out. ``ablation=without_NAME`` composes the experiment with these, ``ablation=only_NAME`` with
those of all others, and ``ablation=bare`` with those of all.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from omegaconf import DictConfig, OmegaConf

from cifar_lab.config.messages import suggestion
from cifar_lab.config.overrides import normalized
from cifar_lab.errors import InputError
from cifar_lab.records.digest import key_of

BARE = "bare"


def with_ablation(cfg: DictConfig, overrides: Sequence[str]) -> list[str] | None:
    """The overrides with those of what is left out; None where nothing is.

    Args:
        cfg: composed of ``overrides``.
        overrides: normalized. One that sets what an ingredient's sets gives way to it.

    Raises:
        InputError: no such ingredient, or an experiment that names none.
    """
    if cfg.ablation is None:
        return None
    left_out = _left_out(str(cfg.ablation), _ingredients(cfg.sweep.ingredients))
    last = {key_of(override): override for override in normalized(left_out)}
    # what lies below a part that is left out itself goes with it
    gone = tuple(f"{key}." for key, override in last.items() if override.endswith("=null"))
    last = {key: override for key, override in last.items() if not key.startswith(gone)}
    kept = [override for override in overrides if key_of(override) not in last]
    return [*kept, *last.values()]


def points(ingredients: Any, mode: str) -> str:
    """The values of ``ablation`` for a sweep, as Hydra writes several.

    Args:
        ingredients: the node of ``sweep.ingredients``.
        mode: ``without``: the whole recipe, and it without each in turn; ``only``: nothing of it,
            and each alone.
    """
    names = list(_ingredients(ingredients))
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
    return {str(name): value for name, value in plain.items()}


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
