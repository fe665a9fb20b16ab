"""What makes two runs the same run: their images, and what of their configuration decides."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

from cifar_lab.records.credentials import hide_by_form, is_credential

# Neither the result nor the data depend on these keys: the digest leaves them out.
KEYS_THAT_CHANGE_NO_RESULT = (
    *("data.root", "data.cache", "data.sources", "data.offline", "resume", "logger"),
    *("callbacks.progress", "callbacks.pictures", "callbacks.overview", "callbacks.grad_norm"),
    *("monitors", "steps_per_call", "tuned_batch_size"),
    # where the weights lay; their SHA-256 stands beside it
    "init_from.path",
    *("distill.from.paths", "distill.trust"),
    # what only observes
    *("trainer.detect_anomaly", "trainer.inference_mode", "trainer.enable_progress_bar"),
    *("trainer.enable_checkpointing", "trainer.enable_autolog_hparams"),
    # of a sweep; a run's configuration held them in versions before 0.4
    *("slots", "retries", "job_timeout", "fail_fast", "report", "sweep"),
)
# These decide none either, and digests of older versions are of their values: what conf/ gives them
# stands in the place of any other, so that what has run before is found again.
STANDING_VALUES: dict[str, Any] = {
    "data.workers": 2,
    "data.stall_s": 15,
    "data.min_rate": 100000,
    "trainer.log_every_n_steps": 50,
    "trainer.profiler": None,
    "trainer.enable_model_summary": False,
    "callbacks.checkpoints.every_minutes": 5.0,
}
# Of Lightning's callbacks those that only observe, as the group monitors does.
# fmt: off
_MONITORS = frozenset(
    {
        "DeviceStatsMonitor", "LearningRateMonitor", "ModelSummary", "ProgressBar",
        "RichModelSummary", "RichProgressBar", "ThroughputMonitor", "TQDMProgressBar",
    }
)
# fmt: on
# What the Classifier logs; held-out images alone choose.
VALIDATION = ("val/acc", "val/loss")
TRAINING = ("train/acc", "train/loss", "lr")
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


# Keys that are younger than some records, each with what was before there was such a key.
NEW_AND_BEFORE: dict[str, Any] = {
    "model.num_classes": None,
    "matmul_precision": "highest",
    "data.eval_batch_size": None,
    "callbacks.checkpoints.min_seconds": None,
    "model.stochastic_depth": 0.0,
    "tta": "none",
    "ablation": None,
}

# The same, of the residual networks alone: speednet, and a person's own, may have had keys of these
# names from their first day.
_RESIDUAL = ("cifar_lab.model.resnet.", "cifar_lab.model.preact_resnet.")
NEW_OF_RESIDUAL: dict[str, Any] = {
    "model.bn_momentum": 0.9,
    "model.train_scale": True,
    "model.identity": False,
}


def deciding(config: Mapping[str, Any]) -> dict[str, Any]:
    """Dotted keys and values of what decides a run's result, whichever version wrote them."""
    found = {}
    model = config.get("model")
    residual = isinstance(model, Mapping) and str(model.get("_target_")).startswith(_RESIDUAL)
    new = NEW_AND_BEFORE | NEW_OF_RESIDUAL if residual else NEW_AND_BEFORE
    monitors = tuple(f"callbacks.{name}." for name in _monitors(config.get("callbacks")))
    choosing = tuple(f"monitors.{name}." for name in _that_may_choose(config))
    for key, value in flatten(config):
        no_part = changes_no_result(key) and not key.startswith(choosing)
        if no_part or (key in new and value == new[key]):
            continue
        # a new password makes no other run
        secret = any(is_credential(part, value) for part in key.split("."))
        if secret or key.startswith(monitors):
            continue
        standing = next((name for name in STANDING_VALUES if _lies_below(key, name)), None)
        if standing is None:
            found[key] = _as_before(key, value)
        else:
            found[standing] = STANDING_VALUES[standing]
    return found


