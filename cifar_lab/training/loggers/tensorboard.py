"""The run's TensorBoard events: scalars that continue after a resume, and an honest HParams tab."""

from __future__ import annotations

import logging
from argparse import Namespace
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities import rank_zero_only

from cifar_lab.records.digest import changes_no_result, flatten, key_of
from cifar_lab.training.lightning_internals import purge_step_of, set_purge_step

log = logging.getLogger("cifar_lab")

FOLDER = "tensorboard"
# A run's final values, as ``final/<name>``. The HParams tab shows the first five metrics by name
# unless a person ticks others: these are the first, and there are none while a run goes on.
RESULTS = ("test/acc", "val/acc", "test/loss", "images_per_s", "parameters")
# The Custom Scalars tab. TensorBoard merges the layouts of all runs, and leaves out a chart only
# where another run has the very same one: this must not depend on the run. Tags are patterns.
LAYOUT = {
    "Training": {
        "accuracy (fraction of the images)": ["Multiline", ["^train/acc$", "^val/acc$"]],
        "loss": ["Multiline", ["^train/loss$", "^val/loss$"]],
        "learning rate": ["Multiline", ["^lr$"]],
        "training speed (images/s)": ["Multiline", ["^images_per_s$"]],
        "gradient norm (last step of the epoch)": ["Multiline", ["^grad_norm$"]],
    }
}

_WHOLE_GROUPS = ("model", "loss", "optimizer", "scheduler")
_PARTS = {
    "data": ("batch_size", "val_size", "normalization"),
    "trainer": ("max_epochs", "precision", "gradient_clip_val", "accumulate_grad_batches"),
}


@contextmanager
def decoration(what: str) -> Iterator[None]:
    """Around what only shows a run: where it fails, the log says so, and the run goes on."""
    try:
        yield
    except Exception as error:  # whatever a drawing library may raise
        reason = " ".join(str(error).split())[:200]
        log.warning("not in TensorBoard: %s (%s: %s)", what, type(error).__name__, reason)


class TensorBoard(TensorBoardLogger):
    """Events right below ``<run folder>/tensorboard/``, flushed after each logging call.

    A curve of the fit that can't be written ends the run, as a full disk does everywhere. What is
    decoration, and all that comes with the test, whose result is on record by then, doesn't.

    Args:
        save_dir: the run folder.
    """

    def __init__(self, *, save_dir: str | Path) -> None:
        super().__init__(str(save_dir), name="", version=FOLDER, default_hp_metric=False)
        self._fit_is_over = False

    @property
    def begins(self) -> bool:
        """Whether this start writes what a run has once: no earlier one got to a checkpoint."""
        return purge_step_of(self) == 0

    @rank_zero_only
    def resume(self, global_step: int) -> None:
        """Hides what a checkpoint after ``global_step`` steps does not know of.

        TensorBoard drops events with ``step >= global_step`` that older files hold; Lightning
        numbers the values of the n-th step n - 1. Call it before anything is logged.
        """
        set_purge_step(self, global_step)

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Scalars, as TensorBoardLogger writes them; without Lightning's chart of the epoch."""
        metrics = {name: value for name, value in metrics.items() if name != "epoch"}
        self._fit_is_over |= any(name.startswith("test/") for name in metrics)
        with self._as_it_matters("the values of the test"):
            super().log_metrics(metrics, step)

    @rank_zero_only
    def log_hyperparams(
        self,
        params: dict[str, Any] | Namespace,
        metrics: dict[str, Any] | None = None,
        step: int | None = None,
    ) -> None:
        """Flat hyperparameters for the HParams tab, and the layout of Custom Scalars.

        TensorBoardLogger's own writes -1 as long as a run has no result, and an "experiment": from
        the first of these TensorBoard takes the columns of all runs, and hides what only others
        have. Without one the columns are all that any run has, those that differ first.
        """
        from torch.utils.tensorboard.summary import hparams

        experiment = self.experiment
        with decoration("the hyperparameters"):
            flat = dict(params if isinstance(params, Mapping) else vars(params))
            # torch takes True for the number 1
            shown = {key: str(v).lower() if isinstance(v, bool) else v for key, v in flat.items()}
            _, start, _ = hparams(shown, {})
            _write(experiment, start)
        if self.begins:
            with decoration("the layout of Custom Scalars"):
                experiment.add_custom_scalars(LAYOUT)
        experiment.flush()

    @rank_zero_only
    def finish(self, metrics: Mapping[str, float], step: int) -> None:
        """Logs `RESULTS` as ``final/<name>``, and ends the session of the HParams tab.

        Args:
            metrics: the record's final metrics, and ``images_per_s`` and ``parameters``; what is
                missing or None is left out.
            step: the fit's last global step.
        """
        from torch.utils.tensorboard.summary import hparams

        with decoration("the final values"):
            known = {name: metrics[name] for name in RESULTS if metrics.get(name) is not None}
            self.log_metrics({f"final/{name}": value for name, value in known.items()}, step)
            *_, end = hparams({}, {})
            _write(self.experiment, end)
            self.experiment.flush()

    @rank_zero_only
    def save(self) -> None:
        """Flushes; the hyperparameters have a place already, so no hparams.yaml."""
        with self._as_it_matters("what the test left"):
            self.experiment.flush()

    @rank_zero_only
    def finalize(self, status: str) -> None:
        """Closes; every curve has been flushed before."""
        with decoration("what was still to be written"):
            super().finalize(status)

    def _as_it_matters(self, what: str) -> AbstractContextManager[None]:
        return decoration(what) if self._fit_is_over else nullcontext()


def hparams_of(
    config: Mapping[str, Any], overrides: Sequence[str] = ()
) -> dict[str, float | int | str | bool]:
    """The main hyperparameters of a resolved configuration, flat and typed for the HParams tab.

    A key has one type in every run, since TensorBoard hides runs of mixed types
    (tensorboard#3597): numbers stay numbers, lists become text (``[2,2,2,2]``), None is left out.
    Groups are named by what they build (``model=ResNet``, ``augment=flip+crop``).

    Args:
        config: resolved, plain containers.
        overrides: what was swept or typed (``key=value``); those keys join the main ones.
    """
    found: dict[str, Any] = {"seed": config.get("seed")}
    for group in (*_WHOLE_GROUPS, *_PARTS):
        node = config.get(group) or {}
        if group != "trainer":
            found[group] = _built(node)
        keys = _PARTS.get(group, [key for key in node if not key.startswith("_")])
        found |= {f"{group}.{key}": node.get(key) for key in keys}
    found["augment"] = _augmentation(config.get("augment") or {})
    typed = {key_of(override) for override in overrides}
    for key, value in flatten(config):
        if key in typed and key not in found and not changes_no_result(key):
            found[key] = value
    if (precision := found["trainer.precision"]) is not None:
        found["trainer.precision"] = str(precision)  # 32 and bf16-mixed are both allowed
    return {key: _cell(value) for key, value in found.items() if value is not None}


def _write(experiment: Any, summary: Any) -> None:
    # torch's add_hparams is the one public way to these, and makes a folder of its own for each
    experiment._get_file_writer().add_summary(summary)  # noqa: SLF001


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
