"""The run's TensorBoard events: scalars that continue after a resume, and an honest HParams tab."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities import rank_zero_only

FOLDER = "tensorboard"
# What the HParams tab shows of a run: its final values.
RESULTS = ("test/acc", "val/acc", "test/loss", "images_per_s", "parameters")

_WHOLE_GROUPS = ("model", "loss", "optimizer", "scheduler")
_PARTS = {
    "data": ("batch_size", "val_size", "normalization"),
    "trainer": ("max_epochs", "precision", "gradient_clip_val", "accumulate_grad_batches"),
}


class TensorBoard(TensorBoardLogger):
    """Events right below ``<run folder>/tensorboard/``, flushed after each logging call.

    Args:
        save_dir: the run folder.
    """

    def __init__(self, *, save_dir: str | Path) -> None:
        super().__init__(str(save_dir), name="", version=FOLDER, default_hp_metric=False)
        self._logged: set[str] = set()

    @rank_zero_only
    def resume(self, global_step: int) -> None:
        """Hides what a checkpoint after ``global_step`` steps does not know of.

        TensorBoard drops events with ``step >= global_step`` that older files hold; Lightning
        numbers the values of the n-th step n - 1. Call it before anything is logged.
        """
        assert self._experiment is None, "resume() comes before the first event"
        self._kwargs["purge_step"] = global_step

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Scalars, as TensorBoardLogger writes them; without Lightning's chart of the epoch."""
        metrics = {name: value for name, value in metrics.items() if name != "epoch"}
        self._logged.update(metrics)
        super().log_metrics(metrics, step)

    @rank_zero_only
    def log_hyperparams(
        self,
        params: dict[str, Any] | Namespace,
        metrics: dict[str, Any] | None = None,
        step: int | None = None,
    ) -> None:
        """Declares flat hyperparameters, and `RESULTS` as the metrics that will come.

        TensorBoardLogger's own writes -1 or nothing as long as a run has no result; without values
        the tab shows what the scalars hold so far.
        """
        from torch.utils.tensorboard.summary import hparams

        flat = dict(params if isinstance(params, Mapping) else vars(params))
        # torch takes True for the number 1
        shown = {key: str(v).lower() if isinstance(v, bool) else v for key, v in flat.items()}
        experiment, start, _ = hparams(shown, dict.fromkeys(RESULTS, 0.0))
        writer = self.experiment._get_file_writer()
        writer.add_summary(experiment)
        writer.add_summary(start)

    @rank_zero_only
    def finish(self, metrics: Mapping[str, float], step: int) -> None:
        """Adds those of `RESULTS` that no epoch has logged, and ends the session.

        Args:
            metrics: the record's final metrics, and ``images_per_s`` and ``parameters``; what is
                missing or None is left out.
            step: the fit's last global step.
        """
        from torch.utils.tensorboard.summary import hparams

        missing = [name for name in RESULTS if name not in self._logged]
        final = {name: metrics[name] for name in missing if metrics.get(name) is not None}
        self.log_metrics(final, step)
        *_, end = hparams({}, {})
        self.experiment._get_file_writer().add_summary(end)
        self.experiment.flush()

    @rank_zero_only
    def save(self) -> None:
        """Flushes; the hyperparameters have a place already, so no hparams.yaml."""
        self.experiment.flush()


def hparams_of(config: Mapping[str, Any]) -> dict[str, float | int | str | bool]:
    """The main hyperparameters of a resolved configuration, flat and typed for the HParams tab.

    A key has one type in every run, since TensorBoard hides runs of mixed types
    (tensorboard#3597): numbers stay numbers, lists become text (``[2,2,2,2]``), None is left out.
    Groups are named by what they build (``model=ResNet``, ``augment=flip+crop``).
    """
    found: dict[str, Any] = {"seed": config.get("seed")}
    for group in (*_WHOLE_GROUPS, *_PARTS):
        node = config.get(group) or {}
        if group != "trainer":
            found[group] = _built(node)
        keys = _PARTS.get(group, [key for key in node if not key.startswith("_")])
        found |= {f"{group}.{key}": node.get(key) for key in keys}
    found["augment"] = _augmentation(config.get("augment") or {})
    if (precision := found["trainer.precision"]) is not None:
        found["trainer.precision"] = str(precision)  # 32 and bf16-mixed are both allowed
    return {key: _cell(value) for key, value in found.items() if value is not None}


def _built(node: Mapping[str, Any]) -> str | None:
    target = node.get("_target_")
    return None if target is None else str(target).rpartition(".")[2]


def _augmentation(node: Mapping[str, Any]) -> str | None:
    if "transforms" not in node:
        return _built(node)
    active = (name for name, made in node["transforms"].items() if made and made.get("p", 1.0) > 0)
    return "+".join(active) or "none"


def _cell(value: Any) -> float | int | str | bool:
    if isinstance(value, bool | int | float | str):
        return value
    return str(value).replace(" ", "")
