"""Datasets as Lightning sees them: opened, split, and fed to the device."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, fields
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar, Literal, final

import numpy as np
import torch
from lightning.pytorch import LightningDataModule
from numpy.typing import NDArray
from torch import Tensor

from cifar_lab.data.arguments import check_choice, check_number, check_path, check_whole
from cifar_lab.data.augment import Normalization, Pipeline
from cifar_lab.data.copies import count_copies
from cifar_lab.data.dataset import Dataset, Split, check_splits
from cifar_lab.data.feed.device_loader import BatchLoader, as_tensor, place
from cifar_lab.data.feed.epoch import EpochLoader, Multistep, Share, epoch_order
from cifar_lab.data.synthetic import make_synthetic
from cifar_lab.errors import InputError

if TYPE_CHECKING:
    from cifar_lab.data.fetch.archive import Archive

_HALF = (0.5, 0.5, 0.5)
MOST_WORKERS = 1024  # processes of the torchvision loader; no machine has use for more


@dataclass(kw_only=True, eq=False, repr=False)
class DataModule(LightningDataModule, ABC):
    """The feed that all datasets share.

    Attributes:
        batch_size: images of a batch over all devices; an optimizer step takes
            ``trainer.accumulate_grad_batches`` of them, which is 1 unless it is set.
        val_size: training images held out to select with; stratified; 0 holds out none. A number
            below 1 with a point is a share of them.
        val_seed: fixes which ones, whatever `seed` is; 0..2**32-1.
        normalization: "channel": the dataset's channel mean and deviation; "half": .5 and .5.
        drop_last: drop the short last training batch.
        shuffle: a new training order every epoch, or else the stored one.
        loader: "device": whole batches of images that lie on the device; "torchvision": per sample.
        workers: worker processes of the torchvision loader.
        transform: for the torchvision loader, instead of `augment`: (3, H, W) uint8 to the same,
            or to float in [0, 1], drawing from torch's global generator; normalization follows.
        channels_last: memory format of the images; contiguous on MPS all the same.
        augment: of the training images.
        seed: of training order and augmentation.
        eval_batch_size: images of a batch in validation and test; None: `batch_size`.
    """

    batch_size: int
    val_size: int | float
    val_seed: int
    normalization: Literal["channel", "half"]
    drop_last: bool
    shuffle: bool
    loader: Literal["device", "torchvision"]
    workers: int
    transform: Callable[[Tensor], Tensor] | None
    channels_last: bool
    augment: Pipeline
    seed: int
    eval_batch_size: int | None = None

    # by `source`: what a sweep's server has opened for its jobs; empty in a run of its own
    inherited: ClassVar[dict[str, Dataset]] = {}

    def __post_init__(self) -> None:
        super().__init__()
        check_whole("data.batch_size", self.batch_size, 1)
        if self.eval_batch_size is not None:
            check_whole("data.eval_batch_size", self.eval_batch_size, 1)
        if not (isinstance(self.val_size, float) and 0 <= self.val_size < 1):
            check_whole("data.val_size", self.val_size, 0)
        check_whole("data.val_seed", self.val_seed, 0, 2**32 - 1)
        check_whole("data.workers", self.workers, 0, MOST_WORKERS)
        check_whole("seed", self.seed, 0)
        check_choice("data.normalization", self.normalization, ("channel", "half"))
        check_choice("data.loader", self.loader, ("device", "torchvision"))
        for key in ("drop_last", "shuffle", "channels_last"):
            check_choice(f"data.{key}", getattr(self, key), (True, False))
        if self.transform is not None and self.loader == "device":
            raise InputError("data.transform: works on single images; add data.loader=torchvision")
        if self.loader == "torchvision":
            from cifar_lab.data.feed.torchvision_loader import check_per_sample, check_replaced

            (check_per_sample if self.transform is None else check_replaced)(self.augment)
        self._dataset: Dataset | None = None
        self._placed: dict[tuple[str, torch.device], Tensor] = {}
        self._multistep: Multistep | None = None

    @abstractmethod
    def _read(self) -> Dataset:
        """Finds, verifies and decodes the dataset."""

    def open(self) -> Dataset:
        """Finds and checks the data, once; raises InputError when data and settings do not fit."""
        if self._dataset is None:
            dataset = self.inherited.get(self.source) or self._read()
            check_splits(dataset)
            self.augment.fit_to(dataset)
            self._dataset = dataset
            try:
                _check_fit(self, len(dataset.train))
            except InputError:
                self._dataset = None
                raise
        return self._dataset

    def at_hand(self) -> Dataset | None:
        """The dataset that `open` would find, whatever is set beside it; fetches nothing.

        None where it would have to be fetched, which only official images are.

        Raises:
            InputError: there is none.
        """
        return self.inherited.get(self.source) or self._read()

    @property
    def source(self) -> str:
        """What decides which dataset `open` finds: the class, and its own fields."""
        shared = {field.name for field in fields(DataModule)}
        own = {f.name: getattr(self, f.name) for f in fields(self) if f.name not in shared}
        return f"{type(self).__module__}.{type(self).__qualname__} {own}"

    @property
    def dataset(self) -> Dataset:
        """What `open` returned."""
        assert self._dataset is not None, "open() or setup() comes first"
        return self._dataset

    @property
    def held_out(self) -> int:
        """How many training images are held out."""
        if isinstance(self.val_size, int):
            return self.val_size
        return math.ceil(self.val_size * len(self.dataset.train))

    @cached_property
    def facts(self) -> dict[str, Any]:
        """What the record says of the data, `cifar_lab.records.record.Data`."""
        data = self.dataset
        return {
            "name": data.name,
            "layout": data.layout,
            "digest": data.digest,
            "official": data.official,
            "classes": list(data.classes),
            "images": {
                "train": len(self.train_indices),
                "val": len(self.val_indices),
                "test": len(data.test),
            },
            "duplicates": count_copies(data, self.train_indices, self.val_indices),
            "image_size": data.image_size[1:],
            "mean": self.channel_mean,
            "std": self.channel_std,
        }

    def setup(self, stage: str | None = None) -> None:
        """Opens the data where that has not been done."""
        self.open()

    def check_world_size(self, world_size: int) -> None:
        """Raises InputError unless every process can get an equal share of a batch."""
        if self.batch_size % world_size:
            raise InputError(
                f"data.batch_size={self.batch_size}: must be a multiple of the {world_size} "
                "processes that share it (trainer.devices x trainer.num_nodes)"
            )

    @property
    def channel_mean(self) -> tuple[float, float, float]:
        """What is subtracted from each channel of an image in [0, 1]."""
        return self.dataset.statistics.mean if self.normalization == "channel" else _HALF

    @property
    def channel_std(self) -> tuple[float, float, float]:
        """What each channel is divided by then."""
        return self.dataset.statistics.std if self.normalization == "channel" else _HALF

    @property
    def train_indices(self) -> NDArray[np.int64]:
        """Rows of the training split that train, ascending."""
        return self._split_indices[0]

    @property
    def val_indices(self) -> NDArray[np.int64]:
        """Rows of the training split that are held out, ascending."""
        return self._split_indices[1]

    @cached_property
    def _split_indices(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        return stratified_split(self.dataset.train.labels, self.held_out, self.val_seed)

    def first_images(self, count: int) -> Tensor:
        """The first training images as they are stored, for a network that looks at its data.

        (n, 3, H, W) float32 on the CPU, normalized, none of them held out; n is at most `count`.
        The same in every process and whatever `seed` is.
        """
        rows = torch.from_numpy(self.train_indices[:count])
        images = as_tensor(self.dataset.train.images).index_select(0, rows)
        normalization = Normalization(
            mean=self.channel_mean, std=self.channel_std, device=torch.device("cpu")
        )
        return normalization.of_bytes_(images.float())

    def train_dataloader(self) -> EpochLoader:
        """This process's share of the training images, augmented."""
        world_size = self.trainer.world_size if self.trainer else 1
        self.check_world_size(world_size)
        share = Share(
            count=len(self.train_indices),
            batch_size=self.batch_size,
            drop_last=self.drop_last,
            rank=self.trainer.global_rank if self.trainer else 0,
            world_size=world_size,
        )
        if self.loader == "torchvision":
            return self._torchvision_loader(share)
        loader = self._batch_loader(
            "train", self.train_indices, share, pipeline=self.augment, shuffle=self.shuffle
        )
        loader.multistep = self._multistep
        return loader

    def use_multistep(self, multistep: Multistep) -> None:
        """From now on training batches come stacked; for `loader="device"` alone."""
        assert self.loader == "device"
        self._multistep = multistep

    def val_dataloader(self) -> BatchLoader | list[BatchLoader]:
        """The held-out images in stored order, all of them in every process; [] without any."""
        return self._evaluation_loader("train", self.val_indices) if self.val_size else []

    def test_dataloader(self) -> BatchLoader:
        """The test images in stored order, all of them in every process."""
        return self._evaluation_loader("test", np.arange(len(self.dataset.test)))

    def sample_dataloader(self, count: int | None) -> BatchLoader:
        """Training images as they are stored, none of them held out, in whole training batches.

        A random sample, the same in every process and every epoch of a fit: for statistics.

        Args:
            count: of images, at most; None: all. Fewer than make whole batches, or one batch.
        """
        order = epoch_order(len(self.train_indices), seed=self.seed, epoch=0, shuffle=True)
        rows = self.train_indices[order.numpy()[:count]]
        whole = len(rows) - len(rows) % self.batch_size
        return self._evaluation_loader("train", rows[: whole or None], self.batch_size)

    def _evaluation_loader(
        self,
        split: Literal["train", "test"],
        rows: NDArray[np.int64],
        batch_size: int | None = None,
    ) -> BatchLoader:
        # not sharded: metrics are then exact, and the same in every process
        size = batch_size or self.eval_batch_size or self.batch_size
        share = Share(count=len(rows), batch_size=size, drop_last=False, rank=0, world_size=1)
        none = Pipeline(transforms={})
        return self._batch_loader(split, rows, share, pipeline=none, shuffle=False)

    def _batch_loader(
        self,
        split: Literal["train", "test"],
        rows: NDArray[np.int64],
        share: Share,
        *,
        pipeline: Pipeline,
        shuffle: bool,
    ) -> BatchLoader:
        part: Split = getattr(self.dataset, split)
        device = self._device
        if (split, device) not in self._placed:
            self._placed[split, device] = place(as_tensor(part.images), device)
        return BatchLoader(
            images=self._placed[split, device],
            labels=torch.from_numpy(part.labels.astype(np.int64)),
            indices=torch.from_numpy(rows),
            share=share,
            pipeline=pipeline,
            normalization=Normalization(
                mean=self.channel_mean, std=self.channel_std, device=device
            ),
            seed=self.seed,
            shuffle=shuffle,
            device=device,
            channels_last=self.channels_last and device.type != "mps",
        )

    def _torchvision_loader(self, share: Share) -> EpochLoader:
        from torchvision.transforms import v2

        from cifar_lab.data.feed.torchvision_loader import TorchvisionLoader, per_sample

        part = self.dataset.train
        transform = self.transform
        if transform is None:
            steps = per_sample(self.augment, part.images.shape[-1])
            transform = v2.Compose(steps or [v2.Identity()])
        return TorchvisionLoader(
            images=as_tensor(part.images),
            labels=torch.from_numpy(part.labels.astype(np.int64)),
            indices=torch.from_numpy(self.train_indices),
            share=share,
            transform=transform,
            mean=self.channel_mean,
            std=self.channel_std,
            seed=self.seed,
            shuffle=self.shuffle,
            workers=self.workers,
            device=self._device,
            channels_last=self.channels_last and self._device.type != "mps",
        )

    @property
    def _device(self) -> torch.device:
        return self.trainer.strategy.root_device if self.trainer else torch.device("cpu")


