"""The plain path: torch's DataLoader, per-sample torchvision transforms, worker processes.

For people who bring their own transforms. Same splits, order, shares and resume as `BatchLoader`.
"""

from __future__ import annotations

import multiprocessing
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import util
from typing import TYPE_CHECKING, Any, final

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from cifar_lab.data.augment import ColorJitter, Pipeline, RandomCrop, RandomFlip, Transform
from cifar_lab.data.auto_augment import RandAugment, TrivialAugment
from cifar_lab.data.feed.epoch import Batch, EpochLoader, epoch_order, stream
from cifar_lab.errors import InputError
from cifar_lab.records.files import shorten_paths_of_sockets

if TYPE_CHECKING:
    from types import TracebackType

    from torchvision.transforms import v2

_WITH_COUNTERPART = (RandomFlip, RandomCrop, ColorJitter, TrivialAugment, RandAugment)
SampleTransform = Callable[[Tensor], Tensor]
_SampleKey = tuple[int, int]  # row of the split, seed of the sample's augmentation


def check_per_sample(pipeline: Pipeline) -> None:
    """Raises InputError unless every transform has a counterpart in torchvision."""
    if pipeline.sizes:
        raise InputError(
            "data.loader=torchvision: augment.sizes resizes whole batches; use data.loader=device"
        )
    for name, transform in pipeline.transforms.items():
        if not isinstance(transform, _WITH_COUNTERPART):
            raise InputError(
                f"data.loader=torchvision: augment.transforms.{name} has no per-sample form in "
                f"torchvision; use data.loader=device, augment.transforms.{name}=null, or a "
                "data.transform of your own"
            )


def check_replaced(pipeline: Pipeline) -> None:
    """Raises InputError where a person's own transform would stand in the place of more than usual.

    Every pipeline that is not chosen mirrors and shifts; what else one has was asked for.
    """
    asked = [
        f"augment.transforms.{name}"
        for name, transform in pipeline.transforms.items()
        if not isinstance(transform, RandomFlip | RandomCrop)
    ]
    if unused := [*asked, *(["augment.sizes"] if pipeline.sizes else [])]:
        raise InputError(
            f"data.transform: is in the place of augment, and {unused[0]} would do nothing; add "
            "augment=none, or leave data.transform out"
        )


def per_sample(pipeline: Pipeline, size: int) -> list[v2.Transform]:
    """The torchvision transforms with the same distribution as the pipeline's."""
    return [_counterpart(transform, size) for transform in pipeline.transforms.values()]


def _counterpart(transform: Transform, size: int) -> v2.Transform:
    from torchvision.transforms import v2

    match transform:
        case RandomFlip(p=p):
            return v2.RandomHorizontalFlip(p)
        case RandomCrop(padding=padding, mode=mode):
            fill = {"zero": "constant", "reflect": "reflect"}[mode]
            return v2.RandomCrop(size, padding=padding, padding_mode=fill)
        case ColorJitter(strength=(brightness, contrast, saturation)):
            return v2.ColorJitter(brightness, contrast, saturation)
        case TrivialAugment():
            return v2.TrivialAugmentWide()
        case RandAugment(operations=operations, magnitude=magnitude):
            return v2.RandAugment(operations, magnitude)
    raise AssertionError(f"check_per_sample let {transform!r} through")


