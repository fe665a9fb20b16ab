"""The images that a run is held against: its own, or others of the same classes."""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from omegaconf import OmegaConf

from cifar_lab.config.targets import check_targets_of_record
from cifar_lab.data.augment import Pipeline
from cifar_lab.data.datamodule import DataModule
from cifar_lab.data.dataset import Channels, Dataset, Split
from cifar_lab.data.fetch.archive import OFFICIAL
from cifar_lab.data.fetch.cifar100 import COARSE, FINE
from cifar_lab.data.fetch.locate import Fetching, open_folders, open_from
from cifar_lab.errors import InputError
from cifar_lab.run.build import build_data
from cifar_lab.run.load import Run

log = logging.getLogger("cifar_lab.data")
_ARCHIVES = {archive.dataset: archive for archive in (OFFICIAL, FINE, COARSE)}
# Of a record's data, what isn't taken from it: it shall neither write elsewhere than a run here
# would, nor open a socket, nor name code.
_OURS: dict[str, Any] = {
    "cache": None,
    "offline": True,
    "sources": [],
    "loader": "device",
    "workers": 0,
    "transform": None,
}
_NO_AUGMENTATION = {"_target_": "cifar_lab.data.augment.Pipeline", "transforms": {}}


@dataclass(kw_only=True, eq=False, repr=False)
class Given(DataModule):
    """The feed of a dataset that is in memory.

    Attributes:
        given: it.
    """

    given: Dataset

    @property
    def source(self) -> str:
        """No other's."""
        return f"given {id(self.given)}"

    def _read(self) -> Dataset:
        return self.given


def own_images(run: Run) -> DataModule:
    """The run's own images, opened: the test split, and those held out.

    Raises:
        InputError: they are not here, or others are in their place, or a ``_target_`` of the
            record is not a part of a run.
    """
    node = run.config.get("data")
    if not isinstance(node, dict):
        raise InputError(f"{run.folder}: its record says nothing of its images; give --data")
    node |= {key: value for key, value in _OURS.items() if key in node}
    check_targets_of_record({"data": node}, also=run.trust)
    cfg = OmegaConf.create(
        {"data": node, "augment": _NO_AUGMENTATION, "seed": run.record.seed or 0}
    )
    try:
        data = build_data(cfg)
        if not isinstance(data, DataModule):
            raise InputError(f"data._target_={node['_target_']}: is no data module")
        data.open()
    except InputError as error:
        raise InputError(
            f"{run.folder}: its images are not here ({error}); give them with --data PATH"
        ) from error
    if not run.record.data.holds(data.dataset.digest):
        raise InputError(
            f"{run.folder}: other images are where its own were ({data.dataset.digest[:12]}, its "
            f"own are {run.record.data.digest[:12]}); give those that you mean with --data PATH"
        )
    return data


def other_images(run: Run, root: str) -> Given:
    """What `cifar_lab.data` reads from a path: an archive, a .zip or class folders.

    Their classes are the run's or some of them, by name; normalization is the run's.

    Raises:
        InputError: nothing can be read there, or a class that the run doesn't know.
    """
    archive = _ARCHIVES.get(run.record.data.name)
    size = run.image_size[1]
    if archive is None:
        dataset = open_folders(root=root, cache=None, image_size=size).dataset
    else:
        nothing = Fetching(offline=True, sources=(), min_rate=0, stall_s=0)
        try:
            dataset = open_from(root=root, cache=None, fetching=nothing, archive=archive).dataset
        except InputError as error:
            try:  # some of its classes, or pictures of another size
                dataset = open_folders(root=root, cache=None, image_size=size).dataset
            except InputError:
                raise error from None
    return feed_of(run, dataset)


def feed_of(run: Run, dataset: Dataset, *, hold_out: bool = False) -> Given:
    """A dataset as the run's network is to see it: its labels, its normalization, its batches.

    With ``hold_out`` those of its training images are held out that the run held out.

    Raises:
        InputError: a class or a label that the run doesn't know.
    """
    unknown = [name for name in dataset.classes if name not in run.classes]
    if unknown:
        raise InputError(
            f"{dataset.name}: the class {unknown[0]} is none of this run's "
            f"{len(run.classes)} ({', '.join(run.classes[:10])}{', …' * (len(run.classes) > 10)})"
        )
    highest = max(int(s.labels.max(initial=0)) for s in (dataset.train, dataset.test))
    if highest >= len(dataset.classes):
        raise InputError(
            f"{dataset.name}: holds the label {highest}; this run has {len(run.classes)} classes, "
            f"and labels must lie in 0..{len(run.classes) - 1}"
        )
    if dataset.image_size[1:] != run.image_size:
        raise InputError(
            f"{dataset.name}: images of {dataset.image_size[1]}x{dataset.image_size[2]}, and this "
            f"run's are {run.image_size[0]}x{run.image_size[1]}"
        )
    labels = np.array([run.classes.index(name) for name in dataset.classes], np.uint16)
    train, test = (
        Split(images=split.images, labels=labels[split.labels])
        for split in (dataset.train, dataset.test)
    )
    node = run.config.get("data") or {}
    data = Given(
        given=replace(
            dataset,
            train=train,
            test=test,
            classes=run.classes,
            channels=Channels(run.mean, run.std),
        ),
        batch_size=node.get("batch_size", 128),
        eval_batch_size=node.get("eval_batch_size"),
        val_size=node.get("val_size", 0) if hold_out else 0,
        val_seed=node.get("val_seed", 0),
        normalization="channel",
        drop_last=False,
        shuffle=False,
        loader="device",
        workers=0,
        transform=None,
        channels_last=bool(node.get("channels_last", True)),
        augment=Pipeline(transforms={}),
        seed=0,
    )
    data.open()
    return data
