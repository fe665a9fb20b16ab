"""What makes two runs the same run: their images, and what of their configuration decides."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from typing import Any

# Neither the result nor the data depend on these keys: the digest leaves them out.
KEYS_THAT_CHANGE_NO_RESULT = (
    *("data.root", "data.cache", "data.sources", "data.offline", "resume", "logger"),
    *("callbacks.progress", "callbacks.pictures", "callbacks.overview", "callbacks.grad_norm"),
    *("monitors", "steps_per_call"),
    # of a sweep; a run's configuration held them in versions before 0.4
    *("slots", "retries", "job_timeout", "fail_fast", "report", "sweep"),
)
# Modules that a `_target_` may name, by what they were called before. A digest is of the old names:
# runs of older versions are found again.
MOVED = {
    "cifar_lab.training.checkpoints": "cifar_lab.training.callbacks.checkpoints",
    "cifar_lab.training.ema": "cifar_lab.training.callbacks.ema",
    "cifar_lab.training.grad_norm": "cifar_lab.training.callbacks.grad_norm",
    "cifar_lab.training.overview": "cifar_lab.training.callbacks.model_overview",
    "cifar_lab.training.pictures": "cifar_lab.training.callbacks.prediction_figures",
    "cifar_lab.training.progress": "cifar_lab.training.callbacks.progress",
    "cifar_lab.training.metrics_csv": "cifar_lab.training.loggers.metrics_csv",
    "cifar_lab.training.tensorboard": "cifar_lab.training.loggers.tensorboard",
}
_BEFORE = {now: before for before, now in MOVED.items()}


# Keys that are younger than some records, with what was before there was such a key.
NEW_KEYS = {
    "model.num_classes": None,
    "model.stochastic_depth": 0.0,
    "tta": "none",
    "ablation": None,
}


def deciding(config: Mapping[str, Any]) -> dict[str, Any]:
    """Dotted keys and values of what decides a run's result, whichever version wrote them."""
    return {
        key: _as_before(key, value)
        for key, value in flatten(config)
        if not changes_no_result(key) and not (key in NEW_KEYS and value == NEW_KEYS[key])
    }


def config_digest(config: Mapping[str, Any]) -> str:
    """SHA-256 of what decides a run's result (`deciding`)."""
    text = json.dumps(deciding(config), sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def _as_before(key: str, value: Any) -> Any:
    if key.rpartition(".")[2] != "_target_" or not isinstance(value, str):
        return value
    module, dot, name = value.rpartition(".")
    return f"{_BEFORE.get(module, module)}{dot}{name}"


def run_digest(config_digest: str, images: str) -> str:
    """SHA-256 of both digests: two runs are the same run when it is equal.

    Args:
        config_digest: `digest` of the configuration.
        images: the data set's digest, of pixels and labels: the same wherever they lie.
    """
    return hashlib.sha256(f"{config_digest} {images}".encode()).hexdigest()


def changes_no_result(key: str) -> bool:
    """Whether a dotted key has no part in what a run computes."""
    return any(key == name or key.startswith(name + ".") for name in KEYS_THAT_CHANGE_NO_RESULT)


def flatten(config: Mapping[Any, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted keys and leaves; lists and empty dictionaries are leaves."""
    for key, value in config.items():
        path = f"{prefix}{key}"
        if isinstance(value, Mapping) and value:
            yield from flatten(value, path + ".")
        else:
            yield path, value
