"""What makes two runs the same run: their images, and what of their configuration decides."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from typing import Any

# Neither the result nor the data depend on these keys: they are no part of a run's identity.
NOT_IDENTITY = (
    *("data.root", "data.cache", "data.sources", "data.offline", "resume", "logger"),
    *("callbacks.progress", "callbacks.pictures", "callbacks.overview", "callbacks.grad_norm"),
    "steps_per_call",
    *("slots", "retries", "job_timeout", "fail_fast", "report", "sweep"),
)


def config_digest(config: Mapping[str, Any]) -> str:
    """SHA-256 of what decides a run's result: the configuration without `NOT_IDENTITY`."""
    identity = {key: value for key, value in flatten(config) if not is_no_identity(key)}
    text = json.dumps(identity, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def run_digest(config_digest: str, images: str) -> str:
    """SHA-256 of both digests: two runs are the same run when it is equal.

    Args:
        config_digest: `digest` of the configuration.
        images: the data set's digest, of pixels and labels: the same wherever they lie.
    """
    return hashlib.sha256(f"{config_digest} {images}".encode()).hexdigest()


def same_images(images: str | None, data: Mapping[str, Any]) -> bool:
    """Whether a run's images, ``data`` of its record, are those that a start finds now.

    Args:
        images: the digest of these; None: the official ones, which are not on this machine.
        data: holds ``digest`` and ``official``.
    """
    return bool(data.get("official")) if images is None else images == data.get("digest")


def is_no_identity(key: str) -> bool:
    """Whether a dotted key has no part in what a run computes."""
    return any(key == name or key.startswith(name + ".") for name in NOT_IDENTITY)


def flatten(config: Mapping[Any, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted keys and leaves; lists and empty dictionaries are leaves."""
    for key, value in config.items():
        path = f"{prefix}{key}"
        if isinstance(value, Mapping) and value:
            yield from flatten(value, path + ".")
        else:
            yield path, value
