"""Rules between the groups of a configuration that no constructor can see."""

from __future__ import annotations

import inspect
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cifar_lab.config.messages import suggestion
from cifar_lab.config.targets import locate
from cifar_lab.errors import InputError
from cifar_lab.model.tta import VIEWS
from cifar_lab.records.digest import TRAINING, VALIDATION
from cifar_lab.training.selection import meaning, mode_of

if TYPE_CHECKING:
    from lightning.pytorch import Trainer

    from cifar_lab.data.datamodule import DataModule


@dataclass(frozen=True)
class _Callback:
    """A node among the callbacks.

    Attributes:
        path: its dotted key.
        kind: what its ``_target_`` names.
        node: its arguments as given.
    """

    path: str
    kind: Any
    node: dict[str, Any]

    def is_a(self, *kinds: type) -> bool:
        return inspect.isclass(self.kind) and issubclass(self.kind, kinds)

    def argument(self, name: str) -> Any:
        """As given, else the default; None where there is no such argument."""
        parameters = inspect.signature(self.kind).parameters
        default = parameters[name].default if name in parameters else None
        return self.node.get(name, None if default is inspect.Parameter.empty else default)


def check(config: dict[str, Any]) -> None:
    """Raises InputError where parts that are right alone don't go together."""
    from cifar_lab.training.callbacks.averages import Averages
    from cifar_lab.training.callbacks.checkpoints import Checkpoints

    interval = config["trainer"].get("val_check_interval")
    if isinstance(interval, str | dict):
        raise InputError(
            f"trainer.val_check_interval={interval}: what is selected would hang on the clock, and "
            "no run could be repeated; must be a number of batches or a share of the epoch"
        )
    check_strategy(config["trainer"])
    if config["tta"] not in VIEWS:
        raise InputError(f"tta={config['tta']}: must be {', '.join(VIEWS)}")
    callbacks = list(_callbacks(config))
    checkpoints = [callback for callback in callbacks if callback.is_a(Checkpoints)]
    if len(checkpoints) > 1:
        first, second = checkpoints[:2]
        raise InputError(f"{second.path}: {first.path} keeps the checkpoints; leave one of them")
    averages = [callback.path for callback in callbacks if callback.is_a(Averages)]
    if len(averages) > 1:
        raise InputError(
            f"{averages[1]}: {averages[0]} keeps the averages that are tested; leave one of them"
        )
    _check_schedule_free(config, callbacks)
    for callback in callbacks:
        _check_sam(callback, config["trainer"])
        _check_half_precision(callback, config["trainer"])
        _check_monitor_changes_nothing(callback)
        if inspect.isclass(callback.kind):
            check_callback(callback.path, callback.kind)
        for name in ("patience", "min_delta"):
            number = callback.argument(name)
            if isinstance(number, int | float) and number < 0:
                raise InputError(f"{callback.path}.{name}={number}: must be at least 0")
        if isinstance(callback.argument("monitor"), str):
            _check_monitor(callback, config, _metrics(callbacks))
    if checkpoints and checkpoints[0].argument("monitor") is not None:
        _check_selection(config)
    node = config["scheduler"]
    schedule = _Callback("scheduler", locate("scheduler", node["_target_"]), node)
    if (monitor := schedule.node.get("monitor")) is not None:
        if not isinstance(monitor, str):
            raise InputError(f"scheduler.monitor={monitor}: must be a metric's name, e.g. val/loss")
        _check_monitor(schedule, config, _metrics(callbacks))


def _callbacks(config: dict[str, Any]) -> Iterator[_Callback]:
    for group in ("callbacks", "monitors"):
        for name, node in config[group].items():
            if isinstance(node, dict) and "_target_" in node:
                path = f"{group}.{name}"
                yield _Callback(path, locate(path, node["_target_"]), node)


