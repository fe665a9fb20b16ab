"""The command line of the benchmark."""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from benchmarks.contenders import MAKERS, NETWORKS, PRECISIONS
from benchmarks.machine import DEVICES
from cifar_lab.errors import InputError


@dataclass(frozen=True)
class Also:
    """A command of --also; no network means the tables of all."""

    network: str | None
    name: str
    command: str


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise InputError(f"{message}; see --help")


def read(arguments: Sequence[str], description: str | None) -> argparse.Namespace:
    """The settings of a session, defaults filled in; raises InputError."""
    parser = _Parser(
        prog="python -m benchmarks",
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--short", action="store_true", help="about two minutes on two cores")
    add("--networks", type=_networks, help=f"of {','.join(NETWORKS)}; none: only the start-up")
    add("--contenders", type=_names, help=f"of {','.join(MAKERS)}")
    add("--startup", action=argparse.BooleanOptionalAction, help="the start-up too")
    add("--also", type=_also, action="append", default=[], metavar="[NETWORK:]NAME=COMMAND")
    add("--rounds", type=_count, help="how often each takes its turn (default 5)")
    add("--steps", type=_count, help="timed steps (default: by network and device)")
    add("--batch-size", type=_count, help="images per step (default: by network and device)")
    add("--precision", choices=PRECISIONS, default=PRECISIONS[0])
    add("--device", choices=DEVICES, default="auto")
    add("--threads", type=_count, help="CPU threads of torch (default: torch's)")
    add("--workers", type=_whole, default=2, help="DataLoader workers of the template (2)")
    add("--images", type=_images, help="training images in the stand-in (default 50,000)")
    add("--timeout", type=_count, default=1800, help="seconds for one process (1800)")
    add("--out", type=Path, help="folder for JSON and figure (outputs/bench/DATE-TIME)")
    add("--imports", action="store_true", help="show what a start imports, measure nothing else")
    given = parser.parse_args(arguments)
    given.command = shlex.join(["python", "-m", "benchmarks", *arguments])
    short = given.short or given.imports
    if given.contenders is None:
        left_out = {"tuned", "bf16"} if short else set()
        if given.precision == "bf16-mixed":
            left_out.add("bf16")  # ours has it anyway
        given.contenders = [name for name in MAKERS if name not in left_out]
    given.startup = not short if given.startup is None else given.startup
    given.networks = (
        (["cnn"] if short else list(NETWORKS)) if given.networks is None else given.networks
    )
    given.rounds = given.rounds or (3 if short else 5)
    given.steps = given.steps or (20 if short else None)
    given.images = given.images or (6_000 if short else 50_000)
    if not (given.networks or given.startup or given.imports):
        raise InputError("--networks none: nothing is left to measure; add --startup")
    taken = {(None, name) for name in MAKERS}
    for also in given.also:
        # one of all tables and one of a single table meet there
        networks = {network for network, name in taken if name == also.name}
        if None in networks or also.network in networks or (networks and also.network is None):
            raise InputError(f"--also {also.name}=...: that name is taken; choose another")
        taken.add((also.network, also.name))
    return given


def _count(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} must be a whole number of at least 1")
    return int(text)


def _whole(text: str) -> int:
    return 0 if text == "0" else _count(text)


def _images(text: str) -> int:
    if (count := _count(text)) < 2000:
        raise argparse.ArgumentTypeError(f"{text!r} must be at least 2000 (1000 are held out)")
    return count


def _names(text: str, known: Sequence[str] = tuple(MAKERS)) -> list[str]:
    names = list(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))
    if unknown := [name for name in names if name not in known]:
        raise argparse.ArgumentTypeError(f"{unknown[0]!r} is none of {', '.join(known)}")
    return names


def _networks(text: str) -> list[str]:
    return [] if text == "none" else _names(text, tuple(NETWORKS))


def _also(text: str) -> Also:
    name, equals, command = text.partition("=")
    network, colon, rest = name.partition(":")
    if not equals or not command.strip() or not (rest if colon else name).strip():
        raise argparse.ArgumentTypeError(f"{text!r} must read NAME=COMMAND")
    if colon and network not in NETWORKS:
        raise argparse.ArgumentTypeError(f"{network!r} is none of {', '.join(NETWORKS)}")
    return Also(network, rest, command) if colon else Also(None, name, command)