# What Lightning takes for one precision.
_PRECISIONS = {"16": "16-mixed", "bf16": "bf16-mixed", "32": "32-true", "64": "64-true"}
ACCELERATOR, MAX_TIME = "trainer.accelerator", "trainer.max_time"


def deciding_as_run(
    config: Mapping[str, Any], *, device: str | None, cut_short: bool
) -> dict[str, Any]:
    """`deciding` of a run that has begun: by what its settings came to where it ran.

    Args:
        config: of the run.
        device: as its record calls it, ``cpu: ...`` or ``1 x NVIDIA ...``, or the kind alone: it
            stands for ``auto`` and ``gpu``. None: not known.
        cut_short: whether it ended before its last step. A bound on its time decides nothing else.
    """
    found = deciding(config)
    if (precision := str(found.get("trainer.precision"))) in _PRECISIONS:
        found["trainer.precision"] = _PRECISIONS[precision]
    if ACCELERATOR in found and (kind := _kind_of(device or "")):
        found[ACCELERATOR] = kind
    return {k: v for k, v in found.items() if cut_short or not _lies_below(k, MAX_TIME)}


def _kind_of(device: str) -> str:
    kind = "cuda" if re.match(r"\d+ x ", device) else device.partition(":")[0]
    return kind if kind in ("cpu", "cuda", "mps") else ""


def config_digest(config: Mapping[str, Any]) -> str:
    """SHA-256 of what decides a run's result (`deciding`)."""
    text = json.dumps(deciding(config), sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def _monitors(callbacks: Any) -> Iterator[str]:
    for name, node in callbacks.items() if isinstance(callbacks, Mapping) else ():
        target = str(node.get("_target_")) if isinstance(node, Mapping) else ""
        if target.startswith("lightning.") and target.rpartition(".")[2] in _MONITORS:
            yield str(name)


def _that_may_choose(config: Mapping[str, Any]) -> Iterator[str]:
    """A person's own monitors, where weights or rates are chosen by a metric that isn't the run's.

    It may be one of theirs: another monitor under its name is another run then.
    """
    parts = (config.get("callbacks"), {"scheduler": config.get("scheduler")})
    nodes = [n for part in parts if isinstance(part, Mapping) for n in part.values()]
    chosen_by = [n.get("monitor") for n in nodes if isinstance(n, Mapping)]
    if all(metric is None or metric in (*VALIDATION, *TRAINING) for metric in chosen_by):
        return
    monitors = config.get("monitors")
    for name, node in monitors.items() if isinstance(monitors, Mapping) else ():
        target = str(node.get("_target_")) if isinstance(node, Mapping) else ""
        if target.partition(".")[0] not in ("cifar_lab", "lightning"):
            yield str(name)


def _as_before(key: str, value: Any) -> Any:
    if not isinstance(value, str):
        return value
    if key.rpartition(".")[2] != "_target_":
        return hide_by_form(value)
    module, dot, name = value.rpartition(".")
    return f"{_BEFORE.get(module, module)}{dot}{name}"


def run_digest(config_digest: str, images: str) -> str:
    """SHA-256 of both digests: two runs are the same run when it is equal.

    Args:
        config_digest: `digest` of the configuration.
        images: the data set's digest, of pixels and labels: the same wherever they lie.
    """
    return hashlib.sha256(f"{config_digest} {images}".encode()).hexdigest()


def key_of(override: str) -> str:
    """The key of an override, without what adds or removes it."""
    return override.lstrip("+~").partition("=")[0]


def changes_no_result(key: str) -> bool:
    """Whether a dotted key has no part in what a run computes."""
    return any(_lies_below(key, name) for name in KEYS_THAT_CHANGE_NO_RESULT)


def _lies_below(key: str, name: str) -> bool:
    return key == name or key.startswith(f"{name}.")


def flatten(config: Mapping[Any, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted keys and leaves; lists and empty dictionaries are leaves.

    Args:
        config: dictionaries within dictionaries.
        prefix: of every key.
    """
    for key, value in config.items():
        path = f"{prefix}{key}"
        if isinstance(value, Mapping) and value:
            yield from flatten(value, path + ".")
        else:
            yield path, value
