"""The speedrun network: golden counts, whitening, how it begins; a run shows it its images."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from cifar_lab.errors import InputError
from cifar_lab.model.speednet import SpeedNet, whitening_filters
from tests.conftest import TINY
from tests.model.test_networks import conv_flops, forward_flops, parameters

Lab = Callable[..., tuple[int, str, str]]


def speednet(**more: Any) -> SpeedNet:
    settings: dict[str, Any] = {
        "widths": [8, 12, 16],
        "depth": 2,
        "bn_momentum": 0.6,
        "whitening_eps": 5e-4,
        "logit_scale": None,
        "whitening": True,
        "identity": True,
        "train_scale": False,
    }
    torch.manual_seed(0)
    return SpeedNet(**(settings | more))


def smooth_images(count: int = 64) -> torch.Tensor:
    # neighbouring pixels are alike, as in photographs
    noise = torch.randn(count, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    return noise.cumsum(-1).cumsum(-2) / 10


@pytest.mark.parametrize(
    ("widths", "depth", "count", "flops"),
    [([64, 256, 256], 2, 1_972_792, 236_294_720), ([128, 384, 512], 3, 9_918_776, 903_934_528)],
)
def test_parameters_and_flops(widths: list[int], depth: int, count: int, flops: int) -> None:
    with torch.device("meta"):
        network = speednet(widths=widths, depth=depth)
    assert parameters(network) == count
    a, b, c = widths
    by_hand = conv_flops(3, 24, 2, 31) + 2 * c * 10
    for cin, cout, side in ((24, a, 31), (a, b, 15), (b, c, 7)):
        by_hand += conv_flops(cin, cout, 3, side)
        by_hand += (depth - 1) * conv_flops(cout, cout, 3, side // 2)
    assert forward_flops(network) == by_hand == flops


def test_whitened_patches_have_unit_second_moments() -> None:
    images = smooth_images()
    filters = whitening_filters(images, size=2, eps=0.0)
    outputs = F.conv2d(images, filters).transpose(0, 1).flatten(1).double()
    half = len(filters) // 2
    moments = outputs @ outputs.T / outputs.shape[1]
    torch.testing.assert_close(
        moments[:half, :half], torch.eye(half, dtype=torch.float64), rtol=0, atol=1e-3
    )
    assert torch.equal(filters[half:], -filters[:half])


def test_eps_holds_back_what_has_no_variance() -> None:
    grey = smooth_images()[:, :1].expand(-1, 3, -1, -1).contiguous()
    filters = whitening_filters(grey, size=2, eps=5e-4)
    assert float(filters.abs().max()) <= 1 / 5e-4**0.5


def test_it_begins_as_the_identity_on_what_comes_in() -> None:
    network = speednet()
    for group in network.groups:
        for name in ("conv1", "conv2"):
            weight = group.get_submodule(name).get_parameter("weight")
            kept = min(weight.shape[:2])
            delta = torch.zeros(kept, weight.shape[1], 3, 3)
            delta[range(kept), range(kept), 1, 1] = 1
            assert torch.equal(weight[:kept], delta)
    assert float(network.head.weight.detach().std()) == pytest.approx(1.0)


def test_scales_and_filters_are_frozen_and_biases_train() -> None:
    network = speednet(depth=3)
    frozen = {name for name, p in network.named_parameters() if not p.requires_grad}
    scales = {n for n, p in network.named_parameters() if "norm" in n and n.endswith("weight")}
    assert frozen == {"whiten.weight", *scales}
    norms = [m for m in network.modules() if isinstance(m, nn.BatchNorm2d)]
    assert {norm.momentum for norm in norms} == {1 - 0.6}


def test_each_trick_can_be_left_out() -> None:
    plain = speednet(whitening=False, identity=False, train_scale=True)
    assert all(p.requires_grad for p in plain.parameters())
    before = plain.whiten.weight.detach().clone()
    plain.initialize(smooth_images(4))
    assert torch.equal(plain.whiten.weight, before)
    assert not bool((plain.get_parameter("groups.1.conv2.weight") == 0).any())


@pytest.mark.parametrize("size", [9, 16, 24, 32, 48])
def test_images_of_other_sizes_train(size: int) -> None:
    network = speednet(image_size=size)
    network(torch.randn(4, 3, size, size)).sum().backward()
    assert all(p.grad is not None for p in network.parameters() if p.requires_grad)


@pytest.mark.parametrize(
    "wrong",
    [
        {"widths": [8, 8]},
        {"depth": 4},
        {"bn_momentum": 1.0},
        {"whitening_eps": 0.0},
        {"image_size": 8},
    ],
    ids=str,
)
def test_impossible_arguments_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=next(iter(wrong))):
        speednet(**wrong)


# --- in a run -------------------------------------------------------------------------------------

NET = """
import torch
from torch import nn

class Shown(nn.Module):
    def __init__(self, num_classes):
        super().__init__()
        self.head = nn.Linear(3 * 32 * 32, num_classes)
        self.register_buffer("seen", torch.zeros(3))
        self.register_buffer("times", torch.zeros((), dtype=torch.int64))

    def initialize(self, images):
        self.seen.copy_(images.mean((0, 2, 3)))
        self.times += len(images)

    def forward(self, images):
        return self.head(images.flatten(1))
"""
SHOWN = (
    *("model._target_=shown_net.Shown", "~model.num_blocks", "~model.width"),
    *("~model.stochastic_depth", "~model.bn_momentum", "~model.train_scale", "~model.identity"),
    "threads=1",
)


@pytest.fixture
def shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "shown_net.py").write_text(NET)
    monkeypatch.syspath_prepend(str(tmp_path))


def last(folder: Path) -> dict[str, torch.Tensor]:
    state = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    return {name.removeprefix("network."): value for name, value in state.items()}


@pytest.mark.usefixtures("shown")
def test_a_run_shows_a_network_its_training_images_once(lab: Lab, tmp_path: Path) -> None:
    arguments = (*TINY, *SHOWN, "scheduler=constant", f"hydra.run.dir={tmp_path}/run")
    assert lab(*arguments, "trainer.max_epochs=1")[0] == 0
    first = last(tmp_path / "run")
    assert int(first["times"]) == 400  # 600 without the 200 held out
    assert float(first["seen"].abs().max()) < 0.1  # normalized
    assert lab(*arguments, "trainer.max_epochs=2")[0] == 0
    assert int(last(tmp_path / "run")["times"]) == 400  # not again where it goes on
    other = (*TINY, *SHOWN, "seed=5", f"hydra.run.dir={tmp_path}/other")
    assert lab(*other, "trainer.max_epochs=1")[0] == 0
    assert torch.equal(last(tmp_path / "other")["seen"], first["seen"])


def test_whitening_filters_of_a_run_are_those_of_its_images(lab: Lab, tmp_path: Path) -> None:
    small = ("model=speednet", "model.widths=[4,4,4]", "trainer.max_epochs=1")
    arguments = [a for a in TINY if not a.startswith("model")]
    found = []
    for seed in (0, 1):
        folder = tmp_path / str(seed)
        status, _, err = lab(*arguments, *small, f"seed={seed}", f"hydra.run.dir={folder}")
        assert status == 0, err
        found.append(last(folder)["whiten.weight"])
    assert torch.equal(*found)
    assert torch.equal(found[0][:12], -found[0][12:])
