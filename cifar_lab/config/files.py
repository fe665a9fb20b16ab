"""Files of the configuration: what is wrong in one is a line with file, line, key and remedy.

Hydra reads them through `Files`, which keeps in mind those of a person's own: a value that is
refused later is named with its place too (`with_place`).
"""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from pathlib import Path

import yaml
from hydra._internal.core_plugins.file_config_source import FileConfigSource
from hydra._internal.sources_registry import SourcesRegistry
from hydra.core.plugins import Plugins
from hydra.plugins.config_source import ConfigResult
from omegaconf import Container, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from omegaconf.grammar_parser import parse

from cifar_lab.config.overrides import CAN_BE_NONE
from cifar_lab.config.schema import CONFIG_NAME, Root, Sweep, conf_dir
from cifar_lab.errors import InputError

# Groups whose files set keys of the root, and have no node of their own there.
_OF_THE_ROOT = ("experiment", "debug")
# Groups whose files may choose others' options, as conf/config.yaml names them: what comes before.
_CHOOSING = ("experiment", "sweep", "debug")
_HEADER = "# @package _global_"

# The files of a person's own, as text, by path and dotted package; the last one read comes last.
_read: dict[tuple[Path, str], str] = {}


def install() -> None:
    """Has Hydra read files through `Files`; forgets those that were read before."""
    Plugins.instance()  # which registers Hydra's own source, once
    SourcesRegistry.instance().types["file"] = Files
    _read.clear()


class Files(FileConfigSource):
    """Hydra's source of ``file://``, whose errors name file, line and remedy.

    A byte-order mark is passed over, and a file of an experiment needs no ``# @package _global_``.
    """

    def load_config(self, config_path: str) -> ConfigResult:
        """As Hydra's.

        Raises:
            InputError: it can't be read, is no YAML, or holds what no file of its group can.
        """
        name = self._normalize_file_name(config_path)
        path = Path(self.path, name)
        if not path.is_file():
            return super().load_config(config_path)
        if Path(self.path) == conf_dir():
            _check_not_shadowing(path, name)
            return super().load_config(config_path)
        group = name.partition("/")[0]
        text = _text_of(path)
        header = _header_of(path, text)
        node = _checked(path, text, group)
        if header["package"] is None and group in _OF_THE_ROOT:
            header["package"] = "_global_"
        if header["package"] is None and group == "sweep":
            _check_of_the_sweep(path, node)
        if header["package"] == "_global_":
            _check_of_the_root(path, node)
        elif group in _OF_THE_ROOT and header["package"] == group:
            raise InputError(f"{_shown(path)}: @package {group}: must be {_HEADER}")
        package = header["package"] or str(Path(name).parent).replace("/", ".")
        _read.pop(key := (path, re.sub(r"^_global_\.?|^\.$", "", package)), None)
        _read[key] = text
        try:
            config = OmegaConf.load(io.StringIO(text))
        except (
            yaml.YAMLError,
            OmegaConfBaseException,
            OSError,
        ) as error:  # passed yaml's own check
            raise InputError(_yaml_line(path, text, error)) from error
        _choose_none(config)
        scheme = f"{self.scheme()}://{self.path}"
        return ConfigResult(config=config, path=scheme, provider=self.provider, header=header)

    def is_config(self, config_path: str) -> bool:
        """As Hydra's, but raises InputError for a name that it passes over without a word."""
        found = super().is_config(config_path)
        other = Path(self.path, config_path).with_suffix(".yml")
        if not found and not Path(config_path).suffix and config_path and other.is_file():
            raise InputError(f"{_shown(other)}: must be called {other.stem}.yaml")
        return found


def with_place(message: str, arguments: Sequence[str]) -> str:
    """The message, with the place before it where a file of a person's own gives the key in it."""
    match = re.match(r"[A-Za-z_][\w./-]*(?=[:=])", message)
    key = match.group() if match else ""
    for argument in arguments:
        typed, _, value = argument.lstrip("+~").partition("=")
        above = value.startswith("{") and key.startswith(f"{typed}.")
        if key == typed or above or typed.startswith(f"{key}."):
            return message
    place = _place_of(key) if key else ""
    return f"{place}: {message}" if place else message


def shown(config_path: str) -> str:
    """The file of one of Hydra's names, as ``experiment/mine``; the name where it is unknown."""
    known = [path for path, _ in _read if str(path).endswith(f"/{config_path}.yaml")]
    return _shown(known[-1]) if known else config_path


def with_defaults() -> list[str]:
    """The files of a person's own that were read and choose others."""
    return [_shown(path) for (path, _), text in _read.items() if "defaults:" in text]


