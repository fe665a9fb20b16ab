"""What a person typed: nothing of it may be ignored without a word.

Hydra takes the last of two values, merges an empty dictionary into what is there, and leaves alone
what belongs to a sweep when there is none.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from cifar_lab.errors import InputError

# Settings of a sweep as a whole: one value for all of its jobs, and none for a run.
OF_THE_SWEEP = ("slots", "retries", "job_timeout", "fail_fast", "report")
# Groups that may be left out, each with an option that says so.
_CAN_BE_NONE = ("augment", "callbacks", "logger")
_NEEDED = ("data", "model", "loss", "optimizer", "scheduler", "trainer")
_PRESETS = ("experiment", "sweep", "debug")
_NOTHING = re.compile(r"(?:\+\+)?(?P<set>[a-z]+)=(?:null|\{\s*\})|~(?P<removed>[a-z]+)(?:=.*)?")
_EMPTY = re.compile(r"\{\s*\}")
_HYDRA_SETS = ("hydra.runtime.", "hydra.overrides.")


def with_none(overrides: Sequence[str]) -> list[str]:
    """The overrides with ``group=none`` for each that leaves out a group, however it is spelt.

    ``logger=null``, ``logger={}`` and ``~logger`` are what people type; Hydra refuses the first
    with a traceback, passes over the second, and leaves the third to whoever misses the group.

    Raises:
        InputError: a group that a run can't do without.
    """
    kept = []
    for override in overrides:
        match = _NOTHING.fullmatch(override)
        group = match and (match["set"] or match["removed"])
        if group in _CAN_BE_NONE:
            kept.append(f"{group}=none")
        elif group in _PRESETS:
            continue  # chosen by nobody but these overrides
        elif group in _NEEDED and "{" not in override:
            raise InputError(f"{override}: a run needs one; --help lists the options of {group}")
        else:
            kept.append(override)
    return kept


def check_unique(overrides: Sequence[str]) -> None:
    """Raises InputError where two overrides give one key different values."""
    keys = [_key(override) for override in overrides]
    dictionaries = any("{" in override for override in overrides)
    if len(set(keys)) == len(keys) and not dictionaries:  # spares what parsing costs
        return
    try:
        parsed = OverridesParser.create().parse_overrides(list(overrides))
    except HydraException:
        return  # what can't be read is refused where it is composed
    given: dict[str, tuple[Override, Any]] = {}
    for override in parsed:
        for key, value in _values(override):
            other, before = given.get(key, (override, value))
            # one that removes what is there makes room for the other
            if before != value and not (other.is_delete() and override.is_add()):
                raise InputError(
                    f"{other.input_line} {override.input_line}: two values for {key}; give one"
                )
            given[key] = override, value


def check_mode(overrides: Sequence[str], *, sweep: bool) -> None:
    """Raises InputError for what has no effect in a sweep, or else in a single run."""
    for override in overrides:
        key = _key(override)
        if key.startswith(_HYDRA_SETS):
            raise InputError(f"{override}: Hydra sets it by itself; leave it out")
        if sweep and key.startswith("hydra.run."):
            raise InputError(
                f"{override}: is of one run, and -m is a sweep, whose folder is hydra.sweep.dir"
            )
        if sweep and key == "hydra.mode" and not override.endswith("=MULTIRUN"):
            raise InputError(f"{override}: contradicts -m; leave one of them out")
        if sweep:
            continue
        if is_of_the_sweep(override):
            instead = "; the folder of a run is hydra.run.dir" if key == "hydra.sweep.dir" else ""
            raise InputError(
                f"{override}: is of a sweep, and this is one run; add -m, or leave it out{instead}"
            )
        if key.startswith(("hydra/hydra_logging", "hydra.hydra_logging")):
            raise InputError(
                f"{override}: is of Hydra's own messages, and a run has none; its log is "
                "hydra/job_logging"
            )


def check_merged(cfg: DictConfig, overrides: Sequence[str]) -> None:
    """Raises InputError for an empty dictionary that was merged into one with entries."""
    empty = [override for override in overrides if _EMPTY.search(override)]
    for override in OverridesParser.create().parse_overrides(empty):
        for key, value in _values(override):
            try:
                node = OmegaConf.select(cfg, key) if value == {} else None
            except OmegaConfBaseException:
                continue
            if isinstance(node, DictConfig) and len(node):
                instead = [f"~{key} leaves it out"] if "." in key else []
                for entry in [name for name in map(str, node) if not name.startswith("_")][:1]:
                    instead += [f"~{key}.{entry} leaves out an entry"]
                    instead += [f"{key}.{entry}=... gives it a value"]
                raise InputError(
                    f"{key}={{}}: changes nothing, for it is merged with what is there; "
                    f"{', '.join(instead)}"
                )


def is_of_the_sweep(override: str) -> bool:
    """Whether it sets something of a sweep as a whole."""
    key = _key(override)
    ours = ("hydra.sweep", "hydra/sweeper", "hydra.launcher", "hydra/launcher")
    return key in OF_THE_SWEEP or key.startswith(ours)


def _key(override: str) -> str:
    return override.lstrip("+~").partition("=")[0]


def _values(override: Override) -> Iterator[tuple[str, Any]]:
    """The keys that it gives a value, a dictionary's entries each for itself."""
    key = _key(override.get_key_element())
    one = not override.is_delete() and not override.is_sweep_override()
    value = override.value() if one else str(override.input_line).partition("=")[2:]
    yield from _leaves(key, value)


def _leaves(key: str, value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping) and value:
        for name, entry in value.items():
            yield from _leaves(f"{key}.{name}", entry)
    else:
        yield key, value
