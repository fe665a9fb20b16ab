from __future__ import annotations

import multiprocessing
import os
import signal
from itertools import islice
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor

from cifar_lab.data.augment import Mixup, Pipeline, RandomCrop, RandomFlip
from cifar_lab.data.datamodule import Cifar10, Synthetic, stratified_split
from cifar_lab.data.dataset import Dataset
from cifar_lab.data.feed.device_loader import BatchLoader
from cifar_lab.data.feed.epoch import EpochLoader
from cifar_lab.data.feed.torchvision_loader import TorchvisionLoader, per_sample
from cifar_lab.data.fetch import locate as cifar10
from cifar_lab.data.fetch.archive import OFFICIAL, Archive
from cifar_lab.data.synthetic import SYNTHETIC_MEAN, make_synthetic
from cifar_lab.errors import InputError
from tests import conftest

NONE = Pipeline(transforms={})
STANDARD = Pipeline(
    transforms={"flip": RandomFlip(p=0.5), "crop": RandomCrop(padding=4, mode="zero")}
)
FEED: dict[str, Any] = {
    **conftest.FEED,
    "batch_size": 20,
    "val_size": 50,
    "augment": NONE,
    "seed": 0,
}

SOURCE: dict[str, Any] = {
    "root": "here",
    "cache": None,
    "offline": True,
    "sources": ["a"],
    "min_rate": 1.0,
    "stall_s": 2.0,
}


def synthetic(**changes: Any) -> Synthetic:
    sizes = {"train_size": 250, "test_size": 70, "data_seed": 0}
    data = Synthetic(**{**FEED, **sizes, **changes})
    data.setup()
    return data


def all_of(loader: EpochLoader) -> tuple[Tensor, Tensor]:
    images, labels = zip(*loader, strict=True)
    return torch.cat(images), torch.cat(labels)


def rows_of(images: Tensor, dataset: Dataset) -> list[int]:
    """The rows of the training split that unaugmented images (normalization half) come from."""
    rows = {image.tobytes(): row for row, image in enumerate(dataset.train.images)}
    pixels = ((images * 0.5 + 0.5) * 255).round().byte().numpy()
    return [rows[image.tobytes()] for image in pixels]


def test_the_held_out_images_are_stratified_and_disjoint_from_the_rest() -> None:
    labels = np.repeat(np.arange(10), [100, 50, 40, 30, 20, 10, 9, 8, 7, 6]).astype(np.uint8)
    train, val = stratified_split(labels, 97, 3)
    assert len(val) == 97
    assert sorted([*train, *val]) == list(range(280))
    exact = np.bincount(labels) * 97 / 280
    above = np.bincount(labels[val]) - exact
    assert (np.abs(above) < 1).all()
    # rounded up where most was missing
    remainders = exact % 1
    assert remainders[above > 0].min() >= remainders[above < 0].max()


@pytest.mark.parametrize("val_size", [0, 1, 9, 10, 279])
def test_any_number_of_images_can_be_held_out(val_size: int) -> None:
    labels = (np.arange(280) % 10).astype(np.uint8)
    train, val = stratified_split(labels, val_size, 0)
    assert (len(train), len(val)) == (280 - val_size, val_size)


def test_the_split_is_fixed_by_its_own_seed_and_by_nothing_else() -> None:
    first = synthetic().val_indices
    torch.manual_seed(7)
    np.random.seed(7)
    assert np.array_equal(first, synthetic(seed=5, batch_size=7, augment=STANDARD).val_indices)
    assert not np.array_equal(first, synthetic(val_seed=1).val_indices)
    # golden: results are comparable only while the same images are held out
    assert first[:6].tolist() == [6, 9, 13, 16, 20, 23]


@pytest.mark.parametrize("loader", ["device", "torchvision"])
def test_an_epoch_trains_on_every_image_that_is_not_held_out(loader: str) -> None:
    data = synthetic(loader=loader, normalization="half")
    images, labels = all_of(data.train_dataloader())
    rows = rows_of(images, data.dataset)
    assert sorted(rows) == data.train_indices.tolist()
    assert labels.tolist() == data.dataset.train.labels[rows].tolist()