def _check_monitor_changes_nothing(callback: _Callback) -> None:
    """Refuses among the monitors, which are no part of a run's digest, what changes results."""
    from lightning.pytorch.callbacks import Checkpoint, EarlyStopping, Timer, WeightAveraging

    from cifar_lab.training.callbacks.lookahead import Lookahead
    from cifar_lab.training.callbacks.sam import Sam

    changes = callback.is_a(Checkpoint, EarlyStopping, Timer, WeightAveraging, Lookahead, Sam)
    if callback.path.startswith("monitors.") and changes:
        raise InputError(
            f"{callback.path}: {callback.kind.__name__} has a part in the result, and monitors "
            f"only observe; it belongs in callbacks.{callback.path.partition('.')[2]}"
        )


def _check_schedule_free(config: dict[str, Any], callbacks: list[_Callback]) -> None:
    """Refuses such an optimizer without what belongs to it, and the other way round."""
    from cifar_lab.training.callbacks.lookahead import Lookahead
    from cifar_lab.training.callbacks.schedule_free import ScheduleFree
    from cifar_lab.training.schedules import constant

    target = config["optimizer"]["_target_"]
    module = str(getattr(locate("optimizer", target), "__module__", ""))
    free = module.startswith(("schedulefree.", "cifar_lab.training.schedule_free"))
    looks = [callback.path for callback in callbacks if callback.is_a(ScheduleFree)]
    if looks and not free:
        raise InputError(
            f"{looks[0]}: is of optimizer=schedule_free, and this is optimizer._target_={target}; "
            "leave it out"
        )
    if not free:
        return
    if not looks:
        raise InputError(
            f"optimizer._target_={target}: keeps the weights to test apart; add "
            "callbacks=schedule_free"
        )
    schedule = config["scheduler"]["_target_"]
    if locate("scheduler", schedule) is not constant:
        raise InputError(
            f"scheduler._target_={schedule}: a schedule-free optimizer needs none; add "
            "scheduler=none (its warm-up is optimizer.warmup_steps)"
        )
    for callback in callbacks:
        if callback.is_a(Lookahead):
            raise InputError(
                f"{callback.path}: moves the weights, and a schedule-free optimizer makes its "
                "average of them; leave one of them out"
            )


def _check_sam(callback: _Callback, trainer: dict[str, Any]) -> None:
    """Refuses it where a step can't be made twice of one batch."""
    from cifar_lab.training.callbacks.sam import Sam

    if not callback.is_a(Sam):
        return
    accumulated, precision = trainer.get("accumulate_grad_batches"), trainer.get("precision")
    if accumulated not in (1, None):
        raise InputError(
            f"{callback.path}: goes twice over the batch of a step, and trainer."
            f"accumulate_grad_batches={accumulated} makes it of several; set it to 1"
        )
    if str(precision) in ("16-mixed", "16"):
        raise InputError(
            f"{callback.path}: measures gradients, and trainer.precision={precision} scales them; "
            "set trainer.precision=bf16-mixed or 32-true"
        )


def _check_half_precision(callback: _Callback, trainer: dict[str, Any]) -> None:
    """Refuses steps that are smaller than what half precision tells apart.

    Of a million weights of .05 in bfloat16 SAM's step uphill with rho=.05 goes another way (a
    cosine of .63 with the one that is meant), and of Lookahead's half stand still at alpha=.2.
    """
    from cifar_lab.training.callbacks.lookahead import Lookahead
    from cifar_lab.training.callbacks.sam import Sam

    precision = str(trainer.get("precision"))
    if precision in ("bf16-true", "16-true") and callback.is_a(Lookahead, Sam):
        raise InputError(
            f"{callback.path}: its steps are lost where weights are rounded to half precision; "
            f"trainer.precision={precision} must be bf16-mixed or 32-true with it"
        )


# --- devices --------------------------------------------------------------------------------------


