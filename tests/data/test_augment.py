from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from cifar_lab.data.augment import (
    AlternatingFlip,
    ColorJitter,
    CutMix,
    Cutout,
    Mixup,
    Normalization,
    Pipeline,
    RandomCrop,
    RandomFlip,
    Transform,
    class_probabilities,
)
from cifar_lab.errors import InputError

CPU = torch.device("cpu")
# chi-square's 99.9% quantile, by degrees of freedom
CHI_SQUARE = {1: 10.83, 9: 27.88, 31: 61.10, 80: 124.84}


def generator(seed: int = 0) -> Generator:
    return Generator().manual_seed(seed)


def some_images(count: int = 16, size: int = 32) -> Tensor:
    return torch.randint(0, 256, (count, 3, size, size), generator=generator(5)).byte()


def some_labels(count: int = 16) -> Tensor:
    return torch.arange(count) % 10


def normalization(device: torch.device = CPU) -> Normalization:
    return Normalization(mean=(0.4, 0.5, 0.6), std=(0.2, 0.25, 0.3), device=device)


def everything() -> Pipeline:
    return Pipeline(
        transforms={
            "mixup": Mixup(alpha=0.4, p=0.5),
            "cutout": Cutout(size=9),
            "flip": RandomFlip(p=0.5),
            "jitter": ColorJitter(brightness=0.3, contrast=0.3, saturation=0.3),
            "crop": RandomCrop(padding=4, mode="reflect"),
            "cutmix": CutMix(alpha=1.0, p=0.5),
        }
    )


def is_uniform(values: Tensor, kinds: int) -> bool:
    counts = torch.bincount(values, minlength=kinds).double()
    expected = len(values) / kinds
    return float(((counts - expected) ** 2 / expected).sum()) < CHI_SQUARE[kinds - 1]


def test_flipping_twice_is_identity() -> None:
    images, labels, always = some_images(), some_labels(), torch.ones(16, dtype=torch.long)
    once, _ = RandomFlip(p=1.0).apply(images, labels, always)
    twice, _ = RandomFlip(p=1.0).apply(once, labels, always)
    assert not torch.equal(once, images)
    assert torch.equal(twice, images)


def test_flip_mirrors_the_drawn_images_and_no_others() -> None:
    images, draws = some_images(), torch.arange(16) % 2
    flipped, _ = RandomFlip(p=0.5).apply(images, some_labels(), draws)
    assert torch.equal(flipped[::2], images[::2])
    assert torch.equal(flipped[1::2], images[1::2].flip(-1))


@pytest.mark.parametrize("mode", ["zero", "reflect"])
def test_crop_without_padding_is_identity(mode: str) -> None:
    crop = RandomCrop(padding=0, mode=mode)
    images = some_images()
    cropped, _ = crop.apply(images, some_labels(), crop.draw(16, generator(), 32))
    assert torch.equal(cropped, images)


@pytest.mark.parametrize(("mode", "numpy_mode"), [("zero", "constant"), ("reflect", "reflect")])
@pytest.mark.parametrize("padding", [1, 4, 20])
def test_crop_equals_a_crop_of_each_image(mode: str, numpy_mode: Any, padding: int) -> None:
    crop, images = RandomCrop(padding=padding, mode=mode), some_images(40)
    draws = crop.draw(40, generator(), 32)
    cropped, _ = crop.apply(images, some_labels(40), draws)
    for image, (row, column), result in zip(images.numpy(), draws.tolist(), cropped, strict=True):
        padded = np.pad(image, ((0, 0), (padding, padding), (padding, padding)), mode=numpy_mode)
        assert np.array_equal(padded[:, row : row + 32, column : column + 32], result.numpy())


def test_crop_takes_images_of_other_sizes_and_batches_of_one() -> None:
    crop, images = RandomCrop(padding=2, mode="zero"), some_images(1, size=8)
    cropped, _ = crop.apply(images, some_labels(1), torch.tensor([[4, 0]]))
    assert torch.equal(cropped, F.pad(images, (2, 0, 0, 2))[..., 2:, :8])


def test_cutout_blanks_the_square_and_clips_it_at_the_edge() -> None:
    images = torch.ones(2, 3, 32, 32)
    draws = torch.tensor([[10, 20], [0, 31]])
    blank, _ = Cutout(size=8).apply(images, some_labels(2), draws)
    assert (blank[0, :, 6:14, 16:24] == 0).all()
    assert (blank[1, :, :4, 27:] == 0).all()
    assert (blank == 0).sum((1, 2, 3)).tolist() == [3 * 64, 3 * 4 * 5]