def test_held_out_and_test_images_come_whole_in_stored_order_without_augmentation() -> None:
    data = synthetic(normalization="half", augment=STANDARD, drop_last=True)
    val = data.val_dataloader()
    assert not isinstance(val, list)
    images, labels = all_of(val)
    assert rows_of(images, data.dataset) == data.val_indices.tolist()
    images, labels = all_of(data.test_dataloader())
    pixels = torch.from_numpy(data.dataset.test.images)
    torch.testing.assert_close(images, (pixels / 255 - 0.5) / 0.5, atol=1e-6, rtol=0)
    assert labels.tolist() == data.dataset.test.labels.tolist()


def test_without_held_out_images_there_is_no_validation() -> None:
    data = synthetic(val_size=0)
    assert data.val_dataloader() == []
    assert len(data.train_indices) == 250


def test_both_loaders_go_through_the_images_in_the_same_order() -> None:
    for epoch in range(2):
        orders = []
        for loader in ("device", "torchvision"):
            feed = synthetic(loader=loader, normalization="half", seed=4)
            train = feed.train_dataloader()
            train.set_epoch(epoch)
            orders.append(rows_of(all_of(train)[0], feed.dataset))
        assert orders[0] == orders[1]


def test_both_loaders_give_the_same_pixels_when_nothing_is_augmented() -> None:
    device, plain = (
        all_of(synthetic(loader=k).train_dataloader()) for k in ("device", "torchvision")
    )
    torch.testing.assert_close(device, plain, atol=2e-6, rtol=0)


def test_both_loaders_augment_with_the_same_distribution() -> None:
    # each loader shows every image in 40 epochs: the mean image must agree within its noise
    means, deviations = [], []
    for loader in ("device", "torchvision"):
        train = synthetic(loader=loader, augment=STANDARD, train_size=60, val_size=0)
        feed = train.train_dataloader()
        images = torch.cat([all_of(feed)[0] for _ in range(40)]).double()
        means.append(images.mean(0))
        deviations.append(images.std(0) / len(images) ** 0.5)
    z = (means[0] - means[1]) / (deviations[0] ** 2 + deviations[1] ** 2).sqrt()
    assert float(z.abs().mean()) < 1.0  # 0.8 for noise alone; the pixels are not independent


def test_the_counterparts_of_flip_and_crop_are_torchvisions_own() -> None:
    from torchvision.transforms import v2

    flip, crop = per_sample(STANDARD, 32)
    assert isinstance(flip, v2.RandomHorizontalFlip)
    assert isinstance(crop, v2.RandomCrop)
    assert flip.p == 0.5
    assert (crop.padding, crop.padding_mode) == ([4, 4, 4, 4], "constant")


# https://docs.python.org/3/library/os.html#os.fork: torch's workers are forked
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_workers_outlive_a_signal_to_the_whole_group() -> None:
    loader = synthetic(loader="torchvision", augment=STANDARD, workers=2).train_dataloader()
    batches = iter(loader)
    next(batches)
    workers = [worker for worker in multiprocessing.active_children() if worker.daemon]
    assert len(workers) == 2
    for worker in workers:
        for signum in (signal.SIGTERM, signal.SIGINT, signal.SIGTERM):
            assert worker.pid is not None
            os.kill(worker.pid, signum)
    assert sum(1 for _ in batches) > 0
    assert all(worker.is_alive() for worker in workers)
    assert not {signal.SIGTERM, signal.SIGINT} & signal.pthread_sigmask(signal.SIG_BLOCK, ())


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_torchvision_batches_do_not_depend_on_workers_or_the_global_generator() -> None:
    torch.manual_seed(1)
    here = synthetic(loader="torchvision", augment=STANDARD).train_dataloader()
    two_epochs = [all_of(here) for _ in range(2)]
    torch.manual_seed(2)
    state = torch.get_rng_state()
    there = synthetic(loader="torchvision", augment=STANDARD, workers=2).train_dataloader()
    for images, labels in two_epochs:
        got = all_of(there)
        assert torch.equal(got[0], images)
        assert torch.equal(got[1], labels)
    assert not torch.equal(two_epochs[0][0], two_epochs[1][0])
    list(here)
    assert torch.equal(torch.get_rng_state(), state)


