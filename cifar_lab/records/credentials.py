"""Passwords, tokens and keys: known by their names or their places, and masked wherever they go.

A record, a report and a log are made to be passed on. What a person gives as
``logger.tracker.api_key`` or in ``postgresql://bob:...@host`` reaches the library that needs it,
and nothing else: ``***`` stands in its place. docs/secrets.md says how it is given.
"""

from __future__ import annotations

import logging
import re
import shlex
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from enum import Enum
from functools import lru_cache
from typing import Any, TextIO, cast
from urllib.parse import unquote

from cifar_lab.errors import InputError

MASK = "***"
# Words of a key's last part (api_key: api, key), in any spelling: apiKey, API-KEY.
# fmt: off
_ALWAYS = frozenset(
    {
        "password", "passwords", "passwd", "pwd", "passphrase", "passcode", "secret",
        "secrets", "credential", "credentials", "authorization", "apikey", "apikeys",
        "accesskey", "secretkey", "bearer", "webhook", "webhooks", "cookie", "cookies",
    }
)
# fmt: on
# fmt: off
_BEFORE_KEY = frozenset(
    {
        "api", "access", "private", "secret", "account", "auth", "encryption", "signing",
        "license", "wandb", "comet", "neptune", "mlflow", "openai", "azure", "aws", "gcp",
    }
)
# fmt: on
# `class_token` and `pad_token` are of networks
# fmt: off
_BEFORE_TOKEN = frozenset(
    {
        "api", "access", "auth", "bearer", "bot", "csrf", "github", "gitlab", "hf", "hub",
        "huggingface", "id", "private", "personal", "refresh", "sas", "secret", "security",
        "service", "session", "upload", "user", "wandb", "write",
    }
)
# fmt: on
_ALONE = frozenset({"auth", "pass", "pw", "sig", "token", "tokens"})
_NOTHING = frozenset({"", "null", "none", "true", "false", MASK})
_INTERPOLATION = "${"
# Text that is shorter stands in too many other places to be looked for.
_SHORTEST = 6

# scheme://user:password@ and https://token@; SQLAlchemy takes a slash in a password
_USER_INFO = re.compile(
    r"(?P<head>\b[A-Za-z][A-Za-z0-9+.\-]{0,30}://)(?P<user>[^\s/:@'\"]*)"
    r"(?P<password>:(?:(?!://)[^\s'\"])*)?@"
)
_VALUE = r"""(?P<value>\$\{[^}]*\}|'[^']*'|"[^"]*"|[^\s,;&'"{}\[\]()]+)"""
_GIVEN = re.compile(rf"(?P<before>)(?<![\w.\-])(?P<key>[A-Za-z_][\w.\-]*)(?P<between>=){_VALUE}")
_ENTRY = re.compile(
    rf"(?P<before>[{{,]\s*['\"]?)(?P<key>[A-Za-z_][\w\-]*)(?P<between>['\"]?\s*:\s*){_VALUE}"
)
_OVERRIDE = re.compile(r"(?P<key>[+~\-]*[A-Za-z_][\w./@\-]*)=(?P<value>.*)", re.DOTALL)

# What is one wherever it stands, by those who give them out: GitHub, GitLab, Hugging Face, Slack,
# OpenAI, AWS, JSON web tokens, headers, addresses that post for whoever knows them, private keys.
_FORMS = re.compile(
    r"\b(?:gh[opsur]_\w{30,255}|github_pat_\w{40,255}|glpat-[\w\-]{16,255}|hf_[A-Za-z0-9]{30,60}"
    r"|xox[abeoprs]-[\w\-]{10,255}|sk-[\w\-]{20,255}|AKIA[0-9A-Z]{16}\b"
    r"|eyJ[\w\-]{10,2000}\.[\w\-]{4,4000}\.[\w\-]{10,1000})"
    r"|(?<=\bBearer )[\w.~+/\-]{8,4000}=*"
    r"|(?<=\bhooks\.slack\.com/)[\w/]{8,255}|(?<=/api/webhooks/)[\w/\-]{8,255}"
    r"|-----BEGIN [A-Z ]{0,30}PRIVATE KEY-----[^\-]{0,20000}(?:-----END [A-Z ]{0,30}-----)?"
)

_known: list[str] = []  # of this process, longest first
_guarding = False


