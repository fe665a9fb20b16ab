"""What a person typed: nothing of it may be ignored without a word.

Hydra takes the last of two values, merges an empty dictionary into what is there, and leaves alone
what belongs to a sweep when there is none.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser, create_functions
from hydra.core.override_parser.types import Override, Quote, QuotedString
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from cifar_lab.config.schema import TRAINER_DEFAULTS, Root, conf_dir
from cifar_lab.errors import InputError
from cifar_lab.records.digest import key_of

# Groups that may be left out, each with an option that says so.
CAN_BE_NONE = (
    *("augment", "callbacks", "logger", "monitors", "scheduler", "optimizer/groups"),
    *("experiment", "sweep", "debug"),
)
_NEEDED = ("data", "model", "loss", "optimizer", "trainer")
_NOTHING = re.compile(r"(?:\+\+)?(?P<set>[a-z/]+)=(?:null|\{\s*\})|~(?P<removed>[a-z/]+)(?:=.*)?")
_REMOVED = re.compile(rf"~({'|'.join(Root.__dataclass_fields__)})(?:=.*)?")
# Keys by what they were called before, and options of `callbacks` that are monitors now.
RENAMED = {
    **{key: f"sweep.{key}" for key in ("slots", "retries", "job_timeout", "fail_fast", "report")},
    "callbacks.progress": "monitors.progress",
    "callbacks.grad_norm": "monitors.grad_norm",
    "callbacks.overview": "monitors.model_overview",
    "callbacks.pictures": "monitors.test_figures",
}
# Flags of Hydra's that are followed by a value, and those that may be.
_WITH_VALUE = {
    *("--cfg", "-c", "--package", "-p", "--config-path", "-cp", "--config-name", "-cn"),
    "--config",
    *("--config-dir", "-cd", "--experimental-rerun"),
}
_INFO = ("all", "config", "defaults", "defaults-tree", "plugins", "searchpath")
_MAYBE_WITH_VALUE = {"--info": _INFO, "-i": _INFO}
_EMPTY = re.compile(r"\{\s*\}")
# Hydra reads these as they stand, in a shell too.
_PLAIN = re.compile(r"[A-Za-z0-9_./+-]*")
# What begins so is Hydra's syntax, and no text that it can't read.
_SYNTAX = ("'", '"', "[", "{")
_PATHS = ("data.root", "data.cache", "hydra.run.dir", "hydra.sweep.dir")
_HYDRA_SETS = ("hydra.runtime.", "hydra.overrides.")


def assignment(key: str, text: str) -> str:
    """``key=text`` as Hydra reads it back, whatever the text holds: in quotes where it has to be.

    For the shell `records.record.command_line` quotes it once more.
    """
    return f"{key}={hydra_quoted(text)}"


def hydra_quoted(text: str) -> str:
    """The text as one of Hydra's values."""
    plain = _PLAIN.fullmatch(text) and _read(text) == text
    return text if plain else str(QuotedString(text, Quote.double).with_quotes())


def as_typed(arguments: Sequence[str]) -> list[str]:
    """The arguments as Hydra can read them: plain text, folders above all, needs no quotes of its.

    ``data.root=/home/jörg/images`` is a path, with any of ``( ) = ' " , # &`` too; ``~/`` is the
    home folder, which shells leave alone there. In a sweep commas part the paths.
    """
    sweep = any(argument in ("-m", "--multirun") for argument in arguments)
    return [_as_typed(argument, sweep) for argument in arguments]


def _as_typed(argument: str, sweep: bool) -> str:
    key, equals, value = argument.partition("=")
    if not equals or argument.startswith("-") or _PLAIN.fullmatch(value):
        return argument
    if value.startswith(_SYNTAX) or "${" in value:
        return argument
    if key_of(argument) not in _PATHS:
        value = _in_home(value)
        is_text = _read(value) is None and not re.search(r"^=|[,()\[\]{}]", value)
        return assignment(key, value) if is_text else f"{key}={value}"
    called = re.match(r"(\w+)\(", value)
    if called and called[1] in create_functions().definitions:  # choice(...), glob(...)
        return argument
    paths = map(_in_home, value.split(",") if sweep else [value])
    return f"{key}=" + ",".join(
        path if _read(path) not in (None, ...) else hydra_quoted(path) for path in paths
    )


def _in_home(value: str) -> str:
    return os.path.expanduser(value) if value.startswith("~/") else value


def _read(value: str) -> Any:
    """What Hydra makes of a value; None where it can't be read, ``...`` where it is several."""
    try:
        (override,) = OverridesParser.create().parse_overrides([f"key={value}"])
    except HydraException:
        return None
    return ... if override.is_sweep_override() else override.value()