@final
@dataclass(kw_only=True, eq=False, repr=False)
class TorchvisionLoader(EpochLoader):
    """Per-sample loading in worker processes; yields what `BatchLoader` yields.

    Every sample's transforms draw from torch's global CPU generator, seeded from (seed, epoch,
    position) around the call: nothing depends on the number of workers, and the generator of the
    training process is left as it was.

    Attributes:
        images: (N, 3, H, W) uint8 of a whole split, on the CPU.
        labels: (N,) int64 of the whole split, on the CPU.
        transform: (3, H, W) uint8 to the same, or to float in [0, 1].
        mean: per channel, subtracted from the image in [0, 1].
        std: per channel, divides it then.
        workers: worker processes; 0 loads in the training process.
    """

    images: Tensor
    labels: Tensor
    transform: SampleTransform
    mean: tuple[float, ...]
    std: tuple[float, ...]
    workers: int

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.workers:
            shorten_paths_of_sockets()
            util.Finalize(None, _end_workers, exitpriority=10)
        self._upcoming: list[list[_SampleKey]] = []
        # One DataLoader for all epochs, so that its workers start once. It reads the batches from
        # the list that every epoch fills anew.
        self._loader: DataLoader[Any] = DataLoader(
            _Samples(self.images, self.labels, self.transform, self.mean, self.std),
            batch_sampler=self._upcoming,
            num_workers=self.workers,
            persistent_workers=self.workers > 0,
            pin_memory=self.device.type == "cuda",
            worker_init_fn=let_go,
            # its seeds for the workers, which nothing uses, would come from the global generator
            generator=torch.Generator(),
        )

    def _batches(self, epoch: int, first: int) -> Iterator[Batch]:
        self._upcoming[:] = self._keys(epoch)[first:]
        with _signals_blocked():
            batches = iter(self._loader)  # where workers start, which inherit that
        for images, labels in batches:
            yield (
                images.to(self.device, non_blocking=True, memory_format=self.memory_format),
                labels.to(self.device, non_blocking=True),
            )

    def _keys(self, epoch: int) -> list[list[_SampleKey]]:
        count, size = self.share.count, self.share.local_batch_size
        order = epoch_order(count, seed=self.seed, epoch=epoch, shuffle=self.shuffle)
        seeds = torch.randint(2**32, (count,), generator=stream(self.seed, epoch, "augment"))
        rows = self.indices[self.share.of(order)].tolist()
        keys = list(zip(rows, self.share.of(seeds).tolist(), strict=True))
        return [keys[start : start + size] for start in range(0, len(keys), size)]


@contextmanager
def _signals_blocked() -> Iterator[None]:
    """Ctrl-C and SIGTERM are the training process's to answer.

    A terminal, ``timeout`` and a cluster's cancel send them to all of a group. A worker that ended
    of it would end the run as failed, before it can save where it stands.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGINT, signal.SIGTERM))
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def let_go(worker: int) -> None:
    """Has a worker say nothing of a connection that the training process breaks off.

    Which it does where a signal ends it while a batch is handed over: the thread of
    `multiprocessing.resource_sharer` would print that, behind the line that says how to go on.

    Args:
        worker: its number, which torch gives.
    """
    say = sys.excepthook

    def hook(kind: type[BaseException], error: BaseException, at: TracebackType | None) -> None:
        if not issubclass(kind, ConnectionError | EOFError):
            say(kind, error, at)

    sys.excepthook = hook


def _end_workers() -> None:
    """Ends what still works when the process ends: `multiprocessing` would wait for it for ever."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # torch's would raise
    for process in multiprocessing.active_children():
        if process.daemon:
            process.kill()


@final
class _Samples(Dataset[tuple[Tensor, int]]):
    def __init__(
        self,
        images: Tensor,
        labels: Tensor,
        transform: SampleTransform,
        mean: tuple[float, ...],
        std: tuple[float, ...],
    ) -> None:
        from torchvision.transforms import v2

        self._images = images
        self._labels = labels
        self._transform = transform
        self._to_float = v2.ToDtype(torch.float32, scale=True)
        self._normalize = v2.Normalize(mean, std)

    def __getitem__(self, key: _SampleKey) -> tuple[Tensor, int]:
        row, seed = key
        with torch.random.fork_rng(devices=[]):
            # not torch.manual_seed: that would seed the GPUs too
            torch.default_generator.manual_seed(seed)
            image = self._transform(self._images[row])
        return self._normalize(self._to_float(image)), int(self._labels[row])
