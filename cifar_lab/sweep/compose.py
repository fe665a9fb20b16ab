"""Hydra's composition of the points of a sweep, most of them from that of another point."""

from __future__ import annotations

import pickle
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

from hydra._internal.config_loader_impl import get_overrides_dirname
from hydra.core.config_loader import ConfigLoader
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, OverrideType
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException


class Composer:
    """Composes the overrides of one job after another.

    Hydra takes 80 ms for each: it reads and merges every file anew. Where points differ in plain
    values alone (``key=value`` of no group), nothing else differs in their composition but what
    Hydra notes of the overrides. So it composes the first of them, and the others are copies with
    values of their own; ``tests/sweep/test_compose.py`` holds them against Hydra's.

    Args:
        loader: Hydra's.
        master: the sweep's own configuration.
        swept: the keys that were given several values.
    """

    def __init__(self, loader: ConfigLoader, master: DictConfig, swept: Sequence[str]) -> None:
        self.swept = swept
        self._loader = loader
        self._master = master
        self._values = set(swept)  # but for those that turn out to be groups
        # pickled: OmegaConf's own copy takes eight times as long as pickle's
        self._composed: dict[tuple[Any, ...], bytes] = {}

    def compose(self, overrides: Sequence[str]) -> DictConfig:
        """One job's configuration, as ``load_sweep_config`` gives it for its ``overrides``.

        Raises:
            HydraException, OmegaConfBaseException: as there.
        """
        try:
            parsed = [_parse(line) for line in overrides]
            known = self._composed.get(self._kind(parsed))
            if known is not None:
                return self._copy(known, parsed)
        except (HydraException, OmegaConfBaseException):
            return self._by_hydra(overrides)  # which says what is wrong, and where
        cfg = self._by_hydra(overrides)
        groups = set(cfg.hydra.runtime.choices)
        self._values -= groups
        if _are_plain(parsed, self._values) and _come_last(parsed, self._values, groups):
            self._composed[self._kind(parsed)] = pickle.dumps(cfg)
        return cfg

    def _kind(self, parsed: Sequence[Override]) -> tuple[Any, ...]:
        """What points have in common that differ in plain values alone."""
        return tuple(
            (o.get_key_element(), type(o.value()) if isinstance(o.value(), list | dict) else None)
            if o.key_or_group in self._values
            else o.input_line
            for o in parsed
        )

    def _by_hydra(self, overrides: Sequence[str]) -> DictConfig:
        return self._loader.load_sweep_config(self._master, list(overrides))

    def _copy(self, composed: bytes, parsed: Sequence[Override]) -> DictConfig:
        cfg: DictConfig = pickle.loads(composed)
        for override in parsed:
            if override.key_or_group in self._values:
                OmegaConf.update(cfg, override.key_or_group, override.value(), merge=True)
        own = [override for override in parsed if not override.is_hydra_override()]
        cfg.hydra.overrides.task = [override.input_line for override in own]
        form = cfg.hydra.job.config.override_dirname
        cfg.hydra.job.override_dirname = get_overrides_dirname(
            own, list(form.exclude_keys), form.item_sep, form.kv_sep
        )
        OmegaConf.copy_cache(from_config=self._master, to_config=cfg)
        return cfg


@lru_cache(maxsize=4096)
def _parse(line: str) -> Override:
    return OverridesParser.create().parse_overrides([line])[0]


def _are_plain(overrides: Sequence[Override], keys: set[str]) -> bool:
    """Whether each of the keys is given once, as ``key=value``."""
    given = [override for override in overrides if override.key_or_group in keys]
    return sorted(override.key_or_group for override in given) == sorted(keys) and all(
        override.type is OverrideType.CHANGE
        and override.package is None
        and not override.is_hydra_override()
        and not override.is_sweep_override()
        and not isinstance(override.value(), dict)
        for override in given
    )


def _come_last(overrides: Sequence[Override], keys: set[str], groups: set[str]) -> bool:
    """Whether the values of the keys may be set after everything else, in any order."""
    # choices of groups come before all values, and decide which there are
    others = [
        override.key_or_group
        for override in overrides
        if override.key_or_group not in groups or isinstance(override.value(), dict)
    ]
    return not any(
        f"{a}.".startswith(f"{b}.") or f"{b}.".startswith(f"{a}.")
        for a in keys
        for b in others
        if a != b
    )
