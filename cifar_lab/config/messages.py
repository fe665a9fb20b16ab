"""What Hydra says of a configuration that it refuses, in one line."""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence

from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from cifar_lab.config import files
from cifar_lab.config.names import _is_number
from cifar_lab.config.schema import CONFIG_NAME, conf_dir
from cifar_lab.errors import InputError
from cifar_lab.records.digest import flatten

# What Hydra raises for input that it can't compose; ValueError for a group that is no text.
# RecursionError for files whose defaults lead back to themselves.
COMPOSING_RAISES = (HydraException, OmegaConfBaseException, ValueError, RecursionError)


_NO_OPTION = "Config group override must be a string"
_NO_PLUGIN = "Invalid plugin"


def explain(error: BaseException, overrides: Sequence[str]) -> InputError:
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
    if isinstance(error, RecursionError):
        named = ", ".join(files.with_defaults())
        return InputError(f"{named}: the defaults lead back to where they began; leave that out")
    if match := re.search(r"raised while composing config:\n(.+)\s+full_key: (\S+)", text):
        reason, key = match.groups()
        return _unknown_key(key, overrides) if " not in " in reason else _refused(key, reason)
    if match := re.search(r"In '([^']+)': \w+ raised while composing config:\n(.+)", text):
        where, reason = match.groups()
        if "Cannot merge" in reason:
            reason = "gives a list where there are lines of `key: value`, or these for a list"
        return InputError(f"{files.shown(where)}: {reason}")
    if match := re.search(r"Could not delete (?:from config\. )?'([^']+)'", text):
        return InputError(f"~{match.group(1)}: there is nothing of this name to leave out")
    if match := re.search(r"An item is already at '([^']+)'", text):
        return InputError(f"+{match.group(1)}: the key exists; give it without +")
    patterns = (
        *(r"Could not override '([^']+)'", r"is not in struct\s+full_key: (\S+)"),
        r"Key '([^']+)' not in '\w+'",
    )
    for pattern in patterns:
        if match := re.search(pattern, text):
            return _unknown_key(match.group(1), overrides)
    if match := re.search(r"Error merging override (.+)", text):
        reason = first_line(text[match.end() :]) or first_line(str(error.__cause__ or ""))
        return _refused(*match.group(1).split("=", 1), reason)
    while not _one_line(text) and error.__cause__ is not None:
        error, text = error.__cause__, str(error.__cause__)
    key = getattr(error, "full_key", None)
    return InputError(f"{key}: {first_line(text)}" if key else _one_line(text) or repr(error))


def is_about_input(error: Exception) -> bool:
    """Whether an error out of Hydra, or out of what it called, is about what a person typed."""
    kinds = InputError | HydraException | OmegaConfBaseException | RecursionError
    return isinstance(error, kinds) or any(said in str(error) for said in (_NO_OPTION, _NO_PLUGIN))


def _chooses(override: str) -> bool:
    """Whether it is no choice of a group, or one that can be: text after ``=``."""
    key, _, value = override.partition("=")
    group = "." not in key and (not key or "/" in key or (conf_dir() / key).is_dir())
    return not group or (bool(key) and value != "null" and not _is_number(value))


def _refused(key: str, *said: str) -> InputError:
    """A value that the schema's type doesn't take: given, where it was typed, and the reason."""
    *typed, reason = said
    found = re.search(r"Value '(.*)' of type .* be converted to (\w+)", reason)
    words = {"Integer": "an integer", "Float": "a number", "Boolean": "true or false"}
    if found and found.group(2) in words:
        return InputError(f"{key}={[*typed, found.group(1)][0]}: must be {words[found.group(2)]}")
    given = f"={typed[0]}" if typed else ""
    return InputError(f"{key}{given}: {first_line(reason)}")


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
    from cifar_lab.config.overrides import check_renamed

    try:
        check_renamed(key)  # in a file of the person's own
    except InputError as renamed:
        return renamed
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