@dataclass(kw_only=True, eq=False, repr=False)
class Official(DataModule):
    """What an official archive holds, from disk, the cache, or the network.

    Attributes:
        root: a folder, the archive or a .zip; None looks at the cache, then fetches.
        cache: folder of decoded data; None is the user's cache folder.
        offline: never open a socket.
        sources: addresses of the official archive or copies of it, tried in this order.
        min_rate: bytes/s; a source slower than this for `stall_s` is dropped.
        stall_s: seconds.
    """

    root: str | None
    cache: str | None
    offline: bool
    sources: list[str]
    min_rate: float
    stall_s: float

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice("data.offline", self.offline, (True, False))
        check_path("data.root", self.root)
        check_path("data.cache", self.cache)
        if not isinstance(self.sources, list) or not all(isinstance(s, str) for s in self.sources):
            raise InputError(f"data.sources={self.sources!r}: must be a list of addresses")
        check_number("data.min_rate", self.min_rate, 0)
        check_number("data.stall_s", self.stall_s, 0)

    @property
    @abstractmethod
    def archive(self) -> Archive:
        """What the official bytes are."""

    def at_hand(self) -> Dataset | None:
        """As in every data module."""
        from cifar_lab.data.fetch.locate import NotHereError

        try:
            return self.inherited.get(self.source) or self._read(offline=True)
        except NotHereError:
            return None

    def _read(self, offline: bool | None = None) -> Dataset:
        from cifar_lab.data.fetch.locate import Fetching, open_from

        fetching = Fetching(
            offline=self.offline if offline is None else offline,
            sources=self.sources,
            min_rate=self.min_rate,
            stall_s=self.stall_s,
        )
        opened = open_from(
            root=self.root, cache=self.cache, fetching=fetching, archive=self.archive
        )
        return opened.dataset


