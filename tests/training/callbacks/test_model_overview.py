from __future__ import annotations

import copy
import logging
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

from cifar_lab.model.cnn import CNN
from cifar_lab.model.resnet import ResNet
from cifar_lab.training.callbacks.model_overview import (
    FILTERS,
    ModelOverview,
    as_text,
    filter_sheet,
)
from cifar_lab.training.callbacks.rng import rng_state
from cifar_lab.training.loggers.tensorboard import TensorBoard

CONFIG: dict[str, Any] = {"optimizer": {"lr": 0.1}, "model": {"num_blocks": [1, 2]}, "x": None}


def events(run: Path) -> EventAccumulator:
    accumulator = EventAccumulator(str(run / "tensorboard"))
    accumulator.Reload()
    return accumulator


def begin(run: Path, network: nn.Module, *, graph: bool = True, resumed: int | None = None) -> Any:
    board = TensorBoard(save_dir=run)
    if resumed is not None:
        board.resume(resumed)
    data = SimpleNamespace(dataset=SimpleNamespace(image_size=(3, 32, 32)))
    trainer: Any = SimpleNamespace(loggers=[board], global_step=40, datamodule=data)
    module: Any = SimpleNamespace(network=network, hparams={"config": CONFIG})
    overview = ModelOverview(graph=graph)
    overview.on_fit_start(trainer, module)
    return lambda: overview.on_train_end(trainer, module)


def networks() -> list[nn.Module]:
    normed = CNN(width=4, dropout=0.5)
    # a look at its weight in training moves its estimate
    spectral_norm(normed.features[0])
    return [CNN(width=4, dropout=0.5), ResNet(num_blocks=[1, 1], width=4).double(), normed]


@pytest.mark.parametrize("network", networks(), ids=["cnn", "resnet in float64", "spectral norm"])
def test_the_graph_is_there_and_the_network_and_the_rngs_are_as_before(
    tmp_path: Path, network: nn.Module
) -> None:
    network.train()
    state, rng = copy.deepcopy(network.state_dict()), rng_state()
    begin(tmp_path, network)
    assert any("conv" in node.name.lower() for node in events(tmp_path).Graph().node)
    assert all(torch.equal(state[key], value) for key, value in network.state_dict().items())
    assert network.training
    assert all(p.requires_grad and p.grad is None for p in network.parameters())
    after = rng_state()
    assert torch.equal(rng["torch"], after["torch"])


def test_the_graph_can_be_left_out(tmp_path: Path) -> None:
    begin(tmp_path, CNN(width=4, dropout=0.5), graph=False)
    assert not events(tmp_path).Tags()["graph"]


class Untraceable(nn.Module):
    def forward(self, images: Tensor) -> Tensor:
        raise RuntimeError("no")


def test_a_network_that_cannot_be_traced_has_no_graph_and_makes_no_fuss(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    caplog.set_level(logging.DEBUG, "cifar_lab")
    begin(tmp_path, Untraceable())
    assert not events(tmp_path).Tags()["graph"]
    said = [r.levelno for r in caplog.records if r.module == "model_overview"]
    assert said == [logging.DEBUG], caplog.text
    assert capfd.readouterr() == ("", "")


def test_the_configuration_is_readable_and_complete(tmp_path: Path) -> None:
    begin(tmp_path, CNN(width=4, dropout=0.5))
    (event,) = events(tmp_path).Tensors("configuration/text_summary")
    text = event.tensor_proto.string_val[0].decode()
    assert text == as_text(CONFIG)
    first, *lines, last = text.splitlines()
    assert (first, last) == ("```yaml", "```")
    assert yaml.safe_load("\n".join(lines)) == CONFIG


def test_filters_are_drawn_before_the_first_step_and_after_the_last(tmp_path: Path) -> None:
    begin(tmp_path, CNN(width=4, dropout=0.5))()
    assert [event.step for event in events(tmp_path).Images(FILTERS)] == [0, 39]


def test_a_resumed_run_writes_what_belongs_to_the_start_only_once(tmp_path: Path) -> None:
    network = CNN(width=4, dropout=0.5)
    begin(tmp_path, network)
    begin(tmp_path, network, resumed=20)()
    read = events(tmp_path)
    assert [event.step for event in read.Images(FILTERS)] == [0, 39]
    assert len(read.Tensors("configuration/text_summary")) == 1


def test_a_run_that_starts_over_draws_its_filters_again(tmp_path: Path) -> None:
    begin(tmp_path, CNN(width=4, dropout=0.5))
    begin(tmp_path, CNN(width=4, dropout=0.5), resumed=0)  # killed before its first checkpoint
    assert [event.step for event in events(tmp_path).Images(FILTERS)] == [0]


def test_zero_is_grey_and_the_largest_weight_white_or_black() -> None:
    convolution = nn.Conv2d(3, 2, 3)
    with torch.no_grad():
        convolution.weight.zero_()
        convolution.weight[0, 0, 0, 0] = -2.0
        convolution.weight[1, 2, 2, 2] = 1.0
    sheet = filter_sheet(nn.Sequential(nn.Identity(), convolution))
    assert sheet is not None
    filters = sheet.numpy()
    assert sorted(set(np.unique(filters))) == [0.0, 0.5, 0.75, 1.0]
    assert (filters[0] == 0.0).sum() == 12 * 12  # one weight, twelve times as large
    assert (filters[1] == 0.0).sum() == 0


@pytest.mark.parametrize("network", [nn.Linear(3, 3), nn.Conv2d(1, 3, 3)])
def test_without_a_convolution_on_colours_there_is_no_picture(network: nn.Module) -> None:
    assert filter_sheet(network) is None