def check_folder(key: str, path: Path) -> Path:
    """The path; InputError for a name that no printed command could repeat.

    Hydra would put a value in place of ``${...}``, and a line break ends the line.
    """
    text = str(path)
    encodable = text.encode("utf-8", "replace").decode("utf-8") == text
    if not encodable or "${" in text or any(ord(letter) < 32 for letter in text):
        raise InputError(
            f"{key}={text!a}: a folder's name can hold no line break, no other control "
            "character, no ${ and no bytes that are not UTF-8; choose another folder"
        )
    try:
        path.exists()
    except OSError as error:  # a name that is too long
        raise InputError(f"{key}={path}: {error.strerror}; choose another folder") from error
    return path


def searchpath_override(overrides: Sequence[str]) -> list[str]:
    """Lets folders under ``./conf`` of the working directory join the search path."""
    own = Path.cwd() / "conf"
    given = any(re.match(r"\+*hydra\.searchpath=", override) for override in overrides)
    if given or not own.is_dir() or own.resolve() == conf_dir().resolve():
        return []
    check_folder("the working directory", own)
    return [f"hydra.searchpath=[{hydra_quoted(f'file://{own}')}]"]


def flags_first(arguments: Sequence[str]) -> list[str]:
    """The arguments with all flags before the overrides: argparse takes no more after a gap."""
    flags: list[str] = []
    overrides: list[str] = []
    rest = list(arguments)
    while rest:
        argument = rest.pop(0)
        if not argument.startswith("-"):
            overrides.append(argument)
            continue
        flags.append(argument)
        if rest and (argument in _WITH_VALUE or rest[0] in _MAYBE_WITH_VALUE.get(argument, ())):
            flags.append(rest.pop(0))
    return [*flags, *overrides]


def normalized(overrides: Sequence[str]) -> list[str]:
    """The overrides as Hydra takes them, whichever way they are spelt.

    ``group=none`` for each that leaves out a group: ``logger=null``, ``logger={}`` and ``~logger``
    are what people type; Hydra refuses the first with a traceback, passes over the second, and
    leaves the third to whoever misses the group. And no ``+`` before an argument of Trainer, which
    older versions wanted.

    Raises:
        InputError: a group that a run can't do without, or a name that has been changed.
    """
    kept = []
    for override in overrides:
        check_renamed(override)
        added = override.removeprefix("+").partition("=")[0]
        if added.startswith("trainer.") and added.removeprefix("trainer.") in TRAINER_DEFAULTS:
            override = override.lstrip("+")
        match = _NOTHING.fullmatch(override)
        group = match and (match["set"] or match["removed"])
        if group in CAN_BE_NONE:
            kept.append(f"{group}=none")
        elif group in _NEEDED and "{" not in override:
            raise InputError(f"{override}: a run needs one; --help lists the options of {group}")
        elif removed := _REMOVED.fullmatch(override):
            raise InputError(f"{override}: a run needs it; {removed[1]}=... gives it another value")
        else:
            kept.append(override)
    return kept


def check_renamed(override: str) -> None:
    """Raises InputError, with the new name, for one that has been changed."""
    prefix = override[: len(override) - len(override.lstrip("+~"))]
    key, equals, value = override.lstrip("+~").partition("=")
    for before, now in RENAMED.items():
        if key == before or key.startswith(f"{before}."):
            changed = f"{prefix}{now}{key.removeprefix(before)}{equals}{value}"
            raise InputError(f"{override}: is called {changed} now")
        options = value.strip("[]").split(",") if key == "callbacks" else ()
        if any(f"callbacks.{option.strip()}" == before for option in options):
            option = now.removeprefix("monitors.")
            raise InputError(f"{override}: is called monitors={option} now, beside callbacks=...")


def check_unique(overrides: Sequence[str]) -> None:
    """Raises InputError where two overrides give one key different values."""
    keys = [key_of(override) for override in overrides]
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
        key = key_of(override)
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
    key = key_of(override)
    ours = ("hydra.sweep", "hydra/sweeper", "hydra.launcher", "hydra/launcher")
    return key.startswith(("sweep.", *ours))


def _values(override: Override) -> Iterator[tuple[str, Any]]:
    """The keys that it gives a value, a dictionary's entries each for itself."""
    key = key_of(override.get_key_element())
    one = not override.is_delete() and not override.is_sweep_override()
    value = override.value() if one else str(override.input_line).partition("=")[2:]
    yield from _leaves(key, value)


def _leaves(key: str, value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping) and value:
        for name, entry in value.items():
            yield from _leaves(f"{key}.{name}", entry)
    else:
        yield key, value