@final
@dataclass(kw_only=True, eq=False, repr=False)
class Cifar10(Official):
    """CIFAR-10: 50,000 training and 10,000 test images of 10 classes."""

    @property
    def archive(self) -> Archive:
        """As in every official dataset."""
        from cifar_lab.data.fetch.archive import OFFICIAL

        return OFFICIAL


@final
@dataclass(kw_only=True, eq=False, repr=False)
class Cifar100(Official):
    """CIFAR-100: 50,000 training and 10,000 test images.

    Attributes:
        labels: "fine": the 100 classes; "coarse": the 20 that they are grouped in.
    """

    labels: Literal["fine", "coarse"]

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice("data.labels", self.labels, ("fine", "coarse"))

    @property
    def archive(self) -> Archive:
        """As in every official dataset."""
        from cifar_lab.data.fetch.cifar100 import COARSE, FINE

        return FINE if self.labels == "fine" else COARSE


@final
@dataclass(kw_only=True, eq=False, repr=False)
class Folders(DataModule):
    """A person's own images: train/<class>/... and test/<class>/..., in a folder or a .zip.

    Attributes:
        root: the folder or the .zip.
        cache: folder of decoded data; None is the user's cache folder.
        image_size: pictures of another size are resized to it.
    """

    root: str | None
    cache: str | None
    image_size: int

    def __post_init__(self) -> None:
        super().__post_init__()
        check_path("data.root", self.root)
        check_path("data.cache", self.cache)
        check_whole("data.image_size", self.image_size, 4, 1024)

    def _read(self) -> Dataset:
        from cifar_lab.data.fetch.locate import open_folders

        opened = open_folders(root=self.root, cache=self.cache, image_size=self.image_size)
        return opened.dataset


