"""The typed root of the configuration, and the checks that turn wrong input into one clear line.

Hydra composes; this module says where ``conf/`` is, what the root holds, and whether a composed
configuration can be built. The numbers live in ``conf/`` and nowhere else.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from enum import Enum
from pathlib import Path
from typing import Any

from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from omegaconf import MISSING, DictConfig, ListConfig, OmegaConf
from omegaconf.errors import InterpolationToMissingValueError, OmegaConfBaseException

from cifar_lab.config import files
from cifar_lab.config.ingredients import points, with_ablation
from cifar_lab.config.messages import COMPOSING_RAISES, explain, first_line
from cifar_lab.config.names import job_name
from cifar_lab.config.overrides import check_merged, normalized, searchpath_override
from cifar_lab.config.schema import CONFIG_NAME, TRAINER_DEFAULTS, Root, conf_dir
from cifar_lab.errors import InputError
from cifar_lab.records import weights
from cifar_lab.records.credentials import learn

# Groups of parts, each under a name of its own: `monitors.progress=null` leaves one out.
PARTS_LEFT_OUT_BY_NULL = ("callbacks", "monitors", "logger")
# Of Hydra and of a sweep, and of no run.
_OF_NO_RUN = ("hydra", "sweep")
# Of Hydra's node: what was typed or found, and what a sweep resolves when there is one.
_NOT_OF_A_RUN = (
    *("hydra.overrides", "hydra.runtime", "hydra.job.override_dirname"),
    *("hydra.sweep", "hydra.sweeper", "hydra.launcher"),
)


def register() -> None:
    """Registers the schema and the resolvers; the entry point calls it, importing does nothing."""
    files.install()
    ConfigStore.instance().store(name="schema", node=Root)
    if not OmegaConf.has_resolver("run_id"):
        import secrets

        # cached: the same in every place of one composition, new for every run
        OmegaConf.register_new_resolver("run_id", lambda: secrets.token_hex(3), use_cache=True)
        OmegaConf.register_new_resolver("job_name", job_name)
        OmegaConf.register_new_resolver("ablation_points", points)


def compose(overrides: Sequence[str]) -> DictConfig:
    """The configuration with its ``hydra`` node.

    Args:
        overrides: as typed, without flags, in any spelling that `normalized` knows.

    Raises:
        InputError: an override that can't be read, an unknown key or group, a wrong type.
    """
    register()
    GlobalHydra.instance().clear()
    overrides = [*normalized(overrides), *searchpath_override(overrides)]
    # not as a context: the loader stays for the job that runs under it
    initialize_config_dir(version_base="1.3", config_dir=str(conf_dir()), job_name="cifar_lab")
    try:
        cfg = with_ablation(_composed, overrides)
    except COMPOSING_RAISES as error:
        raise explain(error, overrides) from error
    check_merged(cfg, overrides)
    check_resolves(cfg.hydra, "hydra")
    return cfg


def _composed(overrides: Sequence[str]) -> DictConfig:
    return hydra_compose(CONFIG_NAME, overrides=list(overrides), return_hydra_config=True)


def compose_group(group: str, overrides: Sequence[str]) -> dict[str, Any]:
    """One group of the composed configuration as plain containers, interpolations resolved."""
    node = compose(overrides)[group]
    return plain(node)


def plain(node: DictConfig) -> dict[str, Any]:
    """The node as dictionaries and lists, interpolations resolved, enums by name."""
    container = OmegaConf.to_container(node, resolve=True, enum_to_str=True)
    assert isinstance(container, dict)
    return {str(key): value for key, value in container.items()}


def run_config(cfg: DictConfig, *, begun_with: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """The resolved configuration of a run, without Hydra's node and the sweep's.

    Args:
        cfg: composed.
        begun_with: what ``init_from`` stood for when the run began; None: it is looked at.

    Raises:
        InputError: an interpolation that leads nowhere, or no weights where ``init_from`` says.
    """
    known = {} if begun_with is None else {"init_from": dict(begun_with)}
    # key by key: a copy of all but that node takes seven times as long
    keys = [str(key) for key in cfg if key not in _OF_NO_RUN]
    config = {key: known.get(key) or _resolved(cfg, key) for key in keys}
    learn(config)
    # as if there were none: records of before these keys are of the same runs
    if config.get("init_from") is None:
        unused = ("init_from", "init_strict")
        config = {key: value for key, value in config.items() if key not in unused}
    return {
        key: value
        for key, value in config.items()
        if key not in ("freeze", "distill", "hard_examples") or value
    }


def path_at(cfg: DictConfig, key: str) -> Path:
    """A path of Hydra's node, e.g. ``hydra.run.dir``; InputError where it leads nowhere.

    Args:
        cfg: composed.
        key: dotted.
    """
    try:
        text = str(OmegaConf.select(cfg, key))
    except OmegaConfBaseException as error:
        raise InputError(f"{key}: {first_line(str(error))}") from error
    return check_named(key, text)


def check_named(key: str, path: str) -> Path:
    """The path; InputError for an empty one, which would be the working directory."""
    if not path.strip():
        raise InputError(f"{key}={path}: is empty; give a path, or . for the working directory")
    return Path(path)


def check_resolves(node: DictConfig | ListConfig, key: str) -> None:
    """Raises InputError where an interpolation below the node leads nowhere."""
    names: Iterable[Any] = range(len(node)) if isinstance(node, ListConfig) else list(node)
    for name in names:
        where = f"{key}[{name}]" if isinstance(node, ListConfig) else f"{key}.{name}"
        if where in _NOT_OF_A_RUN:
            continue
        try:
            value = None if OmegaConf.is_missing(node, name) else node[name]
        except InterpolationToMissingValueError:
            continue  # which Hydra sets before it asks
        except OmegaConfBaseException as error:
            raise InputError(f"{where}: {first_line(str(error))}") from error
        if isinstance(value, DictConfig | ListConfig):
            check_resolves(value, where)


def typed_overrides(hydra: DictConfig) -> list[str]:
    """The overrides in Hydra's node as typed; looking at each resolves what it interpolates."""
    overrides = OmegaConf.to_container(hydra.overrides.task, resolve=False)
    assert isinstance(overrides, list)
    return [str(override) for override in overrides]


