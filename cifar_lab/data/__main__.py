"""``python -m cifar_lab.data``: finds, fetches, verifies and caches a dataset; says what it found.

    python -m cifar_lab.data [root=PATH] [cache=DIR] [offline=true] [sources=[URL,...]]
    python -m cifar_lab.data data=cifar100 [labels=coarse] ...
    python -m cifar_lab.data data=folders root=PATH [image_size=32] [cache=DIR]
    python -m cifar_lab.data verify [data=NAME] [root=PATH] [cache=DIR]

Without a root (or CIFAR_LAB_DATA) it looks into the cache, then where other tools put the data,
then fetches. The defaults are those of conf/data/. verify recomputes the digests of all that is
cached, or of the root's entry, and mends what is damaged; it opens no socket.
"""

from __future__ import annotations

import difflib
import logging
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from cifar_lab.config.command import run_command
from cifar_lab.data.arguments import check_number
from cifar_lab.errors import InputError

if TYPE_CHECKING:
    from cifar_lab.data.fetch.locate import Opened

_FETCHED = ("root", "cache", "offline", "sources", "min_rate", "stall_s")
KEYS = {
    "cifar10": _FETCHED,
    "cifar100": ("labels", *_FETCHED),
    "folders": ("root", "cache", "image_size"),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit status (0, 2 for wrong input, 130 or 143 when stopped)."""
    logging.basicConfig(format="%(message)s", stream=sys.stderr)
    logging.getLogger("cifar_lab.data").setLevel(logging.INFO)
    stopped = "stopped; the same command goes on where this one was"
    return run_command(arguments, _command, text=__doc__, prefix="", stopped=stopped)


def _command(words: list[str]) -> int:
    if words[:1] == ["verify"]:
        return _verify(_given(words[1:]))
    return _find(_given(words))


def _find(given: dict[str, Any]) -> int:
    from cifar_lab.data.copies import lines_of

    opened = _opened(given)
    data = opened.dataset
    kind = "official" if data.official else "not the official bytes"
    print(
        f"{data.name} ({kind}): {len(data.train)} training and {len(data.test)} test images\n"
        f"classes {len(data.classes)}: {_some(data.classes)}\n"
        f"from    {', '.join(opened.sources)} ({data.layout})\n"
        f"cache   {opened.entry} ({opened.state})\n"
        f"digest  {data.digest}"
    )
    if opened.resized:
        print(f"resized {opened.resized} of {len(data.train) + len(data.test)} pictures")
    for line in lines_of(data) or ["none: every image is there once"]:
        print(f"copies  {line}")
    return 0


def _verify(given: dict[str, Any]) -> int:
    from cifar_lab.data.fetch.locate import verify_cache

    if given.get("root"):
        opened = _opened(given)
        print(f"{opened.entry.name}: {opened.state}")
        return 0
    status, name = 0, None
    for name, state in verify_cache(cache=given.get("cache", _defaults("cifar10")["cache"])):
        mended = state in ("ok", "rebuilt")
        print(f"{name}: {state}", file=sys.stdout if mended else sys.stderr)
        status = status if mended else 2
    if name is None:
        print("nothing is cached")
    return status


def _opened(given: dict[str, Any]) -> Opened:
    from cifar_lab.data.fetch.archive import OFFICIAL
    from cifar_lab.data.fetch.cifar100 import COARSE, FINE
    from cifar_lab.data.fetch.locate import Fetching, open_folders, open_from

    name = given.get("data", "cifar10")
    settings = {**_defaults(name), **given}
    settings.pop("data", None)
    if name == "folders":
        return open_folders(**settings)
    archives = {"cifar10": OFFICIAL, "fine": FINE, "coarse": COARSE}
    archive = archives[settings.pop("labels", name)]
    root, cache = settings.pop("root"), settings.pop("cache")
    return open_from(root=root, cache=cache, fetching=Fetching(**settings), archive=archive)


def _defaults(name: str) -> dict[str, Any]:
    from cifar_lab.config.compose import compose_group

    group = compose_group("data", [f"data={name}"])
    return {key: group[key] for key in KEYS[name]}


def _some(names: Sequence[str]) -> str:
    shown = ", ".join(names[:10])
    return f"{shown}, ..." if len(names) > 10 else shown


def _given(words: Sequence[str]) -> dict[str, Any]:
    # read here, not by Hydra's grammar: a path or URL needs no quoting then
    pairs = [word.partition("=") for word in words]
    name = next((text for key, _, text in pairs if key == "data"), "cifar10")
    if name not in KEYS:
        raise InputError(f"data={name}: must be one of {', '.join(KEYS)}")
    known = ("data", *KEYS[name])
    given: dict[str, Any] = {}
    for word, (key, equals, text) in zip(words, pairs, strict=True):
        key = key.removeprefix("data.")
        if not equals or key not in known:
            near = difflib.get_close_matches(key, ("verify", *known), n=1)
            suggestion = f" (did you mean {near[0]}?)" if near else ""
            raise InputError(f"{word}: unknown{suggestion}; allowed: verify, {'=, '.join(known)}=")
        given[key] = _value(key, text)
    return given


def _value(key: str, text: str) -> Any:
    if key == "offline":
        if text.lower() not in ("true", "false"):
            raise InputError(f"offline={text}: must be true or false")
        return text.lower() == "true"
    if key == "sources":
        urls = text.removeprefix("[").removesuffix("]").split(",")
        return [url.strip(" '\"") for url in urls if url.strip()]
    if key == "labels" and text not in ("fine", "coarse"):
        raise InputError(f"labels={text}: must be fine or coarse")
    if key == "image_size":
        if not text.isdecimal() or not 4 <= int(text) <= 1024:
            raise InputError(f"image_size={text}: must be a whole number in 4..1024")
        return int(text)
    if key in ("min_rate", "stall_s"):
        try:
            number = float(text)
        except ValueError:
            raise InputError(f"{key}={text}: must be a number") from None
        check_number(key, number, 0)
        return number
    return None if text in ("", "null") else text


if __name__ == "__main__":
    sys.exit(main())
