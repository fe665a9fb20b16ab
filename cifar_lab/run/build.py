"""A composed configuration becomes parts; what a constructor refuses becomes one clear line."""

from __future__ import annotations

import logging
import os
import re
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import OmegaConf

from cifar_lab.config.compose import plain
from cifar_lab.config.messages import first_line
from cifar_lab.config.targets import (
    FROM_THE_DATASET,
    check_target,
    is_of_a_library,
    left_out,
    locate,
    makes_scheduler,
    settings_beside,
    takes_tensor,
)
from cifar_lab.config.validate import (
    accelerator,
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

if TYPE_CHECKING:
    from lightning.pytorch import Trainer
    from omegaconf import DictConfig
    from torch import Tensor, nn

    from cifar_lab.data.datamodule import DataModule
    from cifar_lab.data.dataset import Dataset
    from cifar_lab.training.distillation import Distillation
    from cifar_lab.training.fit import Parts
    from cifar_lab.training.hard_examples import HardExamples
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
    import lightning.pytorch as lightning
    import torch

    from cifar_lab.training.classifier import Classifier
    from cifar_lab.training.fit import Parts
    from cifar_lab.training.initial_weights import freeze
    from cifar_lab.training.layout import ChecksLayout, layout_of
    from cifar_lab.training.library_logging import route_library_logging
    from cifar_lab.training.schedules import try_schedule
    from cifar_lab.training.steps.compile import prepare
    from cifar_lab.training.steps.cuda_graph import check_calls
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
    data = build_data(cfg)
    compatibility.check(resolved)
    with log_to_stderr():
        data.open()
        _say_if_one_step(data)
    lightning.seed_everything(cfg.seed, workers=False, verbose=False)
    network = build_model(cfg, data.dataset)
    init = begun_with or _begin_with(network, resolved, data)
    frozen = freeze(network, resolved.get("freeze") or ())
    loss = build_alone("loss", cfg)
    _try_out(network, loss, cfg, data, kind)
    distillation = _distillation(resolved, data, kind)
    hard = _hard_examples(
        cfg, resolved, data, kind, loss=loss, optimizer=optimizer, schedule=schedule
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
    callbacks = _callbacks(resolved)
    trainer = _trainer(cfg, resolved, list(callbacks.values()), run_dir)
    data.check_world_size(trainer.world_size)
    if hard is not None and trainer.world_size > 1:
        raise InputError(
            f"hard_examples.share={resolved['hard_examples']['share']}: each of the "
            f"{trainer.world_size} processes would train a proxy of its own; use trainer.devices=1"
        )
    compatibility.check_parts(trainer, data)
    layout = layout_of(trainer, data.train_dataloader())
    with _named("optimizer"):
        trial = optimizer(classifier)
    with _named("scheduler"):
        try_schedule(schedule, trial, steps=layout.steps, epochs=layout.epochs)
    for path, callback in callbacks.items():
        if not is_of_a_library(type(callback)):
            state = {}
            with suppress(Exception):  # of one that is only set up when the fit begins
                state = callback.state_dict()
            check_keepable(state, path)
        if isinstance(callback, ChecksLayout):
            with _named(path):
                callback.check_layout(trainer, layout)
    if cfg.cuda_graph:
        if data.augment.sizes:
            raise InputError(
                "cuda_graph=true: records a step on images of one size, and augment.sizes has "
                f"{len(data.augment.sizes)}; leave one of them out"
            )
        singly = classifier.wants_single_steps
        check_calls(trainer, data, steps_per_call=cfg.steps_per_call, singly=singly)
    return Parts(
        trainer=trainer,
        classifier=classifier,
        data=data,
        steps_per_call=cfg.steps_per_call,
        cuda_graph=cfg.cuda_graph,
        init=init,
    )


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


def build_data(cfg: DictConfig) -> DataModule:
    """The data module alone, not yet opened; raises InputError as `build` does."""
    from cifar_lab.data.augment import Pipeline
    from cifar_lab.data.datamodule import DataModule

    augment = _build("augment", cfg.augment)
    _is_a("augment", augment, Pipeline, "a cifar_lab.data.augment.Pipeline")
    data: DataModule = _build("data", cfg.data, augment=augment, seed=cfg.seed)
    _is_a("data", data, DataModule, "a cifar_lab.data.datamodule.DataModule")
    return data


def _try_out(network: nn.Module, loss: Any, cfg: DictConfig, data: DataModule, kind: str) -> None:
    """Raises InputError where network, loss, labels and images don't fit together."""
    from cifar_lab.training.trial import check_weight, try_augmentation, try_loss

    if data.transform is None:
        with _named("augment"):
            try_augmentation(data.augment, data.dataset)
    name = f"model._target_={cfg.model['_target_']}"
    classes = len(data.dataset.classes)
    unsaid = cfg.model.get("num_classes") is None and _takes(cfg.model["_target_"])[0]
    advice = f"add +model.num_classes={classes}" if unsaid else ""
    outputs = _try_network(network, cfg, data, kind, name=name, advice=advice)
    if cfg.loss.get("weight") is not None:
        check_weight(getattr(loss, "weight", None), classes)
    if outputs is not None:
        name = f"loss._target_={cfg.loss['_target_']}"
        try_loss(loss, outputs, mixes=_mixes(data), name=name)
        _try_smoothing(loss, cfg, classes=classes, mixes=_mixes(data))


def _mixes(data: DataModule) -> bool:
    return data.augment.mixes and data.transform is None


def _try_network(
    network: nn.Module,
    cfg: DictConfig,
    data: DataModule,
    kind: str,
    *,
    name: str,
    advice: str = "",
) -> Tensor | None:
    """`trial.try_network` with images of every size that the data has."""
    from cifar_lab.training.trial import Expected, try_network

    expected = Expected(
        size=data.dataset.image_size,
        classes=len(data.dataset.classes),
        batch_size=data.batch_size,
        device=kind,
        precision=str(cfg.trainer.get("precision", "32-true")),
        alone=_image_alone(cfg, data),
    )
    outputs = try_network(network, expected, name=name, advice=advice)
    for _, side in data.augment.sizes[:-1]:
        smaller = replace(expected, size=(3, side, side))
        try_network(network, smaller, name=f"augment.sizes: {name}")
    return outputs


def _hard_examples(
    cfg: DictConfig,
    resolved: dict[str, Any],
    data: DataModule,
    kind: str,
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
    model = {**resolved["model"], **node["proxy"]}
    try:
        check_target("model", model)
        proxy = build_model(OmegaConf.create({"model": model}), data.dataset)
        name = f"model._target_={model['_target_']}"
        _try_network(proxy, cfg, data, kind, name=name)
        with _named("optimizer"):
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


def _try_smoothing(loss: Any, cfg: DictConfig, *, classes: int, mixes: bool) -> None:
    """Raises InputError where the loss takes label smoothing and ignores it."""
    from cifar_lab.training.trial import try_smoothing

    for key in ("label_smoothing", "smoothing"):
        if value := cfg.loss.get(key):
            without = _build("loss", {**plain(cfg.loss), key: 0.0})
            try_smoothing(
                loss,
                without,
                classes=classes,
                mixes=mixes,
                name=f"loss.{key}={value}",
            )


def _image_alone(cfg: DictConfig, data: DataModule) -> str:
    """Where a training batch has one image: which, and what to do; empty where none has."""
    from cifar_lab.data.feed.epoch import Share

    images, size, devices = len(data.train_indices), data.batch_size, cfg.trainer.get("devices")
    world = devices if isinstance(devices, int) and devices > 0 else 1
    if size % world:
        return ""  # refused where the devices are known
    share = Share(images, size, data.drop_last, rank=0, world_size=world)
    on_each = f" on each of trainer.devices={world}" if world > 1 else ""
    if share.local_batch_size == 1:
        return f"data.batch_size={size}: is one image{on_each}; must be larger for this network"
    limit, last = cfg.trainer.get("limit_train_batches"), share.num_batches - 1
    comes = limit in (None, 1.0) if limit is None or isinstance(limit, float) else limit > last
    if last < 0 or share.images_of(last) != 1 or not comes:
        return ""
    return (
        f"data.batch_size={size}: the last batch of the {images} training images has one{on_each}; "
        "set data.drop_last=true, or another data.batch_size or data.val_size"
    )


def build_model(cfg: DictConfig, dataset: Dataset) -> nn.Module:
    """`build_network` for a dataset."""
    return build_network(cfg, len(dataset.classes), dataset.image_size[-1])


def build_network(cfg: DictConfig, classes: int, width: int) -> nn.Module:
    """The network for so many classes and images of that width; what it takes by name decides.

    Raises:
        InputError: as `build`, and for another number of classes.
    """
    given = cfg.model.get("num_classes")
    if given is not None and given != classes:
        raise InputError(
            f"model.num_classes={given}: the data has {classes} classes; leave it out, or give "
            f"{classes}"
        )
    from torch import nn

    unsaid = {name for name in FROM_THE_DATASET["model"] if cfg.model.get(name) is None}
    node = OmegaConf.masked_copy(cfg.model, [str(key) for key in cfg.model if key not in unsaid])
    if _hands_on(cfg.model["_target_"]):
        _check_pretrained(cfg, classes)
    network: nn.Module = _build("model", node, **from_the_dataset(cfg.model, classes, width))
    _is_a("model", network, nn.Module, "a torch.nn.Module")
    return network


def from_the_dataset(model: DictConfig, classes: int, width: int) -> dict[str, int]:
    """The arguments of a network that it leaves to the dataset.

    Args:
        model: the group's node; what it sets stays.
        classes: of the dataset.
        width: S of its images, (3, S, S).
    """
    _, names = _takes(target := model["_target_"])
    known = {"num_classes": classes, "image_size": width}
    assert set(known) == FROM_THE_DATASET["model"]
    taken = names | {"num_classes"} if _hands_on(target) else names
    return {k: v for k, v in known.items() if model.get(k) is None and k in taken}


def _hands_on(target: object) -> bool:
    """Whether it is a function of torchvision's: they hand on what they don't know themselves."""
    return _takes(str(target))[0] and str(target).startswith("torchvision.models.")


def _check_pretrained(cfg: DictConfig, classes: int) -> None:
    """Raises InputError for weights of torchvision's that are of other classes, or aren't here."""
    import torch
    from torchvision.models import get_model_weights

    node = cfg.model
    given, function = node.get("weights"), str(node["_target_"]).rpartition(".")[2]
    if function == "get_model":
        function = str(node.get("name"))
    try:
        known = get_model_weights(function)
        found = known[str(given or "DEFAULT").rpartition(".")[2]]
    except (ValueError, KeyError):
        return  # torchvision's own to refuse
    legacy = node.get("pretrained") is True
    of_them = len(found.meta.get("categories", ()))
    if (given is not None or legacy) and of_them != classes:
        key = "model.pretrained=true" if legacy else f"model.weights={given}"
        raise InputError(
            f"{key}: are weights for {of_them} classes, and the data has {classes}; use "
            f"init_from={known.__name__}.{found.name}, which begins with them under a new head"
        )
    file = Path(torch.hub.get_dir()) / "checkpoints" / Path(found.url).name
    if given is not None and OmegaConf.select(cfg, "data.offline") and not file.exists():
        raise InputError(f"model.weights={given}: data.offline=true, and there is no {file}")


def _takes(target: str) -> tuple[bool, set[str]]:
    """Whether a network takes arguments of any name, and which it takes by name."""
    import inspect

    try:
        parameters = inspect.signature(locate("model", target)).parameters
    except ValueError:  # built in C
        return False, set()
    by_name = {name for name, p in parameters.items() if p.kind is not p.VAR_KEYWORD}
    return len(by_name) < len(parameters), by_name


def _callbacks(resolved: dict[str, Any]) -> dict[str, Any]:
    """By their dotted keys, in the order in which they run."""
    from lightning.pytorch import Callback

    made = {
        f"{group}.{name}": _build(f"{group}.{name}", node)
        for group in ("monitors", "callbacks")
        for name, node in resolved[group].items()
    }
    for key, part in made.items():
        _is_a(key, part, Callback, "a lightning.pytorch.Callback")
    compatibility.check_one_bar(list(made), list(made.values()))
    return made


def _trainer(
    cfg: DictConfig, resolved: dict[str, Any], callbacks: list[Any], run_dir: Path
) -> Trainer:
    import lightning.pytorch as lightning
    from lightning.pytorch.loggers import Logger
    from lightning.pytorch.profilers import Profiler

    loggers = [
        _build(f"logger.{name}", node, **_save_dir(node, run_dir))
        for name, node in resolved["logger"].items()
    ]
    for name, part in zip(resolved["logger"], loggers, strict=True):
        _is_a(f"logger.{name}", part, Logger, "a lightning.pytorch.loggers.Logger")
    trainer: Trainer = _build(
        "trainer",
        resolved["trainer"],
        plugins=plugins_of(cfg),
        callbacks=callbacks,
        logger=loggers or False,
        default_root_dir=str(run_dir),
        **_switches(callbacks, resolved),
    )
    _is_a("trainer", trainer, lightning.Trainer, "a lightning.pytorch.Trainer")
    profiler = getattr(trainer, "profiler", None)
    _is_a("trainer.profiler", profiler, Profiler, "one of lightning.pytorch.profilers")
    return trainer


def plugins_of(cfg: DictConfig) -> list[Any]:
    """The configured plugins, and what tells Lightning who started this process.

    Left to itself Lightning looks at variables that lie about in shells (`distributed`).
    """
    from hydra.utils import instantiate
    from lightning.fabric.plugins.environments.cluster_environment import ClusterEnvironment
    from lightning.fabric.plugins.environments.lightning import LightningEnvironment
    from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
    from lightning.fabric.plugins.environments.torchelastic import TorchElasticEnvironment

    plugins = instantiate(cfg.trainer.get("plugins"), _convert_="all") or []
    plugins = plugins if isinstance(plugins, list) else [plugins]
    if any(isinstance(plugin, ClusterEnvironment) for plugin in plugins):
        raise InputError(
            "trainer.plugins: cifar_lab finds out by itself who started its processes; leave the "
            "cluster environment out"
        )
    world = processes.find()
    if world.launcher == "torchrun":
        return [*plugins, TorchElasticEnvironment()]
    if world.launcher == "srun":
        # it reads the allocation's numbers; the step's have been held against the devices
        nodes = cfg.trainer.get("num_nodes") or 1
        os.environ["SLURM_NTASKS"], os.environ["SLURM_NNODES"] = str(world.size), str(nodes)
        os.environ["SLURM_NTASKS_PER_NODE"] = str(world.size // nodes)
        # how a run goes on is its folder's business: no SIGUSR1, no job put back by Lightning
        return [*plugins, SLURMEnvironment(auto_requeue=False)]
    return [*plugins, LightningEnvironment()]


def build_alone(group: str, cfg: DictConfig) -> Any:
    """Builds the part of a group that needs no other's; raises InputError as `build` does."""
    return _build(group, cfg[group])


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
    return OptimizerFactory(_factory("optimizer", cfg), groups)


def build_schedule(cfg: DictConfig) -> Callable[[int, int], float] | TorchSchedule:
    """The schedule; raises InputError as `build` does."""
    from cifar_lab.training.schedules import TorchSchedule

    make = _factory("scheduler", cfg)
    if not makes_scheduler(make.func):
        return make
    with _named("scheduler"):
        return TorchSchedule.of(make, plain(cfg.scheduler))


def try_optimizer(cfg: DictConfig, factory: OptimizerFactory, network: nn.Module) -> None:
    """Makes an optimizer of the network that is thrown away; raises InputError as `build` does."""
    from cifar_lab.training.optimizers import try_step

    kind = accelerator(str(cfg.trainer.get("accelerator", "auto")))
    with _named("optimizer"):
        trial = factory(network)  # the library's own checks of its numbers are among it
        # on a CPU a library's may refuse what it can only step on a GPU
        if kind == "cpu" or not is_of_a_library(factory.make):
            try_step(factory, network)
    from cifar_lab.training import fused_sgd

    precision = str(cfg.trainer.get("precision"))
    fused_sgd.check(trial, device=kind, precision=precision)
    if cfg.cuda_graph:
        from cifar_lab.training.steps import cuda_graph

        cuda_graph.check(trial, device=kind, precision=precision)


def _factory(group: str, cfg: DictConfig) -> partial[Any]:
    """What is called with what only a run has, whether its node says ``_partial_`` or not."""
    target = locate(group, cfg[group]["_target_"])
    ours = (*settings_beside(group, target), "_partial_")
    node = {key: value for key, value in plain(cfg[group]).items() if key not in ours}
    factory: partial[Any] = _build(group, {**node, "_partial_": True})
    return factory


def _build(path: str, node: DictConfig | dict[str, Any], **runtime: Any) -> Any:
    """Instantiates the node with plain containers, then calls it with what only the program has."""
    from hydra.errors import InstantiationException
    from hydra.utils import instantiate

    locate(path, node["_target_"])  # which says what Hydra doesn't: the module that isn't there
    try:
        factory = instantiate(node, _partial_=True, _convert_="all")
    except InstantiationException as error:
        raise InputError(f"{path}: {first_line(str(error.__cause__ or error))}") from error
    factory = _with_tensors(factory)
    if node.get("_partial_", False):
        # Hydra's own partial checks its target at each call: .7 ms, and a schedule has one a step
        return partial(factory.func, *factory.args, **{**factory.keywords, **runtime})
    with _named(path):
        return factory(**runtime)


def _with_tensors(factory: partial[Any]) -> partial[Any]:
    """The factory with tensors for lists of numbers that are to be such, as a loss's weights."""
    import inspect
    from typing import get_type_hints

    target = factory.func
    lists = {name: value for name, value in factory.keywords.items() if isinstance(value, list)}
    if not lists:
        return factory
    import torch

    try:
        hints = get_type_hints(target.__init__ if inspect.isclass(target) else target)
    except Exception:  # names that exist for type checkers only
        return factory
    tensors = {
        name: torch.tensor(value, dtype=torch.float32)
        for name, value in lists.items()
        if takes_tensor(hints.get(name))
    }
    return partial(target, *factory.args, **{**factory.keywords, **tensors})


@contextmanager
def _named(path: str) -> Iterator[None]:
    """Whatever a constructor stumbles over becomes one line with the key's name before it."""
    from lightning.fabric.utilities.exceptions import MisconfigurationException

    from cifar_lab.training.trial import STOPS, reason

    try:
        yield
    except InputError as error:
        text = str(error)
        raise InputError(text if text.startswith(f"{path}.") else f"{path}.{text}") from error
    except (ValueError, TypeError, ModuleNotFoundError, MisconfigurationException) as error:
        text = first_line(str(error)) or type(error).__name__
        if match := re.search(r"unexpected keyword argument '(\w+)'", text):
            text += left_out(path, [match[1]])
        raise InputError(f"{path}: {text}") from error
    except STOPS as error:
        fetches = path == "model" and isinstance(error, OSError)
        raise InputError(f"{path}: {reason(error)}{_fetching() if fetches else ''}") from error


def _fetching() -> str:
    """Of a network whose constructor fetches weights, and can't."""
    import torch

    folder = Path(torch.hub.get_dir()) / "checkpoints"
    return (
        f"; torchvision's weights are looked for in {folder}, and weights=null (of a backbone: "
        "weights_backbone=null) begins without"
    )


def _is_a(path: str, part: Any, kind: type, word: str) -> None:
    """Raises InputError for a part of another kind than its group's."""
    if not isinstance(part, kind):
        raise InputError(f"{path}._target_: gives {type(part).__name__}; must give {word}")


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


def _save_dir(node: dict[str, Any], run_dir: Path) -> dict[str, str]:
    import inspect

    target = locate("logger", node["_target_"])
    takes = "save_dir" in inspect.signature(target).parameters and "save_dir" not in node
    return {"save_dir": str(run_dir)} if takes else {}


def _switches(callbacks: list[Any], resolved: dict[str, Any]) -> dict[str, bool]:
    """Trainer's switches that follow from the callbacks: without them Lightning adds its own."""
    from lightning.pytorch.callbacks import Checkpoint, ProgressBar

    derived = {
        "enable_progress_bar": any(isinstance(c, ProgressBar) for c in callbacks),
        "enable_checkpointing": any(isinstance(c, Checkpoint) for c in callbacks),
    }
    return {key: value for key, value in derived.items() if key not in resolved["trainer"]}


def device_name(trainer: Any) -> str:
    """What a trainer's devices are called, for the record."""
    import platform

    import torch

    device = trainer.strategy.root_device
    if device.type == "cuda":
        return f"{trainer.num_devices} x {torch.cuda.get_device_name(device)}"
    name = platform.processor() or platform.machine()
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            models = [line.partition(":")[2] for line in file if line.startswith("model name")]
        name = models[0].strip() if models else name
    except OSError:
        pass
    return f"{device.type}: {name}, {os.cpu_count()} cores"
