"""A signature's type hints take the values that the hint takes, and no others."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Sequence
from numbers import Number, Real
from typing import Any, Optional, Protocol, Union

import pytest
import torch
from torch import nn
from torchvision.transforms import v2

from cifar_lab.config.targets import check_target
from cifar_lab.errors import InputError


class Scoring(Protocol):
    def score(self) -> float: ...


# numbers.Number and the like, for which JSON has no kind of its own
TAKEN: list[tuple[Any, Any]] = [
    (Number, 10),
    (Real, 1.5),
    (Union[Number, Sequence], 10),  # noqa: UP007  # as torchvision writes it
    (Union[Number, Sequence], [0, 10]),  # noqa: UP007
    (Optional[Sequence[Number]], [0, 0.5]),  # noqa: UP045
    (Collection, [1]),
    (float | torch.Tensor, 0.5),
    (Scoring, 1),
    (tuple[float, float], [0.9, 0.95]),
]
REFUSED: list[tuple[Any, Any, str]] = [
    (Number, "ten", "must be a number"),
    (Union[Number, list[int]], "ten", "must be a number or a list (an integer each)"),  # noqa: UP007
    (torch.dtype, "float32", "must be an instance of dtype"),
    (type[nn.Module], "relu", "must be a subclass of Module"),
    (float, "0.1", "must be a number"),
]


def checked(monkeypatch: pytest.MonkeyPatch, hint: Any, value: Any) -> None:
    def part(value: Any) -> None: ...

    part.__annotations__ = {"value": hint}
    monkeypatch.setattr(inspect.getmodule(checked), "part", part, raising=False)
    check_target("callbacks.x", {"_target_": f"{__name__}.part", "value": value})


@pytest.mark.parametrize(("hint", "value"), TAKEN, ids=str)
def test_what_a_hint_takes_passes(monkeypatch: pytest.MonkeyPatch, hint: Any, value: Any) -> None:
    checked(monkeypatch, hint, value)


@pytest.mark.parametrize(("hint", "value", "said"), REFUSED, ids=str)
def test_what_it_does_not_take_is_said_in_its_words(
    monkeypatch: pytest.MonkeyPatch, hint: Any, value: Any, said: str
) -> None:
    with pytest.raises(InputError) as refused:
        checked(monkeypatch, hint, value)
    assert str(refused.value) == f"callbacks.x.value={value}: {said}"


TRANSFORMS: list[tuple[Callable[..., Any], dict[str, Any]]] = [
    (v2.RandomRotation, {"degrees": 10}),
    (v2.RandomRotation, {"degrees": [-10, 10], "fill": 0}),
    (v2.RandomAffine, {"degrees": 10, "translate": [0.1, 0.1], "shear": 5}),
    (v2.RandomCrop, {"size": 32, "padding": [4, 4], "padding_mode": "reflect"}),
    (v2.RandomResizedCrop, {"size": [32, 32], "scale": [0.5, 1.0], "interpolation": "bilinear"}),
    (v2.ColorJitter, {"brightness": [0.5, 1.5], "hue": 0.1}),
    (v2.RandomErasing, {"p": 1.0, "scale": [0.02, 0.3], "value": 0}),
    (v2.GaussianBlur, {"kernel_size": 3, "sigma": 1.0}),
    (v2.RandomPerspective, {"distortion_scale": 0.2}),
    (v2.RandAugment, {"num_ops": 2, "fill": [0, 0, 0]}),
]


@pytest.mark.parametrize(("transform", "arguments"), TRANSFORMS, ids=str)
def test_torchvisions_transforms_take_what_its_pages_show(
    transform: Callable[..., Any], arguments: dict[str, Any]
) -> None:
    transform(**arguments)
    target = f"torchvision.transforms.v2.{transform.__name__}"
    check_target("data.transform", {"_target_": target, **arguments})


def test_another_s_logger_writes_where_it_is_told() -> None:
    check_target("logger.x", {"_target_": "lightning.pytorch.loggers.CSVLogger", "save_dir": "x"})
    ours = "cifar_lab.training.loggers.metrics_csv.MetricsCsv"
    with pytest.raises(InputError, match=r"^logger\.x\.save_dir: is what a run gives by itself"):
        check_target("logger.x", {"_target_": ours, "save_dir": "x"})