def check_strategy(trainer: dict[str, Any]) -> None:
    """Refuses what would end in Lightning's or torch's own error once processes have started."""
    from lightning.pytorch.strategies import (
        DDPStrategy,
        SingleDeviceStrategy,
        Strategy,
        StrategyRegistry,
    )

    given, devices = trainer.get("strategy", "auto"), trainer.get("devices")
    if isinstance(given, dict):
        name = str(given["_target_"])
        kind = locate("trainer.strategy", name)
        if not inspect.isclass(kind):
            return
        if issubclass(kind, Strategy) and kind.__module__.startswith("lightning."):
            good = issubclass(kind, DDPStrategy | SingleDeviceStrategy) and "XLA" not in name
        else:
            good = issubclass(kind, Strategy)
        alone = issubclass(kind, SingleDeviceStrategy)
    else:
        # those that copy this process are refused with their own reason
        known = [n for n in StrategyRegistry.available_strategies() if n.startswith("ddp")]
        name, good = given, given in ("auto", "single_device", *known)
        alone = given == "single_device"
    if not good:
        raise InputError(
            f"trainer.strategy={name}: must be auto, single_device, ddp, "
            "ddp_find_unused_parameters_true, or a DDPStrategy: a network and its checkpoints lie "
            "whole on each device"
        )
    several = (len(devices) if isinstance(devices, list) else devices) not in (1, "auto", None)
    if several and alone:
        raise InputError(
            f"trainer.devices={devices}: trainer.strategy={name} uses one; set trainer.devices=1, "
            "or trainer.strategy=ddp"
        )
    if isinstance(given, dict) and issubclass(kind, DDPStrategy):
        _check_ddp(given, kind)


def _check_ddp(node: dict[str, Any], kind: type) -> None:
    import torch
    from torch import distributed
    from torch.nn.parallel import DistributedDataParallel

    backend = node.get("process_group_backend")
    if backend is not None:
        # of torch's others one is for tests, and reduces nothing
        here = [b for b in ("gloo", "nccl", "mpi", "ucc") if distributed.is_backend_available(b)]
        if not torch.cuda.is_available() and "nccl" in here:
            here.remove("nccl")
        if backend not in here:
            raise InputError(
                f"trainer.strategy.process_group_backend={backend}: must be null or one of those "
                f"that this machine has: {', '.join(here)}"
            )
    # what DDPStrategy doesn't know itself it hands on
    known = [
        name
        for function in (kind, DistributedDataParallel)
        for name, parameter in inspect.signature(function).parameters.items()
        if parameter.kind is not parameter.VAR_KEYWORD and name not in ("self", "module")
    ]
    for key in node:
        if not key.startswith("_") and key not in known:
            raise InputError(
                f"trainer.strategy.{key}: unknown key{suggestion(key, known)}; {kind.__name__} and "
                f"DistributedDataParallel take {', '.join(dict.fromkeys(known))}"
            )


# --- callbacks that change what was configured ---------------------------------------------------


def check_callback(path: str, kind: type) -> None:
    """Raises InputError for the kinds that would make the record or the result untrue.

    They were tried with lightning 2.6.6; what another callback changes, `WatchLayout` finds out.
    """
    from lightning.pytorch import callbacks as theirs

    from cifar_lab.training.callbacks.averages import Averages

    refused: dict[type, str] = {
        theirs.BatchSizeFinder: (
            "changes the batch that was configured; "
            "compare sizes with -m data.batch_size=64,128,256 instead"
        ),
        theirs.LearningRateFinder: (
            "changes the rate that was configured; "
            "compare rates with -m optimizer.lr=0.01,0.03,0.1 instead"
        ),
        theirs.GradientAccumulationScheduler: (
            "changes the number of steps that the learning rates are laid out for; "
            "use trainer.accumulate_grad_batches, one number for the whole fit"
        ),
        theirs.StochasticWeightAveraging: (
            "has an average that is in no checkpoint and is not tested; use callbacks=swa"
        ),
        theirs.WeightAveraging: (
            "takes its averages for the weights where a run is stopped within a validation; "
            "use callbacks=ema or callbacks=swa"
        ),
        theirs.ModelPruning: (
            "changes the weights after they were validated, and loses its masks where a run is "
            "continued; prune the checkpoint of a finished run"
        ),
        theirs.BaseFinetuning: (
            "adds parameters that the learning rates are not laid out for; "
            "freeze=[features.*], by names of parameters, keeps layers out of the whole fit"
        ),
        theirs.OnExceptionCheckpoint: (
            "has Lightning start from the file that it left; "
            "callbacks.checkpoints keeps what a run goes on from"
        ),
    }
    for other, reason in refused.items():
        if issubclass(kind, other) and not issubclass(kind, Averages):
            name = kind.__name__ if kind is other else f"{kind.__name__} (a {other.__name__})"
            raise InputError(f"{path}: {name} {reason}")