def _resolved(cfg: DictConfig, key: str) -> Any:
    if OmegaConf.is_missing(cfg, key):
        return {} if key in PARTS_LEFT_OUT_BY_NULL else MISSING
    try:
        value = cfg[key]
        if OmegaConf.is_config(value):
            value = OmegaConf.to_container(value, resolve=True, enum_to_str=True)
    except OmegaConfBaseException as error:
        where = getattr(error, "full_key", None) or key
        raise InputError(f"{where}: {first_line(str(error))}") from error
    if key == "init_from" and value is not None:
        value = weights.source_of(str(value))
    if key == "freeze":
        value = _patterns(value)
    if key == "distill":
        value = _distilled(value)
    if key == "hard_examples":
        value = _hard_examples(value)
    if key == "optimizer" and isinstance(value, dict) and not value.get("groups", True):
        del value["groups"]  # as if there were none: two runs that are the same have one digest
    if key == "trainer" and isinstance(value, dict):
        default = TRAINER_DEFAULTS
        value = {k: v for k, v in value.items() if k not in default or v != default[k]}
    if key in PARTS_LEFT_OUT_BY_NULL and value is None:
        return {}
    if key in PARTS_LEFT_OUT_BY_NULL and isinstance(value, dict):
        value = {name: part for name, part in value.items() if part is not None}
    return value.name if isinstance(value, Enum) else value


def _distilled(value: Any) -> dict[str, Any] | None:
    """With the files of the teachers; None where there is none."""
    if not isinstance(value, dict) or value.get("from") is None:
        return None
    for name in ("temperature", "weight"):
        number = value.get(name)
        if not isinstance(number, int | float) or isinstance(number, bool):
            raise InputError(f"distill.{name}={number}: must be a number")
    trust = value.get("trust") or []
    if not isinstance(trust, list) or not all(isinstance(module, str) for module in trust):
        raise InputError(f"distill.trust={trust}: must be a list of modules, as in [nets]")
    return {**value, "from": weights.teachers_of(value["from"])}


def _hard_examples(value: Any) -> dict[str, Any] | None:
    """None where every image of a batch trains."""
    if not isinstance(value, dict) or value.get("share") is None:
        return None
    share, every, proxy = value["share"], value.get("every"), value.get("proxy")
    if not isinstance(share, int | float) or isinstance(share, bool):
        raise InputError(f"hard_examples.share={share}: must be a number in (0, 1), or null")
    if not isinstance(every, int) or isinstance(every, bool):
        raise InputError(f"hard_examples.every={every}: must be an integer, at least 1")
    if not isinstance(proxy, dict) or not proxy:
        raise InputError(
            f"hard_examples.proxy={'null' if proxy is None else proxy}: must be arguments of model "
            "that make a smaller network of it, e.g. 'hard_examples.proxy={width: 16}'"
        )
    return value


def _patterns(value: Any) -> list[str]:
    words = [value] if isinstance(value, str) else [] if value is None else value
    if not isinstance(words, list) or not all(isinstance(word, str) and word for word in words):
        raise InputError(
            f"freeze={value}: must be a pattern of parameters' names or a list of them, "
            "e.g. freeze=[stem.*,stages.0.*]"
        )
    return words