def is_credential(key: str, value: object = "text") -> bool:
    """Whether a value under a key of this name (its last part counts) is nobody else's business."""
    if value is None or isinstance(value, bool | float):
        return False
    kind = _kind(key.lstrip("+~-").rpartition(".")[2])
    # numbers under some names are of networks: how many tokens, which one
    return kind is _Kind.ALWAYS or (kind is _Kind.TEXT and not isinstance(value, int))


class _Kind(Enum):
    NONE, TEXT, ALWAYS = range(3)


@lru_cache(maxsize=4096)
def _kind(name: str) -> _Kind:
    words = re.split(r"[^a-z0-9]+", re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name[:100]).lower())
    last, before = words[-1], words[-2] if len(words) > 1 else None
    signature = words[:2] == ["x", "amz"] and last == "signature"
    # a variable of the environment: MY_TOKEN, SOME_KEY
    signature |= name.isupper() and before is not None and last in ("token", "key")
    if _ALWAYS & set(words) or (last in ("key", "keys") and before in _BEFORE_KEY) or signature:
        return _Kind.ALWAYS
    token = last in ("token", "tokens") and before in _BEFORE_TOKEN
    return _Kind.TEXT if token or (before is None and last in _ALONE) else _Kind.NONE


# --- in text --------------------------------------------------------------------------------------


def hide(text: str) -> str:
    """The text with a mask for every secret that was given to this process, or looks like one."""
    for secret in _known:
        text = text.replace(secret, MASK)
    return hide_by_form(text)


def hide_by_form(text: str) -> str:
    """The text without passwords in URLs and values of keys that `is_credential`.

    It hangs on the text alone: two configurations that are the same stay so.
    """
    text = _FORMS.sub(MASK, text)
    if "://" in text:
        text = _USER_INFO.sub(_without_password, text)
    if "=" in text:
        text = _GIVEN.sub(_without_value, text)
    if ":" in text and ("{" in text or "," in text):
        text = _ENTRY.sub(_without_value, text)
    return text


def hide_in_override(override: str) -> str:
    """``key=value`` as it may be written."""
    match = _OVERRIDE.fullmatch(override)
    if match and is_credential(match["key"]) and not _is_harmless(match["value"]):
        return f"{match['key']}={MASK}"
    return hide(override)


def hide_in_command(command: str) -> str:
    """A line for a shell as it may be written."""
    try:
        words = shlex.split(command)
    except ValueError:  # cut off, or never one
        return hide(command)
    shown = [hide_in_override(word) for word in words]
    return command if shown == words else shlex.join(shown)


def advice(arguments: Sequence[str]) -> str | None:
    """What to say before a command that holds masks; None where there is none."""
    masked = [o.partition("=")[0].lstrip("+~") for o in arguments if hide_in_override(o) != o]
    if not masked:
        return None
    keys = ", ".join(dict.fromkeys(masked))
    return (
        f"{MASK} in {keys} stands for what is written nowhere: give it again, best by its "
        f"variable, as in {masked[0]}='${{oc.env:NAME}}' (docs/secrets.md)"
    )


def check_none_masked(arguments: Iterable[str]) -> None:
    """Raises InputError for an override that was copied with its mask."""
    for argument in arguments:
        key, _, value = argument.partition("=")
        if MASK in value:
            raise InputError(
                f"{argument}: {MASK} stands for what was written nowhere; put it there, or give it "
                f"by its variable, as in {key}='${{oc.env:NAME}}' (docs/secrets.md)"
            )


def _without_password(match: re.Match[str]) -> str:
    head, user, password = match["head"], match["user"], match["password"]
    if password is not None:
        shown = password if _is_harmless(password[1:]) else f":{MASK}"
        return f"{head}{user}{shown}@"
    # a token in the place of the name, as Git's hosts take it; postgresql://bob@ is a name
    secret = head.lower().startswith("http") and not _is_harmless(user)
    return f"{head}{MASK if secret else user}@"


def _without_value(match: re.Match[str]) -> str:
    value = match["value"].strip("'\"")
    if not is_credential(match["key"]):
        # what is quoted may be an address with one in its query
        quoted = match["value"][0] in "'\""
        return match[0].replace(value, hide_by_form(value)) if quoted and value else match[0]
    if _is_harmless(value):
        return match[0]
    said = ":" if match["value"].endswith(":") else ""  # "api_key=...: must be"
    return f"{match['before']}{match['key']}{match['between']}{MASK}{said}"


