"""Test-time augmentation against the mean written out, and what a run says of it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cifar_lab.model.tta import VIEWS, averaged_logits, views
from tests.conftest import TINY, record_of

Lab = Callable[..., tuple[int, str, str]]


@pytest.mark.parametrize("tta", VIEWS)
def test_weights_are_one_in_all_and_the_first_view_is_the_image(tta: str) -> None:
    images = torch.randn(2, 3, 32, 32)
    found = list(views(images, tta))
    assert len(found) == VIEWS[tta]
    assert sum(weight for weight, _ in found) == pytest.approx(1.0)
    assert torch.equal(found[0][1], images)
    assert all(view.shape == images.shape for _, view in found)


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_the_six_views_are_the_speedrun_s(memory_format: torch.memory_format) -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.LazyLinear(10))
    images = torch.randn(5, 3, 32, 32).to(memory_format=memory_format)

    def mirror(x: Tensor) -> Tensor:
        both: Tensor = 0.5 * network(x) + 0.5 * network(x.flip(-1))
        return both

    padded = F.pad(images, (1,) * 4, "reflect")
    corners = [mirror(padded[:, :, :32, :32]), mirror(padded[:, :, 2:, 2:])]
    expected = 0.5 * mirror(images) + 0.5 * torch.stack(corners).mean(0)
    plain, mean = averaged_logits(network, images, "flip+shift")
    torch.testing.assert_close(mean, expected)
    torch.testing.assert_close(averaged_logits(network, images, "flip")[1], mirror(images))
    torch.testing.assert_close(plain, network(images))


def test_the_mean_of_coarse_logits_is_taken_in_float32() -> None:
    torch.manual_seed(0)
    images = torch.randn(50, 3, 32, 32)

    def coarse(x: Tensor) -> Tensor:
        return (100 * x.mean((2, 3)) + x[:, :, 3, 5]).bfloat16()

    _, mean = averaged_logits(coarse, images, "flip+shift")
    expected = sum(w * coarse(v).double() for w, v in views(images, "flip+shift"))
    assert mean.dtype == torch.float32
    torch.testing.assert_close(mean.double(), expected, rtol=1e-6, atol=1e-6)


def test_a_network_that_sees_no_difference_says_the_same() -> None:
    def mean_colour(x: Tensor) -> Tensor:
        return x.amax((2, 3))

    images = torch.zeros(4, 3, 32, 32)
    images[:, :, 15:17, 15:17] = torch.randn(4, 3, 2, 2).abs()
    plain, mean = averaged_logits(mean_colour, images, "flip+shift")
    torch.testing.assert_close(plain, mean)


def test_a_run_tests_with_it_and_says_so(lab: Lab, tmp_path: Path) -> None:
    once = (*TINY, "trainer.max_epochs=1", "threads=1")
    assert lab(*once, f"hydra.run.dir={tmp_path}/plain")[0] == 0
    status, out, _ = lab(*once, "tta=flip+shift", f"hydra.run.dir={tmp_path}/tta")
    assert status == 0
    plain, tta = record_of(tmp_path / "plain"), record_of(tmp_path / "tta")
    assert tta["metrics"]["test/acc_without_tta"] == plain["metrics"]["test/acc"]
    assert "test/acc_without_tta" not in plain["metrics"]
    assert tta["metrics"]["val/acc"] == plain["metrics"]["val/acc"]  # selection is as it was
    assert tta["metrics"]["test/loss"] != plain["metrics"]["test/loss"]
    assert "with tta=flip+shift" in out
    with np.load(tmp_path / "tta" / "predictions.npz") as found:
        correct = (found["logits"].argmax(1) == found["labels"]).mean()
    assert tta["metrics"]["test/acc"] == pytest.approx(correct)
    assert tta["config_digest"] != plain["config_digest"]


def test_another_kind_is_refused(lab: Lab, tmp_path: Path) -> None:
    status, _, err = lab(*TINY, "tta=rotate")
    assert (status, err) == (2, "cifar_lab: tta=rotate: must be none, flip, flip+shift\n")
    assert not (tmp_path / "outputs").exists()