def check_parts(trainer: Trainer, data: DataModule) -> None:
    """`check` of what only the built parts tell; raises InputError.

    A target may be a function, and Lightning adds callbacks of other packages.
    """
    from lightning.pytorch.callbacks import ModelCheckpoint
    from lightning.pytorch.plugins.io import AsyncCheckpointIO

    from cifar_lab.training.callbacks.checkpoints import Checkpoints, folder_of
    from cifar_lab.training.layout import layout_of
    from cifar_lab.training.lightning_internals import callbacks_of

    sizes, layout = data.augment.sizes, layout_of(trainer, data.train_dataloader())
    if sizes and layout.epochs <= sizes[-1][0]:
        limit = (
            f"trainer.max_epochs={layout.epochs}"
            if layout.epochs == trainer.max_epochs
            else f"trainer.max_steps={trainer.max_steps}"
        )
        raise InputError(
            f"augment.sizes: comes to images of {sizes[-1][1]} pixels in epoch {sizes[-1][0]}, "
            f"counted from 0, and {limit} ends before; what is tested would never have been "
            "trained on"
        )
    callbacks = callbacks_of(trainer)
    kept = any(isinstance(callback, Checkpoints) for callback in callbacks)
    if kept and isinstance(trainer.strategy.checkpoint_io, AsyncCheckpointIO):
        raise InputError(
            "trainer.plugins: AsyncCheckpointIO writes later than it says, and "
            "callbacks.checkpoints must know when a file is whole; leave one of them out"
        )
    for callback in callbacks:
        check_callback("callbacks", type(callback))
        if kept and isinstance(callback, ModelCheckpoint):
            # where Lightning puts them when nobody says it and there is no logger
            default = None if trainer.loggers else folder_of(trainer)
            folder = default if callback.dirpath is None else Path(callback.dirpath)
            if folder is not None and folder.resolve() == folder_of(trainer).resolve():
                raise InputError(
                    f"callbacks: ModelCheckpoint would write among the files of "
                    f"callbacks.checkpoints ({folder}); give it a dirpath of its own"
                )
    _check_observers(trainer)
    _check_limits(trainer, data)
    _check_interval(trainer, data)


def check_one_bar(paths: Sequence[str], callbacks: Sequence[Any]) -> None:
    """Raises InputError for a second progress bar, which Lightning takes none beside another."""
    from lightning.pytorch.callbacks import ProgressBar

    bars = [
        path
        for path, callback in zip(paths, callbacks, strict=True)
        if isinstance(callback, ProgressBar)
    ]
    if len(bars) > 1:
        raise InputError(
            f"{bars[1]}: {bars[0]} shows the progress already; ~{bars[0]} leaves that out"
        )


def _check_observers(trainer: Trainer) -> None:
    """Callbacks of Lightning's that need what this run doesn't have."""
    from lightning.pytorch import callbacks as theirs

    from cifar_lab.training.lightning_internals import callbacks_of, reads_cpu

    logging = (theirs.LearningRateMonitor, theirs.DeviceStatsMonitor, theirs.ThroughputMonitor)
    for callback in callbacks_of(trainer):
        name = type(callback).__name__
        if isinstance(callback, logging) and not trainer.loggers:
            raise InputError(
                f"{name}: writes to the loggers, and logger=none leaves it none; add logger=csv, "
                "or leave the callback out"
            )
        stats = isinstance(callback, theirs.DeviceStatsMonitor) and reads_cpu(callback, trainer)
        if stats and find_spec("psutil") is None:
            raise InputError(
                f"{name}: reads the CPU with the package psutil; pip install psutil, or leave the "
                "callback out"
            )