class Seen(LightningModule):
    """Notes how many images of each stage come by."""

    def __init__(self) -> None:
        super().__init__()
        self.net = torch.nn.Linear(3, 1)
        self.counts = {"train": 0, "val": 0, "test": 0}

    def _step(self, batch: tuple[Tensor, Tensor], stage: str) -> Tensor:
        self.counts[stage] += len(batch[1])
        loss: Tensor = self.net(batch[0].mean((2, 3))).square().mean()
        return loss

    def training_step(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        return self._step(batch, "train")

    def validation_step(self, batch: tuple[Tensor, Tensor]) -> None:
        self._step(batch, "val")

    def test_step(self, batch: tuple[Tensor, Tensor]) -> None:
        self._step(batch, "test")

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


# https://github.com/Lightning-AI/pytorch-lightning/issues/21326, and nothing is held out on purpose
@pytest.mark.filterwarnings("ignore:`isinstance.treespec, LeafSpec.` is deprecated:FutureWarning")
@pytest.mark.filterwarnings("ignore:You defined a `validation_step` but have no:UserWarning")
@pytest.mark.filterwarnings("ignore:Total length of `list` across ranks is zero:UserWarning")
@pytest.mark.parametrize("loader", ["device", "torchvision"])
@pytest.mark.parametrize("val_size", [0, 50])
def test_a_trainer_sees_each_split_as_often_as_there_are_epochs(loader: str, val_size: int) -> None:
    module, data = Seen(), synthetic(loader=loader, val_size=val_size, augment=STANDARD)
    trainer = Trainer(
        accelerator="cpu",
        max_epochs=2,
        num_sanity_val_steps=0,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(module, datamodule=data)
    trainer.test(module, datamodule=data, verbose=False)
    assert module.counts == {"train": 2 * (250 - val_size), "val": 2 * val_size, "test": 70}


def test_a_resumed_torchvision_epoch_goes_on_like_the_uninterrupted_one() -> None:
    def make() -> EpochLoader:
        return synthetic(loader="torchvision", augment=STANDARD).train_dataloader()

    whole, stopped, resumed = list(make()), make(), make()
    list(islice(stopped, 4))
    resumed.load_state_dict(stopped.state_dict())
    for (a, b), (c, d) in zip(resumed, whole[4:], strict=True):
        assert torch.equal(a, c)
        assert torch.equal(b, d)


def test_a_transform_of_ones_own_replaces_the_augmentation() -> None:
    data = synthetic(
        loader="torchvision",
        transform=lambda image: image * 0,
        normalization="half",
        augment=Pipeline(transforms={"flip": RandomFlip(p=0.5)}),
    )
    loader = data.train_dataloader()
    assert isinstance(loader, TorchvisionLoader)
    images, _ = next(iter(loader))
    assert images.dtype == torch.float32
    assert (images == -1).all()


def test_the_training_and_validation_images_share_one_tensor() -> None:
    data = synthetic()
    train, val = data.train_dataloader(), data.val_dataloader()
    assert isinstance(train, BatchLoader)
    assert isinstance(val, BatchLoader)
    assert train.images is val.images
    assert train.images.data_ptr() == data.dataset.train.images.ctypes.data


def test_normalization_is_the_datasets_or_a_half() -> None:
    assert synthetic(normalization="half").channel_std == (0.5, 0.5, 0.5)
    images, _ = all_of(synthetic(train_size=2000, val_size=0).train_dataloader())
    torch.testing.assert_close(images.mean((0, 2, 3)), torch.zeros(3), atol=0.05, rtol=0)
    torch.testing.assert_close(images.std((0, 2, 3)), torch.ones(3), atol=0.05, rtol=0)


def test_opening_twice_reads_once(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[dict[str, Any]] = []

    def open_from(*, archive: Archive, fetching: cifar10.Fetching, **arguments: Any) -> Any:
        assert archive is OFFICIAL
        asked.append({**arguments, **vars(fetching)})
        images = make_synthetic(train_size=100, test_size=20, data_seed=0)
        return SimpleNamespace(dataset=images)

    monkeypatch.setattr(cifar10, "open_from", open_from)
    data = Cifar10(**{**FEED, **SOURCE})
    assert data.open() is data.open()
    data.setup("fit")
    assert asked == [SOURCE]
    assert data.channel_mean == SYNTHETIC_MEAN  # those of the images that were opened


OWN = {"loader": "torchvision", "transform": abs}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batch_size": 0}, "data.batch_size=0: must be a whole number of 1 or more"),
        ({"batch_size": 1.5}, "data.batch_size=1.5: must be a whole number"),
        ({"batch_size": "abc"}, "data.batch_size='abc': must be a whole number"),
        ({"batch_size": True}, "data.batch_size=True: must be a whole number"),
        ({"val_size": -1}, "data.val_size=-1: must be a whole number of 0 or more"),
        ({"val_size": 250}, "data.val_size=250: must lie in 0..249 (the training split has 250"),
        ({"val_seed": -1}, "data.val_seed=-1: must be a whole number in 0..4294967295"),
        ({"normalization": "z"}, "data.normalization='z': must be one of channel, half"),
        ({"loader": "dali"}, "data.loader='dali': must be one of device, torchvision"),
        ({"workers": -2}, "data.workers=-2"),
        ({"shuffle": 1}, "data.shuffle=1: must be one of true, false"),
        ({"shuffle": "yes"}, "data.shuffle='yes': must be one of true, false"),
        ({"seed": -1}, "seed=-1: must be a whole number of 0 or more"),
        ({"train_size": 3}, "data.train_size=3: must be a whole number in 10..1000000"),
        ({"transform": abs}, "data.transform: works on single images; add data.loader=torchvision"),
        ({"batch_size": 201, "drop_last": True}, "data.batch_size=201: must be at most 200"),
        (
            {"loader": "torchvision", "augment": Pipeline(transforms={"m": Mixup(alpha=1, p=1)})},
            "data.loader=torchvision: augment.transforms.m has no per-sample form",
        ),
        (
            {**OWN, "augment": Pipeline(transforms={"m": Mixup(alpha=1, p=1)})},
            "data.transform: is in the place of augment, and augment.transforms.m would do nothing",
        ),
        (
            {**OWN, "augment": Pipeline(transforms={}, sizes=[[0, 16], [2, 32]])},
            "data.transform: is in the place of augment, and augment.sizes would do nothing; add",
        ),
    ],
)  # fmt: skip
def test_wrong_input_names_the_key_and_what_is_allowed(
    changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError) as error:
        synthetic(**changes)
    assert str(error.value).startswith(message)


def test_a_batch_that_processes_cannot_share_alike_is_wrong_input() -> None:
    synthetic(batch_size=20).check_world_size(4)
    with pytest.raises(InputError, match=r"data\.batch_size=20: must be a multiple of the 3"):
        synthetic(batch_size=20).check_world_size(3)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"offline": "maybe"}, "data.offline='maybe': must be one of true, false"),
        ({"root": 7}, "data.root=7: must be a path"),
        ({"sources": "http://a"}, "data.sources='http://a': must be a list of addresses"),
        ({"min_rate": -1}, "data.min_rate=-1: must be a number of 0 or more"),
        ({"stall_s": float("nan")}, "data.stall_s=nan: must be a number of 0 or more"),
    ],
)
def test_wrong_sources_are_refused_before_anything_is_looked_for(
    changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError) as error:
        Cifar10(**{**FEED, **SOURCE, **changes})
    assert str(error.value).startswith(message)