@final
@dataclass(kw_only=True, eq=False, repr=False)
class Synthetic(DataModule):
    """Images drawn by code; see `cifar_lab.data.synthetic`.

    Attributes:
        train_size: images in the training split, those held out among them.
        test_size: images in the test split.
        data_seed: of the images.
    """

    train_size: int
    test_size: int
    data_seed: int

    def __post_init__(self) -> None:
        super().__post_init__()
        check_whole("data.train_size", self.train_size, 10, 10**6)
        check_whole("data.test_size", self.test_size, 10, 10**6)
        check_whole("data.data_seed", self.data_seed, 0)

    def _read(self) -> Dataset:
        return make_synthetic(
            train_size=self.train_size, test_size=self.test_size, data_seed=self.data_seed
        )


def stratified_split(
    labels: NDArray[np.unsignedinteger], val_size: int, val_seed: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """(training rows, held-out rows), ascending; every class gives its share to within one image.

    Drawn from numpy's legacy generator, whose stream is frozen, so that a split means the same
    images for every version of numpy.

    Args:
        labels: (N,), classes from 0.
        val_size: rows to hold out, 0..N.
        val_seed: 0..2^32-1; the same one holds the same rows out.
    """
    random = np.random.RandomState(val_seed)
    counts = np.bincount(labels)
    exact = val_size * counts / len(labels)
    quota = np.floor(exact).astype(np.int64)
    # the classes with the largest remainders give one more
    quota[np.argsort(quota - exact, kind="stable")[: val_size - quota.sum()]] += 1
    held_out = [
        random.permutation(np.flatnonzero(labels == label))[:size]
        for label, size in enumerate(quota)
    ]
    val = np.sort(np.concatenate(held_out)).astype(np.int64)
    return np.setdiff1d(np.arange(len(labels)), val), val


def _check_fit(data: DataModule, train_count: int) -> None:
    if data.held_out >= train_count:
        raise InputError(
            f"data.val_size={data.val_size}: must lie in 0..{train_count - 1} "
            f"(the training split has {train_count} images)"
        )
    left = train_count - data.held_out
    if data.drop_last and data.batch_size > left:
        raise InputError(
            f"data.batch_size={data.batch_size}: must be at most {left}, the number of training "
            "images left by data.val_size, or data.drop_last=true leaves no batch"
        )
