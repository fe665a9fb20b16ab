"""Configurations as they are written down: without the secrets that were given in them."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf, open_dict, read_write

from cifar_lab.records.credentials import MASK, hide, hide_in_override, is_credential, masked
from cifar_lab.records.digest import changes_no_result

# Where images lie is on record as it was found.
_PATHS = ("data.root", "data.cache")


def config_to_keep(cfg: DictConfig, resolved: Mapping[str, Any]) -> dict[str, Any]:
    """A run's resolved configuration for its record and its checkpoints.

    What comes from the environment (``${oc.env:NAME}``) stays as it was typed where it is a secret,
    or decides no result; other secrets are masked.

    Args:
        cfg: composed.
        resolved: the same as `cifar_lab.config.compose.run_config` gave it.
    """
    typed = OmegaConf.to_container(cfg, resolve=False)
    kept = _kept(resolved, typed, "")
    assert isinstance(kept, dict)
    return kept


def without_secrets(cfg: DictConfig) -> DictConfig:
    """The configuration, Hydra's node among it, as Hydra may write it down; ``cfg`` if it may."""
    container = OmegaConf.to_container(cfg, resolve=False)
    shown = _hidden(container)
    if shown == container:
        return cfg
    safe = copy.deepcopy(cfg)  # of Hydra's own types, which it asks for
    with read_write(safe.hydra), open_dict(safe.hydra), open_dict(safe):
        for key, value in _changes(container, shown):
            OmegaConf.update(safe, key, value, merge=False)
    return safe


def hide_in_files(folder: Path) -> None:
    """Masks what Hydra has written to ``.hydra/`` in a job that a launcher of its own began."""
    for path in sorted(folder.glob("*.yaml")):
        written = OmegaConf.load(path)
        container = OmegaConf.to_container(written, resolve=False)
        if (shown := _hidden(container)) != container:
            OmegaConf.save(OmegaConf.create(shown), path)


def _changes(before: Any, after: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted keys and values of what differs; what has no dotted key goes with its parent."""
    if before == after:
        return
    if isinstance(before, dict) and not any("." in str(name) for name in before):
        for name, value in before.items():
            yield from _changes(value, after[name], f"{key}.{name}".lstrip("."))
    else:
        yield key, after


def _hidden(node: Any) -> Any:
    return masked(node, lambda text: hide_in_override(text) if "=" in text else hide(text))


def _kept(value: Any, typed: Any, key: str) -> Any:
    if isinstance(value, Mapping):
        its = typed if isinstance(typed, Mapping) else {}
        return {k: _kept(v, its.get(k), f"{key}.{k}".lstrip(".")) for k, v in value.items()}
    if isinstance(value, list):
        same = isinstance(typed, list) and len(typed) == len(value)
        pairs = zip(value, typed if same else [None] * len(value), strict=True)
        return [_kept(v, t, key) for v, t in pairs]
    secret = any(is_credential(part, value) for part in key.split("."))
    shown = masked({"secret": value})["secret"] if secret else masked(value)
    if isinstance(typed, str) and "${oc.env:" in typed and key not in _PATHS:
        # a typed one may hold a secret of its own, as the other half of a URL
        return hide(typed) if shown != value or shown == MASK or changes_no_result(key) else value
    return shown