def test_jitter_equals_torchvision_on_each_image() -> None:
    from torchvision.transforms.v2 import functional as reference

    jitter = ColorJitter(brightness=0.4, contrast=0.4, saturation=0.4)
    images, draws = some_images().float() / 255, jitter.draw(16, generator(), 32)
    jittered, _ = jitter.apply(images.clone(), some_labels(), draws)
    for image, (brightness, contrast, saturation), result in zip(
        images, draws.tolist(), jittered, strict=True
    ):
        expected = reference.adjust_brightness(image, brightness)
        expected = reference.adjust_contrast(expected, contrast)
        expected = reference.adjust_saturation(expected, saturation)
        torch.testing.assert_close(result, expected, atol=1e-5, rtol=0)


def test_mixup_blends_image_and_label_by_the_same_share() -> None:
    images, labels = some_images().float(), some_labels()
    mixup = Mixup(alpha=0.5, p=1.0)
    share = mixup.draw(16, generator(), 32)
    mixed, probabilities = mixup.apply(images, class_probabilities(labels, 10), share)
    for i in range(16):
        own = float(share[i])
        torch.testing.assert_close(
            mixed[i], own * images[i] + (1 - own) * images[i - 1], atol=1e-3, rtol=0
        )
        assert probabilities[i, labels[i]] == pytest.approx(own, abs=1e-6)
        assert probabilities[i, labels[i - 1]] == pytest.approx(1 - own, abs=1e-6)


def test_cutmix_label_share_is_the_share_of_pixels_pasted() -> None:
    # every image is one constant, so the pixels say where they come from
    images = torch.arange(64.0).view(-1, 1, 1, 1).expand(-1, 3, 32, 32).contiguous()
    labels = some_labels(64)
    cutmix = CutMix(alpha=1.0, p=1.0)
    draws = cutmix.draw(64, generator(), 32)
    mixed, probabilities = cutmix.apply(images, class_probabilities(labels, 10), draws)
    kept = (mixed == images).double().mean((1, 2, 3)).float()
    assert kept.min() < 0.5
    torch.testing.assert_close(probabilities[torch.arange(64), labels], kept)
    assert ((mixed == images) | (mixed == images.roll(1, 0))).all()


@pytest.mark.parametrize("transform", [Mixup(alpha=0.3, p=1.0), CutMix(alpha=1.0, p=1.0)])
def test_mixing_keeps_label_mass_at_one_however_often(transform: Transform) -> None:
    images, labels = some_images().float(), class_probabilities(some_labels(), 10)
    for seed in range(3):
        images, labels = transform.apply(images, labels, transform.draw(16, generator(seed), 32))
        assert labels.shape == (16, 10)
        torch.testing.assert_close(labels.sum(1), torch.ones(16))
        assert (labels >= 0).all()


@pytest.mark.parametrize("transform", [Mixup(alpha=0.3, p=0.0), CutMix(alpha=1.0, p=0.0)])
def test_mixing_with_probability_zero_is_identity(transform: Transform) -> None:
    images, labels = some_images().float(), class_probabilities(some_labels(), 10)
    mixed, probabilities = transform.apply(images, labels, transform.draw(16, generator(), 32))
    assert torch.equal(mixed, images)
    assert torch.equal(probabilities, labels)


@pytest.mark.parametrize("classes", [2, 10, 23])
def test_every_label_keeps_its_mass_whatever_the_number_of_classes(classes: int) -> None:
    labels = torch.arange(46) % classes
    pipeline = everything()
    pipeline.num_classes = classes
    draws = pipeline.draw(46, generator(), 32)
    _, mixed = pipeline.apply(some_images(46), labels, draws, normalization())
    assert mixed.shape == (46, classes)
    torch.testing.assert_close(mixed.sum(1), torch.ones(46))
    share = mixed[torch.arange(46), labels]
    assert (share > 0).float().mean() > 0.9  # of its own label; a box may cover all of an image


def test_flip_is_drawn_with_its_probability() -> None:
    draws = RandomFlip(p=0.25).draw(40_000, generator(), 32)
    chi_square = (int(draws.sum()) - 10_000) ** 2 / (40_000 * 0.25 * 0.75)
    assert chi_square < CHI_SQUARE[1]


def test_crop_draws_every_offset_alike() -> None:
    draws = RandomCrop(padding=4, mode="zero").draw(81_000, generator(), 32)
    assert is_uniform(draws[:, 0] * 9 + draws[:, 1], 81)