def _is_harmless(value: str) -> bool:
    return value.strip("'\":").lower() in _NOTHING or _INTERPOLATION in value


# --- in configurations ----------------------------------------------------------------------------


def masked(node: Any, hiding: Callable[[str], str] = hide) -> Any:
    """Dictionaries, lists and text with masks; anything else as it is."""
    if isinstance(node, Mapping):
        return {
            key: _masked_whole(value) if is_credential(str(key), value) else masked(value, hiding)
            for key, value in node.items()
        }
    if isinstance(node, list | tuple):
        return type(node)(masked(value, hiding) for value in node)
    return hiding(node) if isinstance(node, str) else node


def _masked_whole(node: Any) -> Any:
    if isinstance(node, Mapping):
        return {key: _masked_whole(value) for key, value in node.items()}
    if isinstance(node, list | tuple):
        return type(node)(_masked_whole(value) for value in node)
    if node is None or isinstance(node, bool) or (isinstance(node, str) and _is_harmless(node)):
        return node
    return MASK


# --- what this process was given ------------------------------------------------------------------


def learn(node: Any) -> None:
    """Remembers the secrets of a configuration, so that `hide` finds them in any text."""
    if isinstance(node, Mapping):
        for key, value in node.items():
            if is_credential(str(key), value):
                _learn_whole(value)
            else:
                learn(value)
    elif isinstance(node, list | tuple):
        for value in node:
            learn(value)
    elif isinstance(node, str):
        _learn_from_text(node)


def learn_arguments(arguments: Iterable[str]) -> None:
    """`learn` of overrides as typed."""
    for argument in arguments:
        match = _OVERRIDE.fullmatch(argument)
        if match and is_credential(match["key"]):
            for value in (match["value"], *match["value"].strip("[]").split(",")):  # a sweep's
                _learn_whole(value.strip().strip("'\""))
        else:
            _learn_from_text(argument)


def _learn_from_text(text: str) -> None:
    if "://" in text:
        for match in _USER_INFO.finditer(text):
            token = match["user"] if match["head"].lower().startswith("http") else ""
            _learn_whole((match["password"] or f":{token}")[1:])
    if "=" in text or ":" in text:
        for pattern in (_GIVEN, _ENTRY):
            for match in pattern.finditer(text):
                value = match["value"].strip("'\"")
                if is_credential(match["key"]):
                    _learn_whole(value)
                elif value != match["value"]:
                    _learn_from_text(value)


def _learn_whole(node: Any) -> None:
    if isinstance(node, Mapping):
        node = list(node.values())
    if isinstance(node, list | tuple):
        for value in node:
            _learn_whole(value)
        return
    text = str(node)
    if node is None or isinstance(node, bool) or _is_harmless(text):
        return
    for secret in {text, unquote(text)}:
        if len(secret) >= _SHORTEST and secret not in _known:
            _known.append(secret)
            _known.sort(key=len, reverse=True)
    if _guarding:
        _wrap_streams()


def forget() -> None:
    """Forgets what was learnt; for tests, whose one process plays many."""
    _known.clear()


# --- what this process says -----------------------------------------------------------------------


def guard_streams() -> None:
    """From the first secret on, nothing that this process prints holds one, tracebacks included."""
    global _guarding
    _guarding = True
    if _known:
        _wrap_streams()


class _HidingStream:
    """A text stream, and what is written to it has masks."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        self._stream.write(hide(text))
        return len(text)

    def writelines(self, lines: Iterable[str]) -> None:
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def _wrap_streams() -> None:
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is not None and not isinstance(stream, _HidingStream):
            setattr(sys, name, cast("TextIO", _HidingStream(stream)))


class _HidingFormatter(logging.Formatter):
    def __init__(self, formatter: logging.Formatter) -> None:
        super().__init__()
        self._formatter = formatter

    def format(self, record: logging.LogRecord) -> str:
        return hide(self._formatter.format(record))


def guard_log() -> None:
    """Has the handlers of the root logger write masks, in messages and in tracebacks."""
    for handler in logging.getLogger().handlers:
        if not isinstance(handler.formatter, _HidingFormatter):
            handler.setFormatter(_HidingFormatter(handler.formatter or logging.Formatter()))
