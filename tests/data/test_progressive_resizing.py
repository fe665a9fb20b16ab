"""Progressive resizing: the mean over areas, by the epoch; what is refused; a run with it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from cifar_lab.config.compose import compose, run_config
from cifar_lab.data.augment import Pipeline, RandomFlip, resized
from cifar_lab.data.feed.epoch import Multistep
from cifar_lab.errors import InputError
from cifar_lab.run.build import build
from cifar_lab.training.classifier import Classifier
from tests.conftest import TINY, merged
from tests.data.feed.test_loaders import make_loader
from tests.support.runs import same, stop_at

Lab = Callable[..., tuple[int, str, str]]
SIZES = [[0, 8], [1, 16], [3, 32]]


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_a_pixel_is_the_mean_of_the_area_it_covers(memory_format: torch.memory_format) -> None:
    images = torch.randn(4, 3, 32, 32).contiguous(memory_format=memory_format)
    half = images.unflatten(3, (16, 2)).unflatten(2, (16, 2)).mean((3, 5))
    found = resized(images, 16)
    torch.testing.assert_close(found, half)
    assert found.is_contiguous(memory_format=memory_format)
    # of sides that don't divide: pixel i covers floor(32 i / 24) to ceil(32 (i + 1) / 24)
    first = images[:, :, :2, :2].mean((2, 3))
    torch.testing.assert_close(resized(images, 24)[:, :, 0, 0], first)
    assert resized(images, 32) is images
    assert resized(images, None) is images


def test_the_epoch_decides_and_nothing_else_changes() -> None:
    flip = {"flip": RandomFlip(p=0.5)}
    plain = make_loader(pipeline=Pipeline(transforms=flip))
    smaller = make_loader(pipeline=Pipeline(transforms=flip, sizes=SIZES))
    for epoch, side in enumerate((8, 16, 16, 32, 32)):
        for (images, labels), (small, its) in zip(plain, smaller, strict=True):
            assert smaller.epoch == epoch
            assert torch.equal(labels, its)
            assert torch.equal(small, resized(images, side))
    stacked = make_loader(pipeline=Pipeline(transforms=flip, sizes=SIZES))
    stacked.multistep = Multistep(size=3, full=6, batches=7, max_steps=None)
    stacked.load_state_dict({"epoch": 1, "position": 3})
    assert [tuple(images.shape) for images, _ in stacked] == [(3, 8, 3, 16, 16), (1, 2, 3, 16, 16)]


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ([[0, 32]], "must name two sizes at least"),
        ([[1, 16], [2, 32]], "must begin with epoch 0"),
        ([[0, 16], [0, 32]], "must begin with epoch 0, and go on with later ones"),
        ([[0, 32], [2, 16]], "each larger than the one before"),
        ([[0, 3], [2, 32]], "must be at least 4 pixels"),
        ([[0, 16.5], [2, 32]], "must be a list of"),
        ([16, 32], "must be a list of"),
    ],
    ids=str,
)
def test_impossible_sizes_are_refused(sizes: Any, message: str) -> None:
    with pytest.raises(InputError, match=r"augment\.sizes=.*" + message):
        Pipeline(transforms={}, sizes=sizes)


def test_what_does_not_go_together_is_one_line(tmp_path: Path) -> None:
    sizes = "+augment.sizes=[[0,16],[1,32]]"
    cnn = [a for a in TINY if not a.startswith("model.")]
    for arguments, message in (
        ((*TINY, "+augment.sizes=[[0,16],[1,24]]"), "augment.sizes=[[0,16],[1,24]]: ends with"),
        ((*TINY, sizes, "trainer.max_epochs=1"), "trainer.max_epochs=1 ends before"),
        ((*cnn, sizes, "model=cnn"), "augment.sizes: model._target_=cifar_lab.model.cnn.CNN: "),
        ((*TINY, sizes, "data.loader=torchvision"), "augment.sizes resizes whole batches"),
    ):
        cfg = compose(merged(*arguments))
        with pytest.raises(InputError) as error:
            build(cfg, run_config(cfg), tmp_path / "unused")
        assert message in str(error.value)
        assert "\n" not in str(error.value)


def test_a_run_goes_on_to_the_bit_through_a_change_of_size(
    lab: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []
    step = Classifier.training_step

    def looked(self: Classifier, batch: Any, batch_idx: int) -> Any:
        seen.append(batch[0].shape[-1])
        return step(self, batch, batch_idx)

    monkeypatch.setattr(Classifier, "training_step", looked)
    arguments = (
        *(*TINY, "threads=1", "logger=csv", "data.train_size=300", "data.test_size=50"),
        *("+augment.sizes=[[0,16],[1,32]]", "callbacks=ema", "callbacks.ema.decay=0.5"),
    )
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    assert lab(*arguments, f"hydra.run.dir={whole}")[0] == 0
    assert seen == [16, 16, 32, 32]  # 100 images of 300, 50 a step
    with monkeypatch.context() as patch:
        stop_at(patch, 1)
        assert lab(*arguments, f"hydra.run.dir={cut}")[0] == 130
    status, _, err = lab(*arguments, f"hydra.run.dir={cut}")
    assert status == 0, err
    same(whole, cut)
