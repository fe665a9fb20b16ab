"""Pre-activation and wide ResNets by their published counts, stochastic depth, networks of timm."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from cifar_lab.errors import InputError
from cifar_lab.model.preact_resnet import PreActBlock, PreActResNet, WideResNet
from cifar_lab.model.resnet import ResNet
from cifar_lab.model.stochastic_depth import drop_branches
from cifar_lab.model.timm_network import timm_network
from tests.conftest import TINY, record_of
from tests.model.test_networks import conv_flops, forward_flops, parameters

Lab = Callable[..., tuple[int, str, str]]


def wide(depth: int = 10, width: int = 1, **more: Any) -> WideResNet:
    return WideResNet(
        depth=depth, width=width, **({"dropout": 0.0, "stochastic_depth": 0.0} | more)
    )


def preact(num_blocks: list[int], width: int = 4, **more: Any) -> PreActResNet:
    settings = {"stochastic_depth": 0.0} | more
    return PreActResNet(num_blocks=num_blocks, width=width, **settings)


@pytest.mark.parametrize(
    ("depth", "width", "count"),
    [(16, 4, 2_748_890), (28, 10, 36_479_194), (40, 2, 2_243_546), (16, 8, 10_961_370)],
)
def test_wide_resnets_have_the_parameters_of_their_paper(
    depth: int, width: int, count: int
) -> None:
    with torch.device("meta"):
        assert parameters(wide(depth, width)) == count


def test_flops_are_those_of_the_convolutions() -> None:
    expected = conv_flops(3, 16, 3, 32) + conv_flops(16, 64, 1, 32)
    for side, cin, cout in ((32, 16, 64), (16, 64, 128), (8, 128, 256)):
        expected += conv_flops(cin, cout, 3, side) + 3 * conv_flops(cout, cout, 3, side)
        expected += conv_flops(cin, cout, 1, side) if side < 32 else 0
    expected += 2 * 256 * 10
    assert forward_flops(wide(16, 4)) == expected == 785_224_704


@pytest.mark.parametrize(
    ("num_blocks", "count"), [([2, 2, 2, 2], 11_172_170), ([3, 4, 6, 3], 21_280_330)]
)
def test_preactivation_has_the_residual_network_s_parameters(
    num_blocks: list[int], count: int
) -> None:
    with torch.device("meta"):
        network = preact(num_blocks, 64)
    assert parameters(network) == count
    # the convolutions are the same; only where normalization stands differs
    same = ResNet(num_blocks=num_blocks, width=64)
    assert forward_flops(network) == forward_flops(same)


def test_a_block_whose_branch_is_zero_is_the_identity() -> None:
    block = preact([1]).get_submodule("stages.0.0")
    assert isinstance(block, PreActBlock)
    nn.init.zeros_(block.conv2.weight)
    x = torch.randn(2, 4, 8, 8)
    before = x.clone()
    assert torch.equal(block(x), before)
    assert torch.equal(x, before)  # nothing is changed in place


@pytest.mark.parametrize("network", [wide(), preact([1, 1, 1]), wide(dropout=0.3)], ids=repr)
def test_every_parameter_learns(network: nn.Module) -> None:
    network(torch.randn(4, 3, 32, 32)).sum().backward()
    assert all(p.grad is not None for p in network.parameters())


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: wide(12), "depth=12"),
        (lambda: wide(4), "depth=4"),
        (lambda: wide(width=0), "width=0"),
        (lambda: wide(dropout=1.0), "dropout=1.0"),
        (lambda: wide(stochastic_depth=1.0), "stochastic_depth=1.0"),
        (lambda: preact([]), r"num_blocks=\[\]"),
        (lambda: preact([1, 0]), r"num_blocks=\[1, 0\]"),
        (lambda: preact([1], width=0), "width=0"),
    ],
)
def test_impossible_sizes_are_refused(make: Callable[[], nn.Module], said: str) -> None:
    with pytest.raises(InputError, match=said):
        make()


# --- stochastic depth -----------------------------------------------------------------------------


def test_branches_are_left_out_ever_more_often_and_kept_in_the_mean() -> None:
    torch.manual_seed(0)
    ones = torch.ones(20_000, 1, 1, 1)
    for index, drop in enumerate(drop_branches(4, 0.4)):
        kept = drop.train()(ones)
        rate = 0.1 * (index + 1)
        assert float((kept == 0).float().mean()) == pytest.approx(rate, abs=0.015)
        assert float(kept.mean()) == pytest.approx(1.0, abs=0.03)
        assert torch.equal(drop.eval()(ones), ones)


def test_without_it_nothing_is_drawn() -> None:
    images = torch.randn(2, 3, 32, 32)
    torch.manual_seed(0)
    plain = ResNet(num_blocks=[1, 1], width=4)
    torch.manual_seed(0)
    with_key = ResNet(num_blocks=[1, 1], width=4, stochastic_depth=0.0)
    state = torch.get_rng_state()
    assert torch.equal(plain(images), with_key(images))
    assert torch.equal(state, torch.get_rng_state())


@pytest.mark.parametrize(
    "network",
    [ResNet(num_blocks=[1, 1], width=4, stochastic_depth=0.9), wide(stochastic_depth=0.9)],
)
def test_it_acts_in_training_alone(network: nn.Module) -> None:
    images = torch.randn(8, 3, 32, 32)
    assert not torch.equal(network(images), network(images))
    network.eval()
    assert torch.equal(network(images), network(images))


# --- timm -----------------------------------------------------------------------------------------


@pytest.fixture
def timm() -> Any:
    return pytest.importorskip("timm")


@pytest.mark.usefixtures("timm")
def test_resnet18_of_timm_is_ours_with_a_small_stem() -> None:
    theirs = timm_network(name="resnet18", small_stem=True)
    ours = ResNet(num_blocks=[2, 2, 2, 2], width=64)
    assert parameters(theirs) == parameters(ours) == 11_173_962
    assert forward_flops(theirs) == forward_flops(ours)


@pytest.mark.usefixtures("timm")
@pytest.mark.parametrize(
    ("name", "small_stem"),
    [("convnext_atto", True), ("efficientnet_b0", True), ("vit_tiny_patch16_224", False)],
)
def test_networks_of_several_kinds_give_a_logit_for_each_class(name: str, small_stem: bool) -> None:
    options = {} if small_stem else {"patch_size": 8}
    network = timm_network(name=name, small_stem=small_stem, options=options, num_classes=7)
    assert network.eval()(torch.randn(2, 3, 32, 32)).shape == (2, 7)


@pytest.mark.usefixtures("timm")
@pytest.mark.parametrize(
    ("more", "said"),
    [
        (
            {"name": "resnet18.a1_in1k"},
            "name=resnet18.a1_in1k: a1_in1k names trained weights, and a network of timm begins "
            "untrained; give name=resnet18",
        ),
        ({"name": "resnet19"}, "name=resnet19: timm has no such network (did you mean resnet1"),
        ({"name": "vit_tiny_patch16_224"}, "small_stem=true: vit_tiny_patch16_224 has no first"),
        ({"options": {"num_classes": 3}}, "options.num_classes"),
        ({"options": {"depht": 3}}, "name=resnet18"),
        ({"options": {"checkpoint_path": "x"}}, "options.checkpoint_path"),
    ],
    ids=str,
)
def test_what_timm_can_not_do_is_one_line(more: Any, said: str) -> None:
    with pytest.raises(InputError) as caught:
        timm_network(**({"name": "resnet18", "small_stem": True, "options": {}} | more))
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_without_timm_it_says_what_to_install(
    lab: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    arguments = [argument for argument in TINY if not argument.startswith("model")]
    status, _, err = lab(*arguments, "model=timm")
    assert status == 2
    assert err == (
        "cifar_lab: model.name: networks of timm need it: pip install 'cifar-lab[timm]'\n"
    )
    assert not (tmp_path / "outputs").exists()


@pytest.mark.usefixtures("timm")
def test_a_run_with_a_network_of_timm(lab: Lab, tmp_path: Path) -> None:
    arguments = [argument for argument in TINY if not argument.startswith("model")]
    small = ("model=timm", "model.name=test_resnet", "debug=fast", "trainer.max_epochs=1")
    status, _, err = lab(*arguments, *small, f"hydra.run.dir={tmp_path}/run")
    assert status == 0, err
    assert record_of(tmp_path / "run")["status"] == "finished"


@pytest.mark.parametrize(
    "make",
    [
        lambda **more: ResNet(num_blocks=[1, 1], width=4, **more),
        lambda **more: preact([1, 1], **more),
        wide,
    ],
    ids=["resnet", "preact", "wide"],
)
def test_batch_norm_and_first_filters_are_options(make: Callable[..., nn.Module]) -> None:
    def made(**more: Any) -> nn.Module:
        torch.manual_seed(0)
        return make(**more)

    plain, changed = made(), made(bn_momentum=0.6, train_scale=False, identity=True)
    norms = [m for m in plain.modules() if isinstance(m, nn.BatchNorm2d)]
    assert {norm.momentum for norm in norms} == {0.1}  # torch's, to the bit
    assert all(norm.weight.requires_grad for norm in norms)
    norms = [m for m in changed.modules() if isinstance(m, nn.BatchNorm2d)]
    assert {norm.momentum for norm in norms} == {0.4}
    assert not any(norm.weight.requires_grad for norm in norms)
    assert all(norm.bias.requires_grad for norm in norms)
    before, stages = dict(plain.named_parameters()), changed.get_submodule("stages")
    filters = [p for p in stages.parameters() if p.ndim == 4 and p.shape[-1] == 3]
    assert filters
    for filter_ in filters:
        images = torch.randn(2, filter_.shape[1], 6, 6)
        out = nn.functional.conv2d(images, filter_, padding=1)
        torch.testing.assert_close(out[:, : images.shape[1]], images[:, : len(filter_)])
    touched = {f"stages.{n}" for n, p in stages.named_parameters() if any(p is f for f in filters)}
    for name, value in changed.named_parameters():
        if name not in touched:
            assert torch.equal(value, before[name]), name


def test_a_momentum_out_of_range_is_refused() -> None:
    with pytest.raises(InputError, match=r"bn_momentum=1.0: must lie in \[0, 1\)"):
        wide(bn_momentum=1.0)