def _check_limits(trainer: Trainer, data: DataModule) -> None:
    """Refuses a share of the batches that leaves none."""
    size = data.batch_size
    batches = {"train": data.train_dataloader().num_batches}
    batches["val"] = -(-data.held_out // size)
    batches["test"] = -(-len(data.dataset.test.labels) // size)
    for split, count in batches.items():
        share = getattr(trainer, f"limit_{split}_batches")
        if isinstance(share, float) and 0 < share < 1 and count and int(count * share) == 0:
            overfits = split != "test" and bool(getattr(trainer, "overfit_batches", 0))
            key = "overfit_batches" if overfits else f"limit_{split}_batches"
            raise InputError(
                f"trainer.{key}={share}: leaves no batch of the {count} for {split}; must be at "
                f"least {math.ceil(1000 / count) / 1000}, or a whole number of batches"
            )


# --- what selects ---------------------------------------------------------------------------------


def _metrics(callbacks: list[_Callback]) -> list[str] | None:
    """All metrics that will be logged; None where a callback of the person's own may log others."""
    from lightning.pytorch.callbacks import LambdaCallback

    from cifar_lab.training.callbacks.grad_norm import GradNorm

    ours = ("cifar_lab.", "lightning.")
    if any(not c.kind.__module__.startswith(ours) or c.is_a(LambdaCallback) for c in callbacks):
        return None
    norm = ["grad_norm"] if any(callback.is_a(GradNorm) for callback in callbacks) else []
    return [*VALIDATION, *TRAINING, "images_per_s", *norm]


def _check_monitor(callback: _Callback, config: dict[str, Any], metrics: list[str] | None) -> None:
    from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
    from torch.optim.lr_scheduler import ReduceLROnPlateau

    from cifar_lab.training.callbacks.checkpoints import Checkpoints

    path, monitor = callback.path, callback.node.get("monitor") or callback.argument("monitor")
    if monitor.startswith("test/"):
        raise InputError(
            f"{path}.monitor={monitor}: the test images are looked at once, after the fit; "
            f"must be {' or '.join(VALIDATION)}"
        )
    if callback.is_a(Checkpoints) and not monitor.startswith("val/"):
        return  # its own to refuse
    if metrics is not None and monitor not in metrics:
        raise InputError(
            f"{path}.monitor={monitor}: nothing logs it{suggestion(monitor, metrics)}; "
            f"must be one of {', '.join(metrics)}"
        )
    if callback.is_a(Checkpoints, EarlyStopping, ModelCheckpoint, ReduceLROnPlateau):
        # Lightning's default is no answer where the name gives none
        known = meaning(monitor) is not None
        try:
            mode_of(monitor, callback.argument("mode") if known else callback.node.get("mode"))
        except InputError as error:
            raise InputError(f"{path}.{error}") from error
    reason = _no_validation(config) if monitor.startswith("val/") else None
    if reason and not callback.is_a(Checkpoints):
        what = "the callback" if path != "scheduler" else "the scheduler"
        raise InputError(f"{path}.monitor={monitor}: {reason}, or leave {what} out")
    if callback.is_a(EarlyStopping):
        _check_stopping(callback, config["trainer"])


def _check_stopping(callback: _Callback, trainer: dict[str, Any]) -> None:
    """Lightning looks where an epoch ends or where a validation does: the value must be new."""
    interval, every = trainer.get("val_check_interval"), trainer.get("check_val_every_n_epoch", 1)
    each_epoch = every == 1 and interval in (1.0, None)
    where = callback.argument("check_on_train_epoch_end")
    at_epoch_end = each_epoch if where is None else where
    path, monitor = callback.path, callback.argument("monitor")
    if monitor.startswith("val/"):
        if at_epoch_end and not each_epoch:
            raise InputError(
                f"{path}.check_on_train_epoch_end=true: {monitor} is not new at the end of every "
                "epoch with these trainer.check_val_every_n_epoch and trainer.val_check_interval; "
                "use null"
            )
    elif not at_epoch_end and monitor in (*TRAINING, "grad_norm", "images_per_s"):
        raise InputError(
            f"{path}.monitor={monitor}: is new where an epoch ends, and this looks where a "
            f"validation does; add +{path}.check_on_train_epoch_end=true"
        )


def _no_validation(config: dict[str, Any]) -> str | None:
    """Why no validation will ever run, and what to do; None where one will."""
    trainer, val_size = config["trainer"], config["data"].get("val_size")
    if val_size == 0:
        return "nothing is held out with data.val_size=0; set data.val_size"
    if trainer.get("fast_dev_run"):
        return None  # which validates whatever these say
    limit, every = trainer.get("limit_val_batches"), trainer.get("check_val_every_n_epoch")
    if limit == 0:
        return f"no batch is validated with trainer.limit_val_batches={limit}; set it to 1.0"
    epochs = trainer.get("max_epochs")
    if every is not None and epochs is not None and 0 < epochs < every:
        return (
            f"no epoch is validated with trainer.check_val_every_n_epoch={every} and "
            f"trainer.max_epochs={epochs}; set it to {epochs} or less"
        )
    return None


def _check_selection(config: dict[str, Any]) -> None:
    val_size, reason = config["data"].get("val_size"), _no_validation(config)
    if reason and val_size != 0:  # with 0 the last weights are tested, and that is said
        share = isinstance(val_size, float)
        images = f"{val_size:.3g} of the training" if share else val_size
        raise InputError(
            f"callbacks.checkpoints.monitor: {images} images are held out to select with, and "
            f"{reason}, or callbacks.checkpoints.monitor=null to test the last weights"
        )


def _check_interval(trainer: Trainer, data: DataModule) -> None:
    # validation within the epoch, as it was asked for
    from cifar_lab.training.callbacks.ema import Ema
    from cifar_lab.training.callbacks.lookahead import Lookahead
    from cifar_lab.training.lightning_internals import callbacks_of
    from cifar_lab.training.steps.multistep import limited, validates_within_epochs

    if not validates_within_epochs(trainer):
        return
    interval, accumulated = trainer.val_check_interval, trainer.accumulate_grad_batches
    batches = limited(trainer, data.train_dataloader().num_batches)
    across = trainer.check_val_every_n_epoch is None
    name = f"trainer.val_check_interval={interval}"
    every = interval if isinstance(interval, int) else int(batches * interval)
    if every < 1:
        raise InputError(f"{name}: must be at least 1 of the epoch's {batches} batches")
    if every > batches and not across and trainer.limit_val_batches:
        raise InputError(
            f"{name}: must be at most {batches}, the batches of an epoch (or set "
            "trainer.check_val_every_n_epoch=null to count across epochs)"
        )
    # a checkpoint doesn't hold gradients that are still accumulated
    if every % accumulated or (across and batches % accumulated):
        raise InputError(
            f"{name}: validates within a step of trainer.accumulate_grad_batches={accumulated}; "
            + (
                f"an epoch's {batches} batches must be a multiple of it as well"
                if across and every % accumulated == 0
                else f"must be a multiple of it ({every} batches here)"
            )
        )
    callbacks = callbacks_of(trainer)
    looks = trainer.limit_val_batches and data.held_out
    if not looks or any(isinstance(callback, Ema) for callback in callbacks):  # its average is seen
        return
    steps, per_epoch = every // accumulated, -(-batches // accumulated)
    for callback in callbacks:
        if not isinstance(callback, Lookahead):
            continue
        follows = callback.every_steps
        # an epoch begins to count anew, and validations across epochs don't
        if steps % follows or (across and per_epoch % follows and steps % per_epoch):
            raise InputError(
                f"{name}: validates after every {steps} optimizer steps, between two of the slow "
                f"weights, which callbacks.lookahead.every_steps={follows} makes; must be a "
                "multiple of it"
            )