def _place_of(key: str) -> str:
    """``conf/experiment/mine.yaml:4`` of the last file that gives the key; empty without one."""
    for (path, package), text in reversed(_read.items()):
        if package and key != package and not key.startswith(f"{package}."):
            continue
        names = key.removeprefix(package).strip(".").split(".")
        try:
            root = yaml.compose(text, Loader=yaml.SafeLoader)
        except yaml.YAMLError:
            continue
        line = _line_of(root, names)
        if line is not None:
            return f"{_shown(path)}:{line}"
        if package and len(names) == 1:  # what its own group lacks
            return _shown(path)
    return ""


def _line_of(node: yaml.Node | None, names: list[str]) -> int | None:
    if not isinstance(node, yaml.MappingNode):
        return None
    for key, value in node.value:
        if names == [key.value]:
            return int(key.start_mark.line) + 1
        if key.value == names[0] and len(names) > 1:
            return _line_of(value, names[1:])
        if key.value == "defaults" and len(names) == 1:
            for entry in getattr(value, "value", []):
                chosen = entry.value[0][0].value if isinstance(entry, yaml.MappingNode) else ""
                if re.fullmatch(rf"(override )?/?{re.escape(names[0])}", chosen):
                    return int(entry.start_mark.line) + 1
    return None


def _choose_none(config: Container) -> None:
    """``override /GROUP: null`` becomes ``none`` where a group may be left out."""
    defaults = OmegaConf.select(config, "defaults") if OmegaConf.is_dict(config) else None
    for entry in defaults or ():
        for key in [k for k in entry if entry[k] is None] if OmegaConf.is_dict(entry) else ():
            if str(key).removeprefix("override ").lstrip("/") in CAN_BE_NONE:
                entry[key] = "none"


# --- what a file may hold -------------------------------------------------------------------------


def _text_of(path: Path) -> str:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise InputError(f"{_shown(path)}: can't be read ({error.strerror})") from error
    if content.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise InputError(f"{_shown(path)}: is UTF-16; save it as UTF-8")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        byte = content[error.start]
        raise InputError(
            f"{_shown(path)}:{line}: the byte {byte:#x} is no UTF-8; save the file as UTF-8"
        ) from error


def _header_of(path: Path, text: str) -> dict[str, str | None]:
    try:
        return Files._get_header_dict(text)  # noqa: SLF001  (of the class that this one extends)
    except ValueError as error:
        raise InputError(f"{_shown(path)}: {error}; it must be {_HEADER}") from error


def _checked(path: Path, text: str, group: str) -> yaml.MappingNode | None:
    """The root of a file that Hydra can merge; None for one without a key."""
    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.YAMLError as error:
        raise InputError(_yaml_line(path, text, error)) from error
    if node is None:
        if group in (*_OF_THE_ROOT, "sweep"):
            raise InputError(f"{_shown(path)}: is empty, and would change nothing; must set a key")
        return None
    if not isinstance(node, yaml.MappingNode):
        kind = "a list" if isinstance(node, yaml.SequenceNode) else "no more than a value"
        line = node.start_mark.line + 1
        raise InputError(f"{_shown(path)}:{line}: holds {kind}; must be lines of `key: value`")
    _check_interpolations(path, node)
    _check_defaults(path, node, group)
    return node


def _check_interpolations(path: Path, node: yaml.Node) -> None:
    if isinstance(node, yaml.ScalarNode) and "${" in node.value:
        try:
            parse(node.value)
        except OmegaConfBaseException as error:
            line = node.start_mark.line + 1
            raise InputError(
                f"{_shown(path)}:{line}: {node.value} is no interpolation; must be ${{key}}, "
                "${resolver:argument}, or \\${ for the text itself"
            ) from error
    elif isinstance(node, yaml.MappingNode):
        for _, value in node.value:
            _check_interpolations(path, value)
    elif isinstance(node, yaml.SequenceNode):
        for value in node.value:
            _check_interpolations(path, value)


def _check_defaults(path: Path, root: yaml.MappingNode, group: str) -> None:
    node = next((value for key, value in root.value if key.value == "defaults"), None)
    if node is None:
        return
    place = f"{_shown(path)}:{node.start_mark.line + 1}"
    if not isinstance(node, yaml.SequenceNode):
        raise InputError(f"{place}: defaults: must be a list, e.g. `- override /model: resnet10`")
    if group not in (*_OF_THE_ROOT, "sweep"):
        return
    groups = _groups() | set(_CHOOSING)
    for entry in node.value:
        if not isinstance(entry, yaml.MappingNode):
            continue
        ((key, value), *_) = entry.value
        chosen = key.value.removeprefix("override ").strip()
        _check_order(path, entry, group, chosen.lstrip("/"), str(getattr(value, "value", "")))
        if chosen.lstrip("/").partition("/")[0] not in groups or (path.parent / chosen).is_dir():
            continue
        if not key.value.startswith("override /"):
            line = entry.start_mark.line + 1
            raise InputError(
                f"{_shown(path)}:{line}: {key.value}: the group has an option already; "
                f"write `- override /{chosen.lstrip('/')}: {getattr(value, 'value', '')}`"
            )


