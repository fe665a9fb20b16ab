"""A composed configuration becomes parts; what a constructor refuses becomes one clear line."""

from __future__ import annotations

import logging
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import OmegaConf

from cifar_lab.config.compose import plain
from cifar_lab.config.targets import check_target, is_of_a_library, makes_scheduler
from cifar_lab.config.validate import (
    check_averages,
    check_devices,
    check_processes,
    check_resolved,
)
from cifar_lab.config.written import config_to_keep
from cifar_lab.errors import InputError
from cifar_lab.records import processes
from cifar_lab.records.record import Init
from cifar_lab.run import compatibility
from cifar_lab.run.networks import build_model
from cifar_lab.run.parts import build_part, check_kind, factory_of, named
from cifar_lab.run.trainer import build_callbacks, build_trainer
from cifar_lab.run.trials import try_kept, try_network, try_optimizer, try_together

if TYPE_CHECKING:
    from lightning.pytorch import Trainer
    from omegaconf import DictConfig
    from torch import nn

    from cifar_lab.data.datamodule import DataModule
    from cifar_lab.training.classifier import Classifier
    from cifar_lab.training.distillation import Distillation
    from cifar_lab.training.fit import Parts
    from cifar_lab.training.hard_examples import HardExamples
    from cifar_lab.training.layout import Layout
    from cifar_lab.training.optimizers import OptimizerFactory
    from cifar_lab.training.schedules import TorchSchedule


# Groups whose parts have nothing else to fit, and those that are tried out together.
ALONE = ("optimizer", "scheduler")
FIT_TOGETHER = ("data", "augment", "model", "loss")


@contextmanager
def _warnings_wait() -> Iterator[None]:
    """What libraries warn of comes when all is built: a line that refuses it stands alone."""
    shown = warnings.showwarning
    waiting: list[Callable[[], None]] = []

    def wait(*said: Any, **more: Any) -> None:
        waiting.append(partial(shown, *said, **more))

    warnings.showwarning = wait
    try:
        yield
    finally:
        warnings.showwarning = shown
    for show in waiting:
        show()


@_warnings_wait()
def build(
    cfg: DictConfig,
    resolved: dict[str, Any],
    run_dir: Path,
    *,
    begun_with: Init | None = None,
) -> Parts:
    """Checks, then builds every part; on disk only the cache of decoded data is made.

    Args:
        cfg: composed.
        resolved: the same as `run_config` gave it.
        run_dir: the run folder, which need not be there.
        begun_with: the weights of ``init_from`` that the folder's run has begun with, and that its
            checkpoint replaces: they are not read again.

    Raises:
        InputError: what the check or a constructor refuses, with the key's name before it.
    """
    check_resolved(resolved)  # loads what the targets need, torch and lightning among it
    import torch

    from cifar_lab.training.fit import Parts
    from cifar_lab.training.layout import ChecksLayout
    from cifar_lab.training.library_logging import route_library_logging
    from cifar_lab.training.optimizers import check_steps
    from cifar_lab.training.schedules import try_schedule
    from cifar_lab.training.trial import check_keepable

    route_library_logging()
    kind = check_devices(resolved["trainer"], resolved["optimizer"])
    check_averages(resolved)
    check_processes(resolved["trainer"], kind, processes.find())
    if cfg.threads is not None:
        torch.set_num_threads(cfg.threads)
    # always: several runs may follow each other in one process
    torch.set_float32_matmul_precision(cfg.matmul_precision.name)
    optimizer, schedule = build_optimizer(cfg), build_schedule(cfg)
    classifier, data, init = _build_learner(
        cfg, resolved, kind, optimizer=optimizer, schedule=schedule, begun_with=begun_with
    )
    callbacks = build_callbacks(resolved)
    trainer = build_trainer(cfg, resolved, list(callbacks.values()), run_dir)
    layout = _check_layout(trainer, classifier, data)
    with named("optimizer"):
        trial = optimizer(classifier)
        check_steps(trial, layout.steps)
    with named("scheduler"):
        try_schedule(schedule, trial, steps=layout.steps, epochs=layout.epochs)
    for path, callback in callbacks.items():
        if not is_of_a_library(type(callback)):
            state = {}
            with suppress(Exception):  # of one that is only set up when the fit begins
                state = callback.state_dict()
            check_keepable(state, path)
        if isinstance(callback, ChecksLayout):
            with named(path):
                callback.check_layout(trainer, layout)
    if cfg.cuda_graph:
        _check_graph(trainer, classifier, data, steps_per_call=cfg.steps_per_call)
    return Parts(
        trainer=trainer,
        classifier=classifier,
        data=data,
        steps_per_call=cfg.steps_per_call,
        cuda_graph=cfg.cuda_graph,
        init=init,
    )


