"""A network has as many outputs as the dataset has classes, without being told."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from torch import nn

from cifar_lab.config.compose import compose, run_config
from cifar_lab.config.validate import check
from cifar_lab.data.dataset import Dataset, Split
from cifar_lab.errors import InputError
from cifar_lab.records.digest import config_digest
from cifar_lab.run.networks import build_model
from tests.support.images import numbered

BARE = ("~model.width", "~model.dropout")
TORCHVISION = ("model._target_=torchvision.models.mobilenet_v3_small", *BARE)


def dataset(classes: int, size: int = 32) -> Dataset:
    split = Split(np.zeros((1, 3, size, size), np.uint8), np.zeros(1, np.uint8))
    return Dataset("toy", "code", False, "", numbered(classes), split, split)


def outputs(network: nn.Module) -> int:
    return [m for m in network.modules() if isinstance(m, nn.Linear)][-1].out_features


class Plain(nn.Module):
    """Knows nothing of any classes."""

    def __init__(self, **more: Any) -> None:
        super().__init__()
        self.linear = nn.Linear(4, more.get("num_classes", 5))


class Sized(nn.Module):
    """Needs both, and says so."""

    def __init__(self, num_classes: int, image_size: int) -> None:
        super().__init__()
        self.linear = nn.Linear(3 * image_size**2, num_classes)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("model=cnn", "model.width=4"), 7),
        (("model=resnet10", "model.width=4", "model.num_blocks=[1]"), 7),
        (TORCHVISION, 7),
        (("model._target_=tests.run.test_classes_of_the_network.Sized", *BARE), 7),
        (("model._target_=tests.run.test_classes_of_the_network.Plain", *BARE), 5),
        (
            (
                "model._target_=tests.run.test_classes_of_the_network.Plain",
                "model.num_classes=7",
                *BARE,
            ),
            7,
        ),
    ],
    ids=lambda value: value[0].rpartition(".")[2] if isinstance(value, tuple) else None,
)
def test_the_dataset_decides(arguments: tuple[str, ...], expected: int) -> None:
    cfg = compose([*arguments, "data=synthetic"])
    check(cfg)
    network = build_model(cfg, dataset(7, size=48))
    assert outputs(network) == expected
    if isinstance(network, Sized):
        assert network.linear.in_features == 3 * 48**2


@pytest.mark.parametrize("arguments", [("model=cnn",), TORCHVISION])
def test_another_number_is_refused(arguments: tuple[str, ...]) -> None:
    cfg = compose([*arguments, "model.num_classes=9", "data=synthetic"])
    line = "^model.num_classes=9: the data has 7 classes; leave it out, or give 7$"
    with pytest.raises(InputError, match=line):
        build_model(cfg, dataset(7))


def test_images_too_small_for_the_cnn_are_refused() -> None:
    with pytest.raises(InputError, match=r"^model\.image_size=7: must be at least 8"):
        build_model(compose(["model=cnn", "data=synthetic"]), dataset(7, size=7))


@pytest.mark.parametrize("model", ["cnn", "resnet10"])
def test_a_key_that_is_new_and_null_makes_no_other_run(model: str) -> None:
    config = run_config(compose([f"model={model}", "data=synthetic"]))
    before = {**config, "model": {k: v for k, v in config["model"].items() if k != "num_classes"}}
    assert before != config
    assert config_digest(before) == config_digest(config)
    ten = {**config, "model": {**config["model"], "num_classes": 10}}
    assert config_digest(ten) != config_digest(config)
