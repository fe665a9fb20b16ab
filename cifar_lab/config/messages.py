"""What Hydra says of a configuration that it refuses, in one line."""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from omegaconf.errors import OmegaConfBaseException

from cifar_lab.config import files
from cifar_lab.config.known_keys import alias, meant_by, said_of_unknown
from cifar_lab.config.names import is_number
from cifar_lab.config.overrides import check_renamed
from cifar_lab.config.schema import conf_dir
from cifar_lab.errors import InputError
from cifar_lab.records.digest import key_of

# What Hydra raises for input that it can't compose; ValueError for a group that is no text.
# RecursionError for files whose defaults lead back to themselves.
COMPOSING_RAISES = (HydraException, OmegaConfBaseException, ValueError, RecursionError)


_NO_OPTION = "Config group override must be a string"
_NO_PLUGIN = "Invalid plugin"
_NO_TEXT = ("null", "true", "false")  # to Hydra


def explain(error: BaseException, overrides: Sequence[str]) -> InputError:
    """The composition error as one line: the value, what is allowed, what to do."""
    text = str(error)
    if isinstance(error, InputError):
        return error
    if match := re.search(r"InputError raised while resolving interpolation: (.+)", text):
        return InputError(match.group(1))
    if isinstance(error, OverrideParseException) and "=" not in error.override:
        return InputError(
            f"{error.override}: must be key=value, without spaces around =; --help lists the keys"
        )
    if isinstance(error, OverrideParseException):
        return InputError(
            f"{error.override}: can't be read as key=value ({first_line(text)}); "
            "quote values that hold brackets, commas or spaces, e.g. 'model.num_blocks=[1,1]'"
        )
    if isinstance(error, MissingConfigException) and (found := _missing_option(text)):
        return found
    if match := re.search(r"Error in call to target '([^']+)'", text):  # of hydra.callbacks
        target, cause = match.group(1), error.__cause__ or error
        given = next((o for o in overrides if o.endswith(f"={target}")), target)
        return InputError(f"{given}: {type(cause).__name__}: {first_line(str(cause))}")
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
    if match := re.search(r"Could not delete (?:from config\. )?'([^']*)'", text):
        return InputError(f"~{match.group(1)}: there is nothing of this name to leave out")
    if match := re.search(r"Multiple values for ([^\s.]+)", text):
        group = match.group(1)
        given = next((o for o in overrides if o.startswith(f"+{group}=")), f"+{group}=")
        return InputError(f"{given}: the group has an option; give it without +: {given[1:]}")
    if match := re.search(r"(\S+) appears more than once in the final defaults list", text):
        group = match.group(1)
        return InputError(f"+{group}: the group has an option; give it without +: {group}=...")
    if match := re.search(r"Could not find '([^'/]+)/'", text):
        return InputError(f"{match.group(1)}=: must be the name of an option; --help lists them")
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
    key, _, value = override.lstrip("+~").partition("=")
    group = "." not in key and (not key or "/" in key or (conf_dir() / key).is_dir())
    return not group or (bool(key) and value.lower() not in _NO_TEXT and not is_number(value))


def _refused(key: str, *said: str) -> InputError:
    """A value that the schema's type doesn't take: given, where it was typed, and the reason."""
    *typed, reason = said
    found = re.search(r"Value '(.*)' of type .* be converted to (\w+)", reason)
    words = {"Integer": "an integer", "Float": "a number", "Boolean": "true or false"}
    if found and found.group(2) in words:
        return InputError(f"{key}={[*typed, found.group(1)][0]}: must be {words[found.group(2)]}")
    given = f"={typed[0]}" if typed else ""
    if "Cannot merge DictConfig with ListConfig" in reason:
        reason = "must be keys and their values, as {a: 1}, and no list"
    if "is not Optional" in reason:
        reason = "must have a value; leave it out for the default"
    return InputError(f"{key}{given}: {first_line(reason)}")


