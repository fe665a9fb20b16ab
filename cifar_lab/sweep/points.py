"""The points of a sweep: composed, told apart by their digests, named by what was swept."""

from __future__ import annotations

import pickle
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from omegaconf import DictConfig, open_dict, read_write

from cifar_lab.config.compose import run_config
from cifar_lab.config.files import with_place
from cifar_lab.config.ingredients import with_ablation
from cifar_lab.config.messages import COMPOSING_RAISES, explain
from cifar_lab.config.names import job_words
from cifar_lab.config.overrides import check_merged, is_of_the_sweep, normalized
from cifar_lab.errors import InputError
from cifar_lab.records.digest import config_digest, run_digest
from cifar_lab.records.record import command_line
from cifar_lab.sweep.compose import Composer

_DIGITS = 8  # of the digest, in a job's name: 2**32 of them


@dataclass(frozen=True)
class Point:
    """One job to be.

    Attributes:
        overrides: what a person would type to run it alone.
        swept: the values that make it this point, by key.
        cfg: composed, with Hydra's node.
        config: resolved, without it.
        digest: of ``config``; with ``images`` it is what a finished run is found again by.
        images: the digest of the images that it would run on; "" before they have been looked at.
    """

    overrides: tuple[str, ...]
    swept: dict[str, str]
    cfg: DictConfig
    config: dict[str, Any]
    digest: str
    images: str = ""

    @property
    def label(self) -> str:
        """The swept values in one line."""
        return " ".join(f"{key}={value}" for key, value in self.swept.items()) or "(nothing swept)"

    @property
    def known(self) -> dict[str, Any]:
        """What a record says of it without its having run."""
        return {
            "command": command_line(self.overrides),
            "overrides": self.overrides,
            "config_digest": self.digest,
            "config": self.config,
            "seed": self.config["seed"],
        }

    @property
    def suffix(self) -> str:
        """The end of its folder's name, whatever else was swept when that was made."""
        return f"-{self.run_digest[:_DIGITS]}"

    @property
    def run_digest(self) -> str:
        """What makes it the same run as another point, or as one in a folder."""
        return run_digest(self.digest, self.images)

    @property
    def folder_name(self) -> str:
        """Short and plain: what was swept, and the digest's beginning."""
        words = job_words([f"{key}={value}" for key, value in self.swept.items()])
        return f"{'-'.join(words)[:80].strip('-.') or 'job'}{self.suffix}"


def compose_point(composer: Composer, overrides: Sequence[str]) -> Point:
    """Composes one job's overrides, Hydra's own among them.

    Raises:
        InputError: what `config.compose` refuses, with the point's name before it.
    """
    values = dict(map(split, overrides))
    chosen = {key.lstrip("+~"): values[key] for key in composer.swept}
    overrides = normalized(overrides)
    if of_the_sweep := sorted(k for k in chosen if k == "sweep" or k.startswith("sweep.")):
        raise InputError(f"{of_the_sweep[0]}: belongs to the whole sweep; give it one value")
    try:
        cfg = with_ablation(composer.compose, overrides)
        check_merged(cfg, overrides)
        resolved = run_config(cfg)
    except COMPOSING_RAISES as error:
        said = with_place(str(explain(error, list(overrides))), overrides)
        raise at(chosen, said) from error
    own = tuple(o for o in overrides if not (is_of_the_sweep(o) or o.startswith("hydra.run.")))
    return Point(own, chosen, cfg, resolved, config_digest(resolved))


def with_threads(point: Point, threads: int) -> Point:
    """The point with ``threads`` CPU threads, unless it says itself how many; says so in full."""
    if point.cfg.threads is not None:
        return point
    cfg: DictConfig = pickle.loads(pickle.dumps(point.cfg))  # faster than OmegaConf's own copy
    with read_write(cfg), open_dict(cfg):
        cfg.threads = threads
    resolved = run_config(cfg)
    kept = [override for override in point.overrides if split(override)[0] != "threads"]
    overrides = (*kept, f"threads={threads}")
    return Point(overrides, point.swept, cfg, resolved, config_digest(resolved), point.images)


def varying(batch: Sequence[Sequence[str]]) -> list[str]:
    """The keys with more than one value in a batch, where no sweeper says which were swept."""
    seen: dict[str, set[str]] = {}
    for overrides in batch:
        for key, value in map(split, overrides):
            seen.setdefault(key, set()).add(value)
    return [key for key, values in seen.items() if len(values) > 1]


def at(swept: dict[str, str], message: str) -> InputError:
    """The message with the point's name before it, unless it names the value itself."""
    named = all(f"{key}={value}" in message for key, value in swept.items())
    label = " ".join(f"{key}={value}" for key, value in swept.items())
    return InputError(message if named or not label else f"{label}: {message}")


def split(override: str) -> tuple[str, str]:
    """Key and value of an override."""
    key, _, value = override.partition("=")
    return key, value
