"""Every use of what Lightning keeps private: one function each, with version and reason.

Private, or public by name and described nowhere: what its loops count, what their state holds, what
its connectors hang on a Trainer. Read in lightning 2.6.6, which pyproject holds below 2.7;
``tests/training/test_lightning_internals.py`` fails where one of these changes.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from importlib import import_module
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import DeviceStatsMonitor, WeightAveraging
from lightning.pytorch.core.optimizer import LightningOptimizer
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.loops.progress import _ProcessedTracker
from torch.optim.swa_utils import AveragedModel

# --- what the connectors hang on a Trainer --------------------------------------------------------


def callbacks_of(trainer: Trainer) -> list[Callback]:
    """The callbacks in the order in which they run; `_CallbackConnector` sets the attribute."""
    callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]  # by a connector
    return callbacks


def set_callbacks(trainer: Trainer, callbacks: Iterable[Callback]) -> None:
    """Replaces the callbacks, in this order.

    `Trainer(callbacks=)` alone puts those with a state of the checkpoints last and the rest as they
    come; ours have places before and between them that are known when the trainer is.
    """
    callbacks_of(trainer)[:] = callbacks


def datamodule_of(trainer: Trainer) -> Any:
    """The data module of the fit or test at hand; `_DataConnector` sets the attribute."""
    datamodule = trainer.datamodule  # type: ignore[attr-defined]  # by a connector
    assert datamodule is not None
    return datamodule


def set_limit_train_batches(trainer: Trainer, share: float) -> None:
    """Changes ``limit_train_batches`` of a made Trainer; it is read when the loader is set up."""
    trainer.limit_train_batches = share


def reads_cpu(monitor: DeviceStatsMonitor, trainer: Trainer) -> bool:
    """Whether it will ask psutil about the CPU (_get_and_log_device_stats): by default on a CPU."""
    on_cpu = trainer.strategy.root_device.type == "cpu"
    return on_cpu if monitor._cpu_stats is None else monitor._cpu_stats


@contextmanager
def cuda_left_alone(trainer: Trainer) -> Iterator[None]:
    """A fit in here keeps no state of CUDA's generators around its sanity check.

    To keep them Lightning starts CUDA on every GPU it finds (_run_stage calls isolate_rng), also
    for a run on the CPU, and where there is no sanity check.
    """
    module: Any = import_module("lightning.pytorch.trainer.trainer")
    if trainer.strategy.root_device.type == "cuda" and trainer.num_sanity_val_steps:
        yield
        return
    original = module.isolate_rng
    module.isolate_rng = partial(original, include_cuda=False)
    try:
        yield
    finally:
        module.isolate_rng = original


# --- where the training loop is -------------------------------------------------------------------


def call_index(trainer: Trainer) -> int:
    """The number within its epoch, from 0, of the `training_step` that is on, or was last."""
    return trainer.fit_loop.batch_idx


def calls_done(trainer: Trainer) -> int:
    """Calls of `training_step` that are over; of the epoch before until the next one's first.

    Unlike `call_index` right also where a fit goes on, before its first call. Not ``completed``,
    which is one less there: what is saved at a batch's end doesn't count that one yet.
    """
    current = trainer.fit_loop.epoch_loop.batch_progress.current
    assert isinstance(current, _ProcessedTracker)
    return current.processed


def validation_may_follow(trainer: Trainer, batch_idx: int) -> bool:
    """Whether Lightning may validate after this batch of an epoch (_should_check_val_fx)."""
    every = trainer.val_check_batch
    assert every is not None  # None is validation by wall time, which is refused
    # where something asked for a stop Lightning validates at once
    if trainer.is_last_batch or trainer.should_stop:
        return True
    return trainer.check_val_every_n_epoch is None or (batch_idx + 1) % int(every) == 0


# --- optimizer steps of a manual optimization -----------------------------------------------------


def logged_step(trainer: Trainer) -> int:
    """The step that loggers are given: of accumulated batches and calls, those that stepped."""
    return trainer.fit_loop.epoch_loop._batches_that_stepped


def add_logged_steps(trainer: Trainer, steps: int) -> None:
    """Counts steps beside the one that Lightning counts for a call of `training_step`."""
    trainer.fit_loop.epoch_loop._batches_that_stepped += steps


@contextmanager
def counted_step(optimizer: LightningOptimizer) -> Iterator[None]:
    """Counts a step in ``global_step`` that is made without `LightningOptimizer.step`."""
    optimizer._on_before_step()
    yield
    optimizer._on_after_step()


# --- the loops' state in a checkpoint -------------------------------------------------------------


def train_loader_state(checkpoint: dict[str, Any]) -> dict[str, Any]:
    """What the training loader's own ``state_dict`` gave when the checkpoint was written."""
    state: dict[str, Any] = _fit_loop(checkpoint)["state_dict"]["combined_loader"][0]
    return state


def set_calls_done(checkpoint: dict[str, Any], calls: int) -> None:
    """Has the fit that takes the checkpoint up begin behind ``calls`` of its epoch."""
    progress = _fit_loop(checkpoint)["epoch_loop.batch_progress"]
    current = progress["current"]
    # the last call may be in different stages of its completion
    progress["current"] = {
        stage: calls - (current["ready"] - count) for stage, count in current.items()
    }


def set_global_step(checkpoint: dict[str, Any], steps: int) -> None:
    """Has the fit that takes the checkpoint up count from ``steps``, whichever way it optimizes."""
    # global_step is read from one of these two, and each knows only its own steps
    counted = {key: {"ready": steps, "completed": steps} for key in ("total", "current")}
    loops = _fit_loop(checkpoint)
    loops["epoch_loop.automatic_optimization.optim_progress"]["optimizer"]["step"] = counted
    loops["epoch_loop.manual_optimization.optim_step_progress"] = counted


def enter_validation(checkpoint: dict[str, Any]) -> None:
    """Has the fit that takes the checkpoint up begin with a whole validation, skipped else."""
    # Lightning takes a validation up where a checkpoint shows it inside a step. Inside the first
    # one, all of it is repeated (_TrainingEpochLoop.advance, _EvaluationLoop)
    inside = {"ready": 1, "started": 1, "processed": 0, "completed": 0}
    _fit_loop(checkpoint)["epoch_loop.val_loop.batch_progress"] = {
        "total": dict(inside),
        "current": dict(inside),
        "is_last_batch": False,
    }


def _fit_loop(checkpoint: dict[str, Any]) -> dict[str, Any]:
    loops: dict[str, Any] = checkpoint["loops"]["fit_loop"]
    return loops


# --- averages of weights --------------------------------------------------------------------------


def average_model(averaging: WeightAveraging) -> AveragedModel:
    """The averages that a `WeightAveraging` keeps; it makes them in its `setup`."""
    assert averaging._average_model is not None
    return averaging._average_model


def swap_averages(averaging: WeightAveraging, module: LightningModule) -> None:
    """Exchanges the module's weights and the averages, as for a validation and back."""
    averaging._swap_models(module)


# --- TensorBoard ----------------------------------------------------------------------------------


def purge_step_of(logger: TensorBoardLogger) -> int:
    """The step from which on TensorBoard hides what older files of the folder hold; 0: none."""
    step: int = logger._kwargs.get("purge_step", 0)
    return step


def set_purge_step(logger: TensorBoardLogger, step: int) -> None:
    """Sets it in a made logger: which step a run goes on from is known later than its loggers are.

    Fabric's logger keeps the arguments of its `SummaryWriter` until it makes it.
    """
    assert logger._experiment is None, "comes before the first event"
    logger._kwargs["purge_step"] = step