def _one_line(text: str) -> str:
    """The first line, and what it announces."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    announced = lines[1:2] if lines and lines[0].endswith(":") else []
    return " ".join([*lines[:1], *announced]).rstrip(".")


def first_line(text: str) -> str:
    """The first line that says something, without its full stop."""
    line = next((line.strip() for line in text.splitlines() if line.strip()), "").rstrip(".")
    # of OmegaConf's, around what the resolver said
    return re.sub(r"^\w+ raised while resolving interpolation: [\"']?(.*?)[\"']?$", r"\1", line)


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
        f"available: {', '.join(available)}; {_way_on(group, name)}"
    )


# Groups whose parts a library has: how one of them is given without a file.
OF_A_LIBRARY = {
    "model": "one of torchvision's is model._target_=torchvision.models.resnet18 ~model.width "
    "~model.dropout, one of timm's model=timm model.name=resnet18",
    "data": "pictures in class folders are data=folders data.root=FOLDER",
    "loss": "one of torch's is loss._target_=torch.nn.MultiMarginLoss ~loss.label_smoothing",
    "optimizer": "one of torch's is optimizer=adamw optimizer._target_=torch.optim.NAdam "
    "~optimizer.fused",
    "scheduler": "one of torch's is scheduler=none "
    "scheduler._target_=torch.optim.lr_scheduler.StepLR +scheduler.step_size=100",
    "logger": "one of Lightning's is +logger.mine._target_=lightning.pytorch.loggers.WandbLogger",
    "callbacks": "one of Lightning's is +callbacks.mine._target_=lightning.pytorch.callbacks.Timer",
    "monitors": "one of Lightning's is "
    "+monitors.mine._target_=lightning.pytorch.callbacks.LearningRateMonitor",
}


def _way_on(group: str, name: str) -> str:
    own = f"your own goes into conf/{group}/{name}.yaml (docs/extending.md)"
    return f"{OF_A_LIBRARY[group]}; {own}" if group in OF_A_LIBRARY else own


def _unknown_key(key: str, overrides: Sequence[str]) -> InputError:
    try:
        check_renamed(key)  # in a file of the person's own
    except InputError as renamed:
        return renamed
    return InputError(f"{key}: unknown key{said_of_unknown(key, overrides)}; see --help")


# Hydra's, which argparse takes by their beginnings too.
# fmt: off
FLAGS = (
    "--help", "-h", "--hydra-help", "--version", "--cfg", "-c", "--resolve", "--package", "-p",
    "--run", "-r", "--multirun", "-m", "--shell-completion", "-sc", "--config-path", "-cp",
    "--config-name", "-cn", "--config-dir", "-cd", "--experimental-rerun", "--info", "-i",
)
# fmt: on


def check_flags(arguments: Sequence[str]) -> None:
    """Raises InputError for a flag that there is none of here, with what is meant by it.

    Args:
        arguments: with all flags before the overrides.
    """
    given = {
        f"{flag} {value if equals else after}": value if equals else after
        for argument, after in zip(arguments, [*arguments[1:], ""], strict=True)
        for flag, equals, value in [argument.partition("=")]
        if flag in _OF_ANOTHER_ROOT
    }
    for flag, where in sorted(given.items(), key=lambda one: ".hydra" not in one[1]):
        settings = [a for a in arguments if "=" in a and a[0] != "-" and a != where]
        raise InputError(f"{flag}: {_instead_of_another_root(where, settings)}")
    for argument in arguments:
        flag, equals, value = argument.partition("=")
        known = flag in FLAGS or (len(flag) > 3 and sum(f.startswith(flag) for f in FLAGS) == 1)
        if known or not argument.startswith("-"):
            continue
        word = meant_by(flag.lstrip("-").replace("-", "_"))
        near = difflib.get_close_matches(flag, FLAGS, n=1, cutoff=0.8)
        if word and not near and equals and "=" not in word:
            word = f"{word}={value}"
        meant = near[0] if near else word
        said = f" (did you mean {meant}?)" if meant else ""
        raise InputError(
            f"{argument}: no such flag{said}; settings are key=value without dashes, and --help "
            "lists them"
        )
    if any(a.startswith("-") and a not in _HARMLESS for a in arguments):
        _check_values(arguments)


_HARMLESS = ("-m", "--multirun", "-h", "--help", "--hydra-help", "--version")


def _check_values(arguments: Sequence[str]) -> None:
    """Refuses what Hydra's flags do not take, which argparse answers with a page of usage."""
    from hydra._internal.utils import get_args_parser

    def refuse(message: str) -> NoReturn:
        raise InputError(f"{message}; --hydra-help lists Hydra's flags")

    parser = get_args_parser()
    parser.error = refuse  # type: ignore[method-assign]  # argparse has no setting for it
    given = parser.parse_args([a for a in arguments if a != "--version"])
    if given.resolve and not (given.cfg or given.help):
        refuse("--resolve: is of --cfg; add --cfg job")
    keys = {override.partition("=")[0] for override in given.overrides}
    if given.shell_completion and not keys & {"install", "uninstall", "query"}:
        refuse("--shell-completion: needs install=bash, uninstall=bash, or another shell's name")


# The schema, the checks and the sweeps are of conf/config.yaml.
_OF_ANOTHER_ROOT = (
    *("--config-path", "-cp", "--config-name", "-cn", "--experimental-rerun"),
    "--config",  # Lightning's
)


def _instead_of_another_root(where: str, settings: Sequence[str]) -> str:
    from cifar_lab.records.record import command_line, record_of

    hydra = next((p for p in (Path(where), *Path(where).parents) if p.name == ".hydra"), None)
    if hydra is not None and (record := record_of(hydra.parent)) is not None:
        typed = {key_of(setting) for setting in settings}
        kept = [o for o in record.overrides if key_of(o) not in typed]
        again = [o for o in kept if not o.startswith("hydra.run.")]
        return f"to repeat that run in a folder of its own: {command_line([*again, *settings])}"
    return (
        "there is one root, config.yaml; an experiment of your own is conf/experiment/NAME.yaml "
        "beside you, chosen with experiment=NAME"
    )


def suggestion(word: str, known: Sequence[str]) -> str:
    """`` (did you mean ...?)`` with the nearest known word, or nothing."""
    here = (alias(word) or "").rpartition(".")[2]
    by_case = [name for name in known if name.lower() == word.lower()]
    near = [here] if here in known else by_case
    near = near or difflib.get_close_matches(word, known, n=1, cutoff=0.6)
    return f" (did you mean {near[0]}?)" if near else ""
