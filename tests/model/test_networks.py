"""The networks are those of the original report: golden parameter counts, FLOPs and shapes."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from cifar_lab.errors import InputError
from cifar_lab.model.cnn import CNN
from cifar_lab.model.resnet import ResNet


def parameters(network: nn.Module) -> int:
    return sum(p.numel() for p in network.parameters())


def forward_flops(network: nn.Module) -> int:
    # two operations per multiply-add, one image
    counter = FlopCounterMode(display=False)
    with torch.device("meta"), counter:
        network.to("meta").eval()(torch.empty(1, 3, 32, 32))
    return counter.get_total_flops()


def conv_flops(cin: int, cout: int, kernel: int, side: int) -> int:
    return 2 * cin * cout * kernel**2 * side**2


def test_cnn_has_the_parameters_and_flops_of_the_report() -> None:
    network = CNN(width=32, dropout=0.5)
    assert parameters(network) == 1_276_234
    convolutions = conv_flops(3, 32, 3, 32) + conv_flops(32, 64, 3, 16) + conv_flops(64, 128, 3, 8)
    linears = 2 * (2048 * 512 + 512 * 256 + 256 * 10)
    assert forward_flops(network) == convolutions + linears == 23_008_256


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_pooling_before_relu_is_the_report_s_order_to_the_bit(
    memory_format: torch.memory_format,
) -> None:
    torch.manual_seed(0)
    network = CNN(width=4, dropout=0.0).to(memory_format=memory_format)
    order = [0, 2, 1, 3, 5, 4, 6, 8, 7]  # convolution, ReLU, pooling
    layers = [network.features[index] for index in order]
    report = nn.Sequential(*(nn.ReLU() if isinstance(m, nn.ReLU) else m for m in layers))
    images = torch.randn(16, 3, 32, 32).to(memory_format=memory_format)
    features = [part(images) for part in (network.features, report)]
    assert torch.equal(*features)
    weights = torch.randn_like(features[0])
    ours, theirs = (
        torch.autograd.grad((output * weights).sum(), list(network.features.parameters()))
        for output in features
    )
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


@pytest.mark.parametrize(
    ("num_blocks", "count"),
    [
        ([1, 1, 1, 1], 4_903_242),
        ([2, 2, 2, 2], 11_173_962),
        ([2, 2, 2, 2, 2], 44_743_754),
    ],
)
def test_resnet_has_the_parameters_of_the_report(num_blocks: list[int], count: int) -> None:
    with torch.device("meta"):
        assert parameters(ResNet(num_blocks=num_blocks, width=64)) == count


def test_resnet_flops_are_those_of_its_convolutions() -> None:
    expected = conv_flops(3, 64, 3, 32) + 4 * conv_flops(64, 64, 3, 32)
    for stage, side in ((1, 16), (2, 8), (3, 4)):
        width = 64 * 2**stage
        expected += conv_flops(width // 2, width, 3, side) + 3 * conv_flops(width, width, 3, side)
        expected += conv_flops(width // 2, width, 1, side)
    expected += 2 * 512 * 10
    assert forward_flops(ResNet(num_blocks=[2, 2, 2, 2], width=64)) == expected == 1_110_845_440


@pytest.mark.parametrize("stages", [1, 2, 3, 4, 5, 6])
def test_any_length_from_one_to_six_trains(stages: int) -> None:
    network = ResNet(num_blocks=[1] * stages, width=2)
    network(torch.randn(4, 3, 32, 32)).sum().backward()
    assert network.fc.in_features == 2 * 2 ** (stages - 1)
    assert all(p.grad is not None for p in network.parameters())


def test_each_further_stage_halves_the_map() -> None:
    network = ResNet(num_blocks=[1, 1, 1], width=4)
    maps = network.stem(torch.randn(1, 3, 32, 32))
    sides = []
    for stage in network.stages:
        maps = stage(maps)
        sides.append(maps.shape[-1])
    assert sides == [32, 16, 8]


@pytest.mark.parametrize("num_blocks", [[], [0], [2, -1], [1] * 7])
def test_impossible_num_blocks_are_refused_with_the_value(num_blocks: list[int]) -> None:
    with pytest.raises(InputError, match="num_blocks="):
        ResNet(num_blocks=num_blocks, width=4)


@pytest.mark.parametrize("network", [CNN, ResNet])
def test_width_below_one_is_refused(network: type[nn.Module]) -> None:
    more = {"dropout": 0.5} if network is CNN else {"num_blocks": [1]}
    with pytest.raises(InputError, match="width=0"):
        network(width=0, **more)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_global_pooling_is_torch_s_to_the_bit(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    network = ResNet(num_blocks=[1, 1], width=8).to(dtype)
    images = torch.randn(16, 3, 32, 32, dtype=dtype)
    weights = torch.randn(16, 10, dtype=dtype)
    found = []
    for pool in (network.pool, nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())):
        network.register_module("pool", pool)
        logits = network(images)
        total, parameters = (logits * weights).sum(), list(network.parameters())
        found.append([logits, *torch.autograd.grad(total, parameters)])
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


@pytest.mark.parametrize("width", [4, 8, 15])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_narrow_shortcuts_leave_pixels_out_and_compute_the_same(
    width: int, memory_format: torch.memory_format
) -> None:
    torch.manual_seed(0)
    shortcut = ResNet(num_blocks=[1, 1], width=width).get_submodule("stages.1.0.shortcut.0")
    assert type(shortcut) is not nn.Conv2d
    strided = nn.Conv2d(width, 2 * width, 1, stride=2, bias=False)
    strided.load_state_dict(shortcut.state_dict())
    images = torch.randn(25, width, 32, 32)
    found = []
    # the reference in float64, which oneDNN doesn't compute
    for convolution, x in ((shortcut, images), (strided.double(), images.double())):
        x = x.to(memory_format=memory_format).requires_grad_()
        output = convolution.to(memory_format=memory_format)(x)
        weight = convolution.get_parameter("weight")
        found.append([output, *torch.autograd.grad(output.square().sum(), [x, weight])])
    for ours, reference in zip(*found, strict=True):
        torch.testing.assert_close(ours.double(), reference, rtol=1e-4, atol=1e-3)