def test_cutout_inside_blanks_a_whole_square_anywhere() -> None:
    cutout = Cutout(size=7, inside=True)
    draws = cutout.draw(4000, generator(), 16)
    blank, _ = cutout.apply(torch.ones(4000, 3, 16, 16), some_labels(4000), draws)
    assert bool(((blank == 0).sum((1, 2, 3)) == 3 * 7 * 7).all())
    corners = torch.stack([torch.histc((draws - 3)[:, i].float(), 10, 0, 9) for i in (0, 1)])
    assert float(corners.min()) > 300  # of 400 each


def test_cutout_draws_every_centre_alike() -> None:
    draws = Cutout(size=8).draw(32_000, generator(), 32)
    assert is_uniform(draws[:, 0], 32)
    assert is_uniform(draws[:, 1], 32)


def test_jitter_draws_each_factor_uniformly_in_its_range() -> None:
    strength = (0.1, 0.2, 0.0)
    jitter = ColorJitter(brightness=0.1, contrast=0.2, saturation=0.0)
    draws = jitter.draw(10_000, generator(), 32)
    for factor, width in zip(draws.unbind(1)[:2], strength, strict=False):
        tenth = ((factor - 1 + width) / (2 * width) * 10).long().clamp(0, 9)
        assert is_uniform(tenth, 10)
    assert (draws[:, 2] == 1).all()


def test_mixup_shares_follow_the_beta_distribution() -> None:
    # Beta(2, 2) has the distribution function 3x^2 - 2x^3, which makes it uniform
    share = Mixup(alpha=2.0, p=1.0).draw(20_000, generator(), 32).double()
    assert is_uniform(((3 * share**2 - 2 * share**3) * 10).long().clamp(0, 9), 10)


def test_cutmix_pastes_half_of_the_image_on_average_when_nothing_is_clipped() -> None:
    # sides before clipping are 2 * floor(16 * sqrt(u)), u uniform; inner boxes are not clipped
    boxes = CutMix(alpha=1.0, p=1.0).draw(200_000, generator(), 32)
    height, width = (boxes[:, 2:] - boxes[:, :2]).unbind(1)
    inner = (boxes[:, 0] > 0) & (boxes[:, 2] < 32) & (boxes[:, 1] > 0) & (boxes[:, 3] < 32)
    assert torch.equal(height[inner], width[inner])
    # P(half-side = 0) = (1/16)^2
    empty = int((height * width == 0).sum())
    expected = 200_000 / 256
    assert (empty - expected) ** 2 / expected < CHI_SQUARE[1]


def test_the_same_generator_draws_the_same_and_another_differs() -> None:
    first, again, other = (everything().draw(50, generator(s), 32) for s in (3, 3, 4))
    for name in first:
        assert torch.equal(first[name], again[name])
        assert not torch.equal(first[name], other[name])


def test_a_sample_is_augmented_alike_in_any_batch() -> None:
    pipeline = Pipeline(
        transforms={k: t for k, t in everything().transforms.items() if not k.startswith("mix")}
        | {"cutmix": None}
    )
    images, labels = some_images(), some_labels()
    draws = pipeline.draw(16, generator(), 32)
    whole, _ = pipeline.apply(images, labels, draws, normalization())
    for part in (slice(0, 5), slice(5, 6), slice(6, 16)):
        sliced = {name: draw[part] for name, draw in draws.items()}
        piece, _ = pipeline.apply(images[part], labels[part], sliced, normalization())
        assert torch.equal(piece, whole[part])


def test_without_transforms_images_are_normalized_and_labels_stay() -> None:
    images, labels = some_images(), some_labels()
    result, same = Pipeline(transforms={}).apply(images, labels, {}, normalization())
    mean, std = torch.tensor([0.4, 0.5, 0.6]), torch.tensor([0.2, 0.25, 0.3])
    expected = (images / 255 - mean.view(3, 1, 1)) / std.view(3, 1, 1)
    torch.testing.assert_close(result, expected, atol=2e-6, rtol=0)
    assert same is labels
    assert result.dtype == torch.float32


def test_both_ways_of_normalization_agree() -> None:
    images = some_images().float()
    torch.testing.assert_close(
        normalization().of_bytes_(images.clone()),
        normalization().of_unit_(images / 255),
        atol=2e-6,
        rtol=0,
    )


def test_a_pipeline_leaves_its_input_alone_and_gives_the_format_asked_for() -> None:
    images, labels = some_images(), some_labels()
    before = images.clone()
    draws = everything().draw(16, generator(), 32)
    plain, _ = everything().apply(images, labels, draws, normalization())
    last, _ = everything().apply(images, labels, draws, normalization(), torch.channels_last)
    assert torch.equal(images, before)
    assert plain.is_contiguous()
    assert last.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(plain, last)