def _check_order(path: Path, entry: yaml.Node, group: str, chosen: str, option: str) -> None:
    """Refuses a choice that Hydra would pass over, or call an unknown key."""
    if chosen not in _CHOOSING[_CHOOSING.index(group) :]:
        return
    place = f"{_shown(path)}:{entry.start_mark.line + 1}: {chosen}: {option}"
    if chosen == group:
        raise InputError(
            f"{place}: a file of {group} can't choose another in its own place; `- {option}` takes "
            "that one in, before this file's own keys"
        )
    raise InputError(
        f"{place}: comes after {group}, and can't be chosen here; give {chosen}={option} on the "
        "command line"
    )


def _check_of_the_sweep(path: Path, root: yaml.MappingNode | None) -> None:
    of_the_root = {"hydra", *Root.__dataclass_fields__} - set(Sweep.__dataclass_fields__)
    for key, _ in [] if root is None else root.value:
        if key.value in of_the_root:
            line = key.start_mark.line + 1
            raise InputError(
                f"{_shown(path)}:{line}: {key.value}: is a key of the root; the file's first line "
                f"must be {_HEADER}"
            )


def _check_of_the_root(path: Path, root: yaml.MappingNode | None) -> None:
    """What Hydra would merge into the root, or put in place of what is there."""
    groups = _groups()
    for key, value in [] if root is None else root.value:
        line, name = key.start_mark.line + 1, str(key.value)
        group, dot, rest = name.partition(".")
        if dot and group in {"hydra", *Root.__dataclass_fields__}:
            raise InputError(
                f"{_shown(path)}:{line}: {name}: a dot parts no keys in a file; must be {group}: "
                f"and below it, indented, {rest}: {getattr(value, 'value', '')}"
            )
        if name not in groups or isinstance(value, yaml.MappingNode):
            continue
        if isinstance(value, yaml.SequenceNode):
            raise InputError(
                f"{_shown(path)}:{line}: {name}: holds a list; must be lines of `key: value`"
            )
        null = "none" if name in CAN_BE_NONE else "NAME"
        option = value.value if value.value not in ("", "~", "null") else null
        raise InputError(
            f"{_shown(path)}:{line}: {name}: {value.value}: an option is chosen among the file's "
            f"defaults, with `- override /{name}: {option}`"
        )


def _groups() -> set[str]:
    return set(Root.__dataclass_fields__) & {entry.name for entry in conf_dir().iterdir()}


def _check_not_shadowing(path: Path, name: str) -> None:
    """Hydra takes the package's file: one of the same name below ./conf would be ignored."""
    own = Path.cwd() / "conf" / name
    if Path(name).stem == CONFIG_NAME or not own.is_file() or own.samefile(path):
        return
    if own.read_bytes() != path.read_bytes():
        raise InputError(
            f"{_shown(own)}: the package's file of this name comes first; give yours another name"
        )


# --- YAML's errors --------------------------------------------------------------------------------


def _yaml_line(path: Path, text: str, error: Exception) -> str:
    mark = getattr(error, "problem_mark", None) or getattr(error, "context_mark", None)
    problem = str(getattr(error, "problem", None) or getattr(error, "reason", None) or error)
    if isinstance(error, yaml.reader.ReaderError):
        line = text[: error.position].count("\n") + 1
        return f"{_shown(path)}:{line}: holds a character that YAML doesn't allow; leave it out"
    line = 1 if mark is None else mark.line + 1
    return f"{_shown(path)}:{line}: {_in_words(problem, text.splitlines(), line)}"


def _in_words(problem: str, lines: list[str], line: int) -> str:
    here = lines[line - 1] if line <= len(lines) else ""
    if "\\t" in problem or "\t" in here[: len(here) - len(here.lstrip())]:
        return "a tab; YAML is indented with spaces"
    if match := re.search(r"duplicate key (.+)", problem):
        return f"{match.group(1)}: a second time; leave one of them out"
    if "unhashable key" in problem:
        return "a key must be text, and no list or dictionary"
    if "another document" in problem:
        return "--- begins a second document, and a file holds one"
    if match := re.search(r"constructor for the tag '(?:tag:yaml.org,2002:)?([^']+)'", problem):
        return f"the tag !{match.group(1)} builds an object; use a node with _target_"
    if "${" in here and "{" in problem:
        return f"{here.strip()}: within {{ }} an interpolation needs quotes, as in {{a: '${{b}}'}}"
    return f"is no YAML ({problem.splitlines()[0]}); quote text that holds : # [ ] {{ }} , or *"


def _shown(path: Path) -> str:
    here = Path.cwd()
    return str(path.relative_to(here) if path.is_relative_to(here) else path)
