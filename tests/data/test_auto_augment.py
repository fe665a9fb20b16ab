"""RandAugment and TrivialAugment against torchvision's, image by image."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torchvision.transforms import v2

from cifar_lab.config.compose import compose, run_config
from cifar_lab.config.targets import check_targets_of_record
from cifar_lab.data.augment import Pipeline, Transform
from cifar_lab.data.auto_augment import (
    BINS,
    RAND,
    TRIVIAL_WIDE,
    Operation,
    RandAugment,
    TrivialAugment,
    parameters,
)
from cifar_lab.data.feed.torchvision_loader import check_per_sample, per_sample
from cifar_lab.errors import InputError

OURS: dict[str, Mapping[str, Operation]] = {"rand": RAND, "trivial": TRIVIAL_WIDE}


def pictures(count: int, size: int = 32) -> Tensor:
    # smooth, of full and of narrow range: what the operations tell apart
    noise = torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(0))
    smooth = noise.cumsum(-1).cumsum(-2) / 8
    scale = torch.linspace(5, 80, count).view(-1, 1, 1, 1)
    return (128 + scale * smooth / smooth.std()).clamp(0, 255).to(torch.uint8)


def torchvision_s(image: Tensor, space: str, name: str, number: int, *, negative: bool) -> Tensor:
    """What torchvision makes of an image when it draws this operation, bin and sign."""
    operations = list(OURS[space])

    def drawn(bound: int, size: tuple[int, ...]) -> Tensor:
        fixed = {len(operations): operations.index(name), BINS: number}
        return torch.full(size, fixed[bound])

    def sign(size: tuple[int, ...]) -> Tensor:
        return torch.full(size, 0.25 if negative else 0.75)

    rand = v2.RandAugment(num_ops=1, magnitude=number, num_magnitude_bins=BINS)
    theirs = rand if space == "rand" else v2.TrivialAugmentWide(num_magnitude_bins=BINS)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "randint", drawn)
        patch.setattr(torch, "rand", sign)
        changed: Tensor = theirs(image)
    return changed


@pytest.mark.parametrize("size", [32, 15])
@pytest.mark.parametrize("name", TRIVIAL_WIDE)
@pytest.mark.parametrize("space", OURS)
def test_each_operation_is_torchvision_s(space: str, name: str, size: int) -> None:
    operation = OURS[space][name]
    cases = [(b, s) for b in (0, 1, 9, 17, 30) for s in (False, True)]
    images = pictures(len(cases), size)
    draws = torch.tensor(
        [[parameters(operation, number, negative=s, size=size)] for number, s in cases]
    )
    found, _ = TrivialAugment().apply(images, torch.zeros(len(cases)), draws)
    for image, mine, (number, negative) in zip(images, found, cases, strict=True):
        expected = torchvision_s(image, space, name, number, negative=negative)
        differing = mine.int() - expected.int()
        if operation.kind == "affine":
            # where a place lies between two pixels rounding decides
            assert float((differing != 0).float().mean()) < 0.02
        else:
            blends = operation.kind in ("brightness", "color", "contrast", "sharpness")
            assert int(differing.abs().max()) <= blends  # a truncated float32


@pytest.mark.parametrize("transform", [TrivialAugment(), RandAugment(operations=3, magnitude=9)])
def test_every_image_draws_its_own_and_all_are_drawn_alike(transform: Transform) -> None:
    draws = transform.draw(28_000, torch.Generator().manual_seed(1), 32)
    assert draws.dtype == torch.float32
    counts = torch.bincount(draws[:, -1, 0].long(), minlength=10).tolist()
    # 14 operations, five of which are affine
    assert counts[1] == pytest.approx(10_000, rel=0.05)
    assert all(count == pytest.approx(2_000, rel=0.1) for count in (counts[0], *counts[2:]))
    again = transform.draw(28_000, torch.Generator().manual_seed(1), 32)
    assert torch.equal(draws, again)


def test_operations_follow_each_other() -> None:
    images = pictures(60)
    transform = RandAugment(operations=2, magnitude=20)
    draws = transform.draw(60, torch.Generator().manual_seed(3), 32)
    before = images.clone()
    both, labels = transform.apply(images, torch.arange(60), draws)
    first, _ = transform.apply(images, labels, draws[:, :1])
    second, _ = transform.apply(first, labels, draws[:, 1:])
    assert torch.equal(both, second)
    assert torch.equal(images, before)
    # what happens to an image doesn't depend on the others of its batch
    alone, _ = transform.apply(images[7:9], labels[7:9], draws[7:9])
    assert torch.equal(alone, both[7:9])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"operations": 0, "magnitude": 9}, "rand.operations=0: must be a whole number in 1..10"),
        ({"operations": 2, "magnitude": 31}, "rand.magnitude=31: must be a whole number in 0..30"),
    ],
)
def test_impossible_numbers_are_refused(arguments: dict[str, int], message: str) -> None:
    with pytest.raises(InputError, match=message):
        RandAugment(**arguments)


def test_the_plain_path_has_torchvision_s_own(tmp_path: Path) -> None:
    pipeline = Pipeline(
        transforms={"t": TrivialAugment(), "r": RandAugment(operations=3, magnitude=5)}
    )
    check_per_sample(pipeline)
    trivial, rand = per_sample(pipeline, 32)
    assert isinstance(trivial, v2.TrivialAugmentWide)
    assert isinstance(rand, v2.RandAugment)
    assert (rand.num_ops, rand.magnitude) == (3, 5)


@pytest.mark.parametrize("option", ["trivial", "rand", "strong", "alternating"])
def test_a_record_may_name_them(option: str) -> None:
    check_targets_of_record({"augment": run_config(compose([f"augment={option}"]))["augment"]})