def test_stages_come_in_order_and_names_set_to_null_are_left_out() -> None:
    assert list(everything().transforms) == ["flip", "crop", "jitter", "cutout", "mixup", "cutmix"]
    assert everything().mixes
    flip_only = Pipeline(transforms={"flip": RandomFlip(p=0.5), "crop": None})
    assert list(flip_only.transforms) == ["flip"]
    assert not flip_only.mixes


@pytest.mark.gpu
# torch says once that it doesn't know all that waits
@pytest.mark.filterwarnings("ignore:Synchronization debug mode is a prototype")
def test_cpu_and_gpu_agree() -> None:
    gpu = torch.device("cuda")
    images, labels = some_images(), some_labels()
    draws = everything().draw(16, generator(), 32)
    here = everything().apply(images, labels, draws, normalization())
    there_draws = {name: draw.to(gpu) for name, draw in draws.items()}
    there_inputs = (images.to(gpu), labels.to(gpu), there_draws, normalization(gpu))
    torch.cuda.set_sync_debug_mode("error")  # nothing in a pipeline waits for the GPU
    try:
        there = everything().apply(*there_inputs)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    for a, b in zip(here, there, strict=True):
        torch.testing.assert_close(a, b.cpu(), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: RandomFlip(p=1.5), "augment.transforms.flip.p=1.5: must be a number in 0..1"),
        (lambda: RandomFlip(p="x"), "augment.transforms.flip.p='x'"),  # type: ignore[arg-type]
        (lambda: RandomFlip(p=float("nan")), "augment.transforms.flip.p=nan"),
        (lambda: RandomCrop(padding=-1, mode="zero"), "padding=-1: must be a whole number of 0"),
        (lambda: RandomCrop(padding=4, mode="edge"), "must be one of zero, reflect"),
        (lambda: Cutout(size=2.5), "augment.transforms.cutout.size=2.5"),  # type: ignore[arg-type]
        (lambda: Mixup(alpha=0, p=1), "augment.transforms.mixup.alpha=0"),
        (lambda: CutMix(alpha=1, p=-1), "augment.transforms.cutmix.p=-1"),
        (lambda: Pipeline(transforms={"a": 3}), "augment.transforms.a=3"),  # type: ignore[dict-item]
    ],
)
def test_wrong_input_names_the_key_and_what_is_allowed(build: Any, message: str) -> None:
    with pytest.raises(InputError, match=r"^augment") as error:
        build()
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("transform", "size", "message"),
    [
        (
            RandomCrop(padding=8, mode="reflect"),
            8,
            "crop.padding=8: must be a whole number in 0..7",
        ),
        (Cutout(size=17), 8, "cutout.size=17: must be a whole number in 0..16"),
        (Cutout(size=9, inside=True), 8, "cutout.size=9: must be a whole number in 0..8"),
    ],
)
def test_what_is_too_large_for_the_images_is_refused(
    transform: Transform, size: int, message: str
) -> None:
    transform.check_size(size + 1)
    with pytest.raises(InputError) as error:
        transform.check_size(size)
    assert str(error.value) == f"augment.transforms.{message}"


# --- what lasts through the fit -------------------------------------------------------------------


def test_alternating_flips_are_drawn_once_and_turn_around_each_epoch() -> None:
    flip = AlternatingFlip()
    draws = flip.draw(40_000, generator(), 32)
    assert abs(float(draws.double().mean()) - 0.5) < 0.01
    even, odd = flip.in_epoch(draws, 4), flip.in_epoch(draws, 7)
    assert torch.equal(even, draws)
    assert torch.equal(odd, 1 - draws)


def test_alternating_flip_mirrors_those_whose_turn_it_is() -> None:
    images, labels = some_images(), some_labels()
    draws = AlternatingFlip().draw(16, generator(), 32)
    flipped, _ = AlternatingFlip().apply(images, labels, draws)
    for image, result, mirrored in zip(images, flipped, draws, strict=True):
        assert torch.equal(result, image.flip(-1) if mirrored else image)


def test_a_pipeline_draws_what_lasts_apart_from_the_rest() -> None:
    pipeline = Pipeline(transforms={"flip": AlternatingFlip(), "cutout": Cutout(size=8)})
    assert list(pipeline.draw(5, generator(), 32)) == ["cutout"]
    assert list(pipeline.draw_lasting(5, generator(), 32, epoch=0)) == ["flip"]
