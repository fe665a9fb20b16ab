"""Parts are tried together before a run begins, on a few images and copies that are thrown away."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from cifar_lab.config.compose import plain
from cifar_lab.config.targets import is_of_a_library
from cifar_lab.config.validate import accelerator
from cifar_lab.errors import InputError
from cifar_lab.run.networks import takes_by_name
from cifar_lab.run.parts import build_part, named

if TYPE_CHECKING:
    from omegaconf import DictConfig
    from torch import Tensor, nn

    from cifar_lab.data.datamodule import DataModule
    from cifar_lab.training.optimizers import OptimizerFactory


def try_together(
    network: nn.Module, loss: Any, cfg: DictConfig, data: DataModule, kind: str
) -> None:
    """Raises InputError where network, loss, labels and images don't fit together."""
    from cifar_lab.training.trial import check_weight, try_augmentation, try_loss, try_transform

    if data.transform is None:
        with named("augment"):
            try_augmentation(data.augment, data.dataset)
    else:
        with named("data"):
            try_transform(data.transform, data.dataset.image_size)
    name = f"model._target_={cfg.model['_target_']}"
    classes = len(data.dataset.classes)
    unsaid = cfg.model.get("num_classes") is None and takes_by_name(cfg.model["_target_"])[0]
    advice = f"add +model.num_classes={classes}" if unsaid else ""
    outputs = try_network(network, cfg, data, kind, name=name, advice=advice)
    if cfg.loss.get("weight") is not None:
        check_weight(getattr(loss, "weight", None), classes)
    if outputs is not None:
        name = f"loss._target_={cfg.loss['_target_']}"
        try_loss(loss, outputs, mixes=_mixes(data), name=name)
        _try_smoothing(loss, cfg, classes=classes, mixes=_mixes(data))


def _mixes(data: DataModule) -> bool:
    return data.augment.mixes and data.transform is None


def try_network(
    network: nn.Module,
    cfg: DictConfig,
    data: DataModule,
    kind: str,
    *,
    name: str,
    advice: str = "",
    alone: str | None = None,
) -> Tensor | None:
    """`trial.try_network` with images of every size that the data has."""
    from cifar_lab.training.trial import Expected, try_network

    expected = Expected(
        size=data.dataset.image_size,
        classes=len(data.dataset.classes),
        batch_size=data.batch_size,
        device=kind,
        precision=str(cfg.trainer.get("precision", "32-true")),
        alone=_image_alone(cfg, data) if alone is None else alone,
    )
    outputs = try_network(network, expected, name=name, advice=advice)
    for _, side in data.augment.sizes[:-1]:
        smaller = replace(expected, size=(3, side, side))
        try_network(network, smaller, name=f"augment.sizes: {name}")
    return outputs


def try_kept(
    network: nn.Module, cfg: DictConfig, data: DataModule, kind: str, *, share: float
) -> None:
    """Raises InputError where all images of a batch are kept, or one that is too few."""
    from cifar_lab.training.hard_examples import kept

    images, size = len(data.train_indices), data.batch_size
    of_a_batch = min(size, images)
    if 0 < share < 1 and kept(share, of_a_batch) == of_a_batch:
        raise InputError(
            f"hard_examples.share={share}: keeps all {of_a_batch} images of a batch; must be "
            f"at most {1 - 1 / of_a_batch:.4g}"
        )
    last = 0 if data.drop_last else images % size
    for count in (of_a_batch, last):
        if count and kept(share, count) == 1:
            alone = (
                f"hard_examples.share={share}: keeps one of a batch's {count} images; must be "
                "larger for this network, or data.drop_last=true where that is the last batch"
            )
            name = f"model._target_={cfg.model['_target_']}"
            try_network(network, cfg, data, kind, name=name, alone=alone)


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


def _try_smoothing(loss: Any, cfg: DictConfig, *, classes: int, mixes: bool) -> None:
    """Raises InputError where the loss takes label smoothing and ignores it."""
    from cifar_lab.training.trial import try_smoothing

    for key in ("label_smoothing", "smoothing"):
        if value := cfg.loss.get(key):
            without = build_part("loss", {**plain(cfg.loss), key: 0.0})
            try_smoothing(
                loss,
                without,
                classes=classes,
                mixes=mixes,
                name=f"loss.{key}={value}",
            )


def try_optimizer(cfg: DictConfig, factory: OptimizerFactory, network: nn.Module) -> None:
    """Makes an optimizer of the network that is thrown away; raises InputError as `build` does."""
    from cifar_lab.training.optimizers import try_step

    kind = accelerator(str(cfg.trainer.get("accelerator", "auto")))
    with named("optimizer"):
        trial = factory(network)  # the library's own checks of its numbers are among it
        # a library sees some of it in its step alone, which on a CPU may be one that only a GPU can
        # make
        if not is_of_a_library(factory.make) or kind == "cpu":
            try_step(factory, network)
    from cifar_lab.training import fused_sgd

    precision = str(cfg.trainer.get("precision"))
    fused_sgd.check(trial, device=kind, precision=precision)
    if cfg.cuda_graph:
        from cifar_lab.training.steps import cuda_graph

        cuda_graph.check(trial, device=kind, precision=precision)
