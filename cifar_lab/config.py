"""The typed root of the configuration, and the checks that turn wrong input into one clear line.

Hydra composes; this module says where ``conf/`` is, what the root holds, and whether a composed
configuration can be built. The numbers live in ``conf/`` and nowhere else.
"""

from __future__ import annotations

import difflib
import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any

from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from omegaconf import MISSING, DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from cifar_lab.errors import InputError
from cifar_lab.identity import flatten
from cifar_lab.overrides import check_merged, with_none

CONFIG_NAME = "config"
# Groups of parts, each under a name of its own: `callbacks.pictures=null` leaves one out.
PARTS_LEFT_OUT_BY_NULL = ("callbacks", "logger")
# What Hydra raises for input that it can't compose; ValueError for a group that is no text.
COMPOSING_RAISES = (HydraException, OmegaConfBaseException, ValueError)
_NO_OPTION = "Config group override must be a string"


class Resume(Enum):
    """What starting into a folder that already holds a run means."""

    auto = "auto"
    never = "never"
    must = "must"


class Compile(Enum):
    """How the network is compiled."""

    none = "none"
    default = "default"
    max = "max"


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
    channels_last: bool = MISSING
    compile: Compile = MISSING
    cuda_graph: bool = MISSING
    steps_per_call: int | None = MISSING
    resume: Resume = MISSING
    slots: int | None = MISSING
    retries: int = MISSING
    job_timeout: float | None = MISSING
    fail_fast: bool = MISSING
    report: bool = MISSING
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
    overrides = [*with_none(overrides), *searchpath_override(overrides)]
    # not as a context: the loader stays for the job that runs under it
    initialize_config_dir(version_base="1.3", config_dir=str(conf_dir()), job_name="cifar_lab")
    try:
        cfg = hydra_compose(CONFIG_NAME, overrides=overrides, return_hydra_config=True)
    except COMPOSING_RAISES as error:
        raise explain(error, overrides) from error
    check_merged(cfg, overrides)
    return cfg


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
    """The resolved configuration without Hydra's own node.

    Raises:
        InputError: an interpolation that leads nowhere.
    """
    # key by key: a copy of all but that node takes seven times as long
    return {str(key): _resolved(cfg, str(key)) for key in cfg if key != "hydra"}


def path(cfg: DictConfig, key: str) -> Path:
    """A path of Hydra's node, e.g. ``hydra.run.dir``; InputError where it leads nowhere."""
    try:
        return Path(str(OmegaConf.select(cfg, key)))
    except OmegaConfBaseException as error:
        raise InputError(f"{key}: {first_line(str(error))}") from error


def typed_overrides(hydra: DictConfig) -> list[str]:
    """The overrides in Hydra's node as typed; looking at each resolves what it interpolates."""
    overrides = OmegaConf.to_container(hydra.overrides.task, resolve=False)
    assert isinstance(overrides, list)
    return [str(override) for override in overrides]


def _resolved(cfg: DictConfig, key: str) -> Any:
    if OmegaConf.is_missing(cfg, key):
        return MISSING
    try:
        value = cfg[key]
        if OmegaConf.is_config(value):
            value = OmegaConf.to_container(value, resolve=True, enum_to_str=True)
    except OmegaConfBaseException as error:
        where = getattr(error, "full_key", None) or key
        raise InputError(f"{where}: {first_line(str(error))}") from error
    if key in PARTS_LEFT_OUT_BY_NULL and isinstance(value, dict):
        value = {name: part for name, part in value.items() if part is not None}
    return value.name if isinstance(value, Enum) else value


# --- what Hydra says, in one line -------------------------------------------------------------


def explain(error: Exception, overrides: Sequence[str]) -> InputError:
    """The composition error as one line: the value, what is allowed, what to do."""
    text = str(error)
    if isinstance(error, InputError):
        return error
    if isinstance(error, OverrideParseException):
        return InputError(
            f"{error.override}: can't be read as key=value ({first_line(text)}); "
            "quote values that hold brackets, commas or spaces, e.g. 'model.num_blocks=[1,1]'"
        )
    if isinstance(error, MissingConfigException) and (found := _missing_option(text)):
        return found
    if match := re.search(r"Sweep parameters '([^']+)'", text):
        return InputError(f"{match.group(1)}: is a sweep, which needs -m")
    if match := re.search(r"Ambiguous value for argument '([^']+)'", text):
        key, _, value = match.group(1).partition("=")
        return InputError(
            f"{match.group(1)}: several values are a sweep, which needs -m; a list is "
            f"{key}=[{value}]"
        )
    if _NO_OPTION in text:
        wrong = next((o for o in overrides if not _chooses(o)), "")
        return InputError(f"{wrong}: must be the name of an option; --help lists them")
    if match := re.search(r"An item is already at '([^']+)'", text):
        return InputError(f"+{match.group(1)}: the key exists; give it without +")
    patterns = (r"Could not override '([^']+)'", r"is not in struct\s+full_key: (\S+)")
    for pattern in patterns:
        if match := re.search(pattern, text):
            return _unknown_key(match.group(1), overrides)
    if match := re.search(r"Error merging override (\S+?)=(.*)", text):
        reason = first_line(text[match.end() :]) or first_line(str(error.__cause__ or ""))
        return InputError(f"{match.group(1)}={match.group(2)}: {reason}")
    return InputError(_one_line(text))


def is_about_input(error: Exception) -> bool:
    """Whether an error out of Hydra, or out of what it called, is about what a person typed."""
    known = isinstance(error, InputError | HydraException | OmegaConfBaseException)
    return known or _NO_OPTION in str(error)


def _chooses(override: str) -> bool:
    """Whether it is no choice of a group, or one that can be: text after ``=``."""
    key, _, value = override.partition("=")
    group = "." not in key and (not key or "/" in key or (conf_dir() / key).is_dir())
    return not group or (bool(key) and value != "null" and not _is_number(value))


def _one_line(text: str) -> str:
    """The first line, and what it announces."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    announced = lines[1:2] if lines and lines[0].endswith(":") else []
    return " ".join([*lines[:1], *announced]).rstrip(".")


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
        f"{group}={name}: no such option{suggestion(name, available)}; "
        f"available: {', '.join(available)}"
    )


def _unknown_key(key: str, overrides: Sequence[str]) -> InputError:
    return InputError(f"{key}: unknown key{suggestion(key, _known_keys(overrides))}; see --help")


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


def suggestion(word: str, known: Sequence[str]) -> str:
    """`` (did you mean ...?)`` with the nearest known word, or nothing."""
    near = difflib.get_close_matches(word, known, n=1, cutoff=0.6)
    if not near and "." not in word:
        # a bare `lr` means `optimizer.lr`
        near = [key for key in known if key.rpartition(".")[2] == word][:1]
    return f" (did you mean {near[0]}?)" if near else ""


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