def _build_learner(
    cfg: DictConfig,
    resolved: dict[str, Any],
    kind: str,
    *,
    optimizer: OptimizerFactory,
    schedule: Callable[[int, int], float] | TorchSchedule,
    begun_with: Init | None,
) -> tuple[Classifier, DataModule, Init | None]:
    """What is trained and what on, each part tried; and the weights that it begins with."""
    import lightning.pytorch as lightning

    from cifar_lab.training.classifier import Classifier
    from cifar_lab.training.initial_weights import freeze
    from cifar_lab.training.steps.compile import prepare

    data = build_data(cfg)
    compatibility.check(resolved)
    with log_to_stderr():
        data.open()
        _say_if_one_step(data)
    lightning.seed_everything(cfg.seed, workers=False, verbose=False)
    network = build_model(cfg, data.dataset)
    init = begun_with or _begin_with(network, resolved, data)
    frozen = freeze(network, resolved.get("freeze") or ())
    loss = build_part("loss", cfg.loss)
    try_together(network, loss, cfg, data, kind)
    distillation = _distillation(resolved, data, kind)
    hard = _hard_examples(
        cfg, resolved, data, kind, network, loss=loss, optimizer=optimizer, schedule=schedule
    )
    try_optimizer(cfg, optimizer, network)
    channels_last = prepare(
        network,
        device=kind,
        channels_last=cfg.channels_last,
        mode=cfg.compile.name,
    )
    data.channels_last = data.channels_last and channels_last
    classifier = Classifier(
        network=network,
        loss=loss,
        optimizer=optimizer,
        schedule=schedule,
        config=config_to_keep(cfg, resolved),
        frozen=frozen,
        tta=cfg.tta,
        distillation=distillation,
        hard_examples=hard,
    )
    return classifier, data, init


def _check_layout(trainer: Trainer, classifier: Classifier, data: DataModule) -> Layout:
    """How the fit lies on epochs and processes; InputError where a part can't go with that."""
    from cifar_lab.training.layout import layout_of

    data.check_world_size(trainer.world_size)
    hard = classifier.hard_examples
    if hard is not None and trainer.world_size > 1:
        raise InputError(
            f"hard_examples.share={hard.share}: each of the {trainer.world_size} processes would "
            "train a proxy of its own; use trainer.devices=1"
        )
    compatibility.check_parts(trainer, data)
    return layout_of(trainer, data.train_dataloader())


def _check_graph(
    trainer: Trainer, classifier: Classifier, data: DataModule, *, steps_per_call: int
) -> None:
    from cifar_lab.training.steps.cuda_graph import check_calls

    if data.augment.sizes:
        raise InputError(
            "cuda_graph=true: records a step on images of one size, and augment.sizes has "
            f"{len(data.augment.sizes)}; leave one of them out"
        )
    singly = classifier.wants_single_steps
    check_calls(trainer, data, steps_per_call=steps_per_call, singly=singly)


def _say_if_one_step(data: DataModule) -> None:
    images = len(data.dataset.train) - data.held_out
    if data.batch_size > images:
        logging.getLogger("cifar_lab.data").warning(
            "cifar_lab: data.batch_size=%d: is more than the %d training images; an epoch is one "
            "step",
            data.batch_size,
            images,
        )


def _begin_with(network: nn.Module, resolved: dict[str, Any], data: DataModule) -> Init | None:
    """Gives the network the weights of ``init_from``; a checkpoint that a run goes on from wins."""
    from cifar_lab.training.fit import show_data
    from cifar_lab.training.initial_weights import read, take_weights

    if (source := resolved.get("init_from")) is None:
        return None
    name = source.get("torchvision") or source["path"]
    target = str(resolved["model"]["_target_"])
    if "torchvision" in source and not target.startswith("torchvision.models."):
        raise InputError(
            f"init_from={name}: torchvision's weights are for its own networks, and this is "
            f"model._target_={target}"
        )
    found = read(source, offline=bool(resolved["data"].get("offline")))
    # before they are taken: what a network makes of its images is for what they leave new
    show_data(network, data)
    classes, strict = len(data.dataset.classes), resolved["init_strict"]
    try:
        taken = take_weights(network, found.tensors, classes=classes, strict=strict)
    except InputError as error:
        raise InputError(f"init_from={name}: {error}") from error
    return Init(source=name, sha256=found.sha256, **asdict(taken))


