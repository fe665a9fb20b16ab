"""Every tensor of a step lives on the step's device, seen with fake tensors of a CUDA device.

Fake tensors have a device, a shape and a type, and no numbers: operators on several devices are
refused as CUDA refuses them. Backward passes want a real device; those are the meta device's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning.pytorch import Trainer
from torch import Tensor, nn
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensorMode,
)

from cifar_lab.data.augment import Normalization, Pipeline
from cifar_lab.data.feed.device_loader import BatchLoader, place
from cifar_lab.data.feed.epoch import Batch, Multistep, Share
from cifar_lab.training.classifier import Classifier
from cifar_lab.training.schedules import constant
from tests.laws.test_no_waiting import EVERY, NETWORKS, SGD, STANDARD
from tests.support.device_laws import Waits

CUDA = torch.device("cuda:0")
MIXES_NOT = {name: t for name, t in EVERY.items() if name not in ("mixup", "cutmix")}


@pytest.fixture
def pinned(monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    """What was pinned; pinning itself needs CUDA."""
    seen: list[Tensor] = []

    def pin(tensor: Tensor) -> Tensor:
        seen.append(tensor)
        return tensor

    monkeypatch.setattr(Tensor, "pin_memory", pin)
    # the draws of a Beta distribution are read on the host, once an epoch
    monkeypatch.setattr("cifar_lab.data.augment._beta", lambda _, count, g: torch.rand(count))
    return seen


@pytest.fixture
def fake(pinned: list[Tensor]) -> Iterator[FakeTensorMode]:
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        yield mode


def loader_on(
    device: torch.device, transforms: dict[str, Any] | None = None, *, rank: int = 0, of: int = 1
) -> BatchLoader:
    pipeline = Pipeline(transforms=EVERY if transforms is None else transforms)
    pipeline.num_classes = 10
    return BatchLoader(
        images=torch.zeros(60, 3, 32, 32, dtype=torch.uint8, device=CUDA),
        labels=torch.arange(60),
        indices=torch.arange(60),
        share=Share(count=60, batch_size=8, drop_last=False, rank=rank, world_size=of),
        pipeline=pipeline,
        normalization=Normalization(mean=(0.5,) * 3, std=(0.5,) * 3, device=CUDA),
        seed=0,
        shuffle=True,
        device=device,
        channels_last=True,
    )


def devices_of(batches: list[Batch]) -> set[torch.device]:
    return {tensor.device for batch in batches for tensor in batch}


@pytest.mark.usefixtures("fake")
@pytest.mark.parametrize(
    "transforms", [STANDARD, MIXES_NOT, EVERY], ids=["standard", "unmixed", "every"]
)
@pytest.mark.parametrize("size", [1, 4])
def test_the_feed_makes_its_batches_on_the_device(transforms: dict[str, Any], size: int) -> None:
    loader = loader_on(CUDA, transforms)
    if size > 1:
        loader.multistep = Multistep(size=size, full=7, batches=8, max_steps=None)
    with Waits("cuda") as waits:
        batches = list(loader)
    assert devices_of(batches) == {CUDA}
    assert len(batches) == (8 if size == 1 else 3)
    assert waits.found == []


@pytest.mark.usefixtures("fake")
def test_cuda_without_a_number_is_the_device_where_the_images_are(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[Any] = []
    original = torch.empty

    def empty(*arguments: Any, **more: Any) -> Tensor:
        asked.append(more.pop("pin_memory", False))
        made: Tensor = original(*arguments, **more)
        return made

    monkeypatch.setattr(torch, "empty", empty)
    assert devices_of(list(loader_on(torch.device("cuda")))) == {CUDA}
    assert not any(asked), "the images were fetched through pinned memory"


@pytest.mark.usefixtures("fake")
@pytest.mark.parametrize("rank", [0, 1])
def test_what_is_pinned_has_no_gaps(pinned: list[Tensor], rank: int) -> None:
    list(loader_on(CUDA, rank=rank, of=2))
    assert len(pinned) == 2 + len(EVERY)
    assert all(tensor.is_contiguous() for tensor in pinned)


def test_images_stay_in_pinned_memory_where_the_device_has_no_room(
    monkeypatch: pytest.MonkeyPatch, pinned: list[Tensor]
) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (2 * 2**30 + 10, 0))
    few, many = (torch.zeros(n, dtype=torch.uint8) for n in (10, 11))
    with FakeTensorMode(allow_non_fake_inputs=True):
        assert place(few, CUDA).device == CUDA
        assert place(many, CUDA).device.type == "cpu"
    assert len(pinned) == 1


@pytest.mark.usefixtures("fake")
@pytest.mark.parametrize("mixed", [False, True])
@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("network", NETWORKS)
def test_forward_loss_and_metrics_are_on_the_device(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    network: str,
    precision: torch.dtype,
    mixed: bool,
) -> None:
    trainer = Trainer(default_root_dir=tmp_path, accelerator="cpu", logger=False)
    torch.set_default_dtype(precision)
    try:
        with CUDA:  # made there: fake parameters can't be moved
            made = NETWORKS[network]()
    finally:
        torch.set_default_dtype(torch.float32)
    classifier = Classifier(
        network=made,
        loss=nn.CrossEntropyLoss(label_smoothing=0.1),
        optimizer=SGD,
        schedule=constant,
        config={},
    )
    monkeypatch.setattr(Classifier, "device", CUDA)
    classifier.trainer = trainer
    trainer.optimizers = [torch.optim.SGD(made.parameters(), lr=0.1)]
    trainer.datamodule = SimpleNamespace(batch_size=8)  # type: ignore[attr-defined]  # by a connector
    # the step as a recording gets it, up to the backward pass
    recorded: list[Callable[..., None]] = []
    losses: list[Tensor] = []
    monkeypatch.setattr(classifier, "manual_backward", losses.append)
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: nullcontext())

    def keep(*, step: Callable[..., None], **_: Any) -> None:
        recorded.append(step)

    multistep = Multistep(size=4, full=7, batches=8, max_steps=None)
    classifier.train_on(multistep, graphed_step=keep)  # type: ignore[arg-type]
    classifier.on_train_start()
    classifier.train_on(None)
    classifier.on_test_epoch_start()
    images, labels = next(iter(loader_on(CUDA, EVERY if mixed else STANDARD)))
    batch = images.to(precision), labels
    with Waits("cuda") as waits, torch.no_grad():
        loss = classifier.training_step(batch, 0)
        recorded[0](*batch)
        logits = classifier.test_step(batch, 0)
    assert loss is not None
    # sums elsewhere would refuse what is added to them, or wait for it
    made_there = (loss, *losses, logits, classifier.running_train())
    assert [tensor.device for tensor in made_there] == [CUDA] * 4
    assert waits.found == []


@pytest.mark.usefixtures("fake")
def test_the_law_sees_what_waits_and_what_is_elsewhere() -> None:
    there, here = torch.ones(3, device=CUDA), torch.ones(3)
    cases: tuple[tuple[Callable[[], Any], str], ...] = (
        (lambda: there.cpu(), "copies to the host"),
        (lambda: here.to(CUDA), "copies from pageable memory"),
        (lambda: torch.tensor(5, device=CUDA), "copies from pageable memory"),
        (lambda: there.copy_(here), "copies from pageable memory"),
    )
    for what, reason in cases:
        with Waits("cuda") as waits:
            what()
        assert len(waits.found) == 1, reason
        assert reason in waits.found[0]
    for refused in (lambda: there + here, there.nonzero, there.sum().item):
        with pytest.raises(
            (RuntimeError, DynamicOutputShapeException, DataDependentOutputException)
        ):
            refused()