def _distillation(resolved: dict[str, Any], data: DataModule, kind: str) -> Distillation | None:
    from cifar_lab.run.teachers import distillation_from

    if (node := resolved.get("distill")) is None:
        return None
    return distillation_from(node, data, device=kind, channels_last=bool(resolved["channels_last"]))


def _hard_examples(
    cfg: DictConfig,
    resolved: dict[str, Any],
    data: DataModule,
    kind: str,
    network: nn.Module,
    *,
    loss: Any,
    optimizer: OptimizerFactory,
    schedule: Callable[[int, int], float] | TorchSchedule,
) -> HardExamples | None:
    from cifar_lab.training.hard_examples import HardExamples
    from cifar_lab.training.schedules import TorchSchedule
    from cifar_lab.training.steps.compile import prepare

    if (node := resolved.get("hard_examples")) is None:
        return None
    trainer, where = resolved["trainer"], "hard_examples"
    precision = str(trainer.get("precision", "32-true"))
    reason = None
    if isinstance(schedule, TorchSchedule):
        reason = "scheduler is one of torch's, which Lightning steps; use cosine or triangular"
    elif resolved["cuda_graph"]:
        reason = "cuda_graph=true records a step that is always the same"
    elif trainer.get("accumulate_grad_batches", 1) != 1:
        reason = "trainer.accumulate_grad_batches must be 1"
    elif precision.startswith("16"):
        reason = f"trainer.precision={precision} scales the loss of one network; use bf16-mixed"
    if reason or isinstance(schedule, TorchSchedule):
        raise InputError(f"{where}.share={node['share']}: the proxy makes its own steps: {reason}")
    try_kept(network, cfg, data, kind, share=node["share"])
    model = {**resolved["model"], **node["proxy"]}
    try:
        check_target("model", model)
        proxy = build_model(OmegaConf.create({"model": model}), data.dataset)
        name = f"model._target_={model['_target_']}"
        try_network(proxy, cfg, data, kind, name=name)
        with named("optimizer"):
            optimizer(proxy)
    except InputError as error:
        raise InputError(f"{where}.proxy: {error}") from error
    prepare(proxy, device=kind, channels_last=bool(resolved["channels_last"]), mode="none")
    return HardExamples(
        proxy,
        loss=loss,
        optimizer=optimizer,
        schedule=schedule,
        share=node["share"],
        every=node["every"],
    )


def build_data(cfg: DictConfig) -> DataModule:
    """The data module alone, not yet opened; raises InputError as `build` does."""
    from cifar_lab.data.augment import Pipeline
    from cifar_lab.data.datamodule import DataModule

    augment = build_part("augment", cfg.augment)
    check_kind("augment", augment, Pipeline, "a cifar_lab.data.augment.Pipeline")
    data: DataModule = build_part("data", cfg.data, augment=augment, seed=cfg.seed)
    check_kind("data", data, DataModule, "a cifar_lab.data.datamodule.DataModule")
    return data


def build_optimizer(cfg: DictConfig) -> OptimizerFactory:
    """What makes the optimizer; raises InputError as `build` does."""
    from cifar_lab.training.optimizers import OptimizerFactory

    groups = plain(cfg.optimizer).get("groups") or {}
    if not isinstance(groups, dict):
        raise InputError(f"optimizer.groups={groups}: must be groups, each under a name of its own")
    for name, group in groups.items():
        if not isinstance(group, dict):
            raise InputError(
                f"optimizer.groups.{name}={'null' if group is None else group}: must say its "
                "parameters and their options"
            )
    return OptimizerFactory(factory_of("optimizer", cfg), groups)


def build_schedule(cfg: DictConfig) -> Callable[[int, int], float] | TorchSchedule:
    """The schedule; raises InputError as `build` does."""
    from cifar_lab.training.schedules import TorchSchedule

    make = factory_of("scheduler", cfg)
    if not makes_scheduler(make.func):
        return make
    with named("scheduler"):
        return TorchSchedule.of(make, plain(cfg.scheduler))


@contextmanager
def log_to_stderr() -> Iterator[None]:
    """Fetching and decoding take long and come before there is a train.log: they speak up."""
    data_log = logging.getLogger("cifar_lab.data")
    handler = logging.StreamHandler(sys.stderr)
    level, propagate = data_log.level, data_log.propagate
    data_log.addHandler(handler)
    data_log.propagate = False
    data_log.setLevel(logging.INFO if processes.rank() == 0 else logging.ERROR)
    try:
        yield
    finally:
        data_log.removeHandler(handler)
        data_log.propagate = propagate
        data_log.setLevel(level)
