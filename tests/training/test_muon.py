"""Muon against a plain numpy step, its orthogonality, and SGD for what is no matrix."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from cifar_lab.errors import InputError
from cifar_lab.training.muon import Muon, orthogonalized
from tests.conftest import TINY, record_of

Lab = Callable[..., tuple[int, str, str]]
SETTINGS: dict[str, Any] = {
    "lr": 0.1,
    "momentum": 0.6,
    "nesterov": True,
    "weight_decay": 0.0,
    "orthogonal": True,
    "normalize": False,
    "iterations": 5,
    "dtype": "float32",
}


@pytest.mark.parametrize("shape", [(16, 16), (12, 40), (40, 12), (3, 8, 20)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_singular_values_come_to_lie_around_one(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    values = torch.linalg.svdvals(orthogonalized(torch.randn(shape), steps=5, dtype=dtype).float())
    assert float(values.min()) > 0.3
    assert float(values.max()) < 1.3


def test_directions_stay_and_scale_does_not_matter() -> None:
    torch.manual_seed(0)
    matrix = torch.randn(12, 30)
    found = orthogonalized(matrix, steps=5, dtype=torch.float32)
    torch.testing.assert_close(
        found, orthogonalized(1e3 * matrix, steps=5, dtype=torch.float32), rtol=1e-3, atol=1e-4
    )
    u, _, vt = torch.linalg.svd(matrix, full_matrices=False)
    inner = u.T @ found @ vt.T
    # nothing but the singular values has changed
    torch.testing.assert_close(inner, torch.diag(inner.diag()), rtol=0, atol=1e-4)


@pytest.mark.parametrize("shape", [(16, 16), (12, 40), (40, 12), (3, 8, 20)])
def test_a_processor_without_bfloat16_loses_no_digit(
    shape: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    matrices = torch.randn(shape)
    exact = orthogonalized(matrices.double(), steps=5, dtype=torch.float64)
    errors, found = [], []
    for emulates in (False, True):
        monkeypatch.setattr("cifar_lab.training.muon.emulates_bfloat16", lambda it=emulates: it)
        found.append(orthogonalized(matrices, steps=5, dtype=torch.bfloat16))
        assert found[-1].dtype == torch.bfloat16
        errors.append(float((found[-1].double() - exact).norm() / exact.norm()))
    assert errors[1] < 1.2 * errors[0] < 0.05
    torch.testing.assert_close(*found, rtol=0, atol=0.05)


def numpy_step(
    weight: np.ndarray, gradient: np.ndarray, buffer: np.ndarray, settings: dict[str, Any]
) -> np.ndarray:
    # one step as the documentation of Muon has it, in plain numpy; changes the buffer
    buffer[:] = settings["momentum"] * buffer + gradient
    step = gradient + settings["momentum"] * buffer if settings["nesterov"] else buffer
    x = step.reshape(len(step), -1)
    x = x.T if x.shape[0] > x.shape[1] else x
    x = x / (np.linalg.norm(x) + 1e-7)
    for _ in range(settings["iterations"]):
        gram = x @ x.T
        x = 3.4445 * x + (-4.7750 * gram + 2.0315 * gram @ gram) @ x
    x = x if x.shape[0] == len(step) else x.T
    if settings["normalize"]:
        weight = weight * np.sqrt(len(weight)) / np.linalg.norm(weight)
    weight = weight * (1 - settings["lr"] * settings["weight_decay"])
    stepped: np.ndarray = weight - settings["lr"] * x.reshape(weight.shape)
    return stepped


@pytest.mark.parametrize("nesterov", [True, False])
@pytest.mark.parametrize("more", [{"normalize": True}, {"weight_decay": 0.5}], ids=str)
@pytest.mark.parametrize("shape", [(8, 4, 3, 3), (40, 3, 2, 2), (10, 6)])
def test_three_steps_are_numpy_s(shape: tuple[int, ...], more: Any, nesterov: bool) -> None:
    torch.manual_seed(0)
    settings = SETTINGS | more | {"nesterov": nesterov}
    first = nn.Parameter(torch.randn(shape, dtype=torch.float64))
    twin = nn.Parameter(first.detach().clone())  # of one shape: stepped together
    optimizer = Muon([first, twin], **settings)
    expected, buffer = first.detach().numpy().copy(), np.zeros(shape)
    for seed in range(3):
        torch.manual_seed(seed)
        first.grad = torch.randn(shape, dtype=torch.float64)
        twin.grad = torch.randn(shape, dtype=torch.float64)
        expected = numpy_step(expected, first.grad.numpy(), buffer, settings)
        optimizer.step()
    torch.testing.assert_close(first.detach(), torch.from_numpy(expected), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("orthogonal", [True, False])
def test_what_is_no_matrix_steps_as_torch_s_sgd_to_the_bit(orthogonal: bool) -> None:
    torch.manual_seed(0)
    shape = (7,) if orthogonal else (7, 5, 3, 3)
    ours = nn.Parameter(torch.randn(shape))
    theirs = nn.Parameter(ours.detach().clone())
    matrix = nn.Parameter(torch.ones(2, 2))  # gets no gradient; alone a vector is refused
    plain: dict[str, Any] = {"lr": 0.1, "momentum": 0.6, "nesterov": True, "weight_decay": 0.01}
    optimizers = [
        Muon([ours, matrix], **(SETTINGS | plain | {"orthogonal": orthogonal})),
        torch.optim.SGD([theirs], **plain, fused=True),
    ]
    for _ in range(4):
        ours.grad = torch.randn(shape)
        theirs.grad = ours.grad.clone()
        for optimizer in optimizers:
            optimizer.step()
    assert torch.equal(ours, theirs)


def test_a_rate_on_the_device_is_the_same_rate() -> None:
    # as a recorded step has it
    torch.manual_seed(0)
    weights = [nn.Parameter(torch.randn(6, 4, 3, 3)), nn.Parameter(torch.randn(6))]
    others = [nn.Parameter(w.detach().clone()) for w in weights]
    optimizers = Muon(weights, **SETTINGS), Muon(others, **SETTINGS)
    optimizers[1].param_groups[0]["lr"] = torch.tensor(SETTINGS["lr"])
    for weight, other in zip(weights, others, strict=True):
        weight.grad = torch.randn(weight.shape)
        other.grad = weight.grad.clone()
    for optimizer in optimizers:
        optimizer.step()
    for weight, other in zip(weights, others, strict=True):
        torch.testing.assert_close(weight, other)


def test_parameters_without_gradients_stay() -> None:
    weight = nn.Parameter(torch.randn(4, 4))
    before = weight.detach().clone()
    Muon([weight], **SETTINGS).step()
    assert torch.equal(weight, before)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"momentum": 1.0}, "momentum=1.0"),
        ({"iterations": 0}, "iterations=0"),
        ({"dtype": "float16"}, "dtype=float16"),
        ({"lr": -1.0}, "lr=-1.0"),
    ],
    ids=str,
)
def test_impossible_numbers_are_refused(wrong: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said):
        Muon([nn.Parameter(torch.randn(2, 2))], **(SETTINGS | wrong))


def run(lab: Lab, folder: Path, *more: str) -> dict[str, Any]:
    status, _, err = lab(*TINY, "optimizer=muon", "threads=1", *more, f"hydra.run.dir={folder}")
    assert status == 0, err
    checkpoint: dict[str, Any] = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)
    return checkpoint


def test_its_groups_come_with_it_and_others_can_be_chosen(lab: Lab, tmp_path: Path) -> None:
    checkpoint = run(lab, tmp_path / "run", "trainer.max_epochs=1")
    filters, rest = checkpoint["optimizer_states"][0]["param_groups"]
    assert all("conv" in n or "stem.0" in n or "shortcut.0" in n for n in filters["param_names"])
    assert (filters["orthogonal"], rest["orthogonal"]) == (True, False)
    one = run(lab, tmp_path / "one", "trainer.max_epochs=1", "optimizer/groups=none")
    assert len(one["optimizer_states"][0]["param_groups"]) == 1


@pytest.mark.parametrize("steps_per_call", ["1", "3"])
def test_a_run_that_goes_on_comes_to_the_same_weights(
    lab: Lab, tmp_path: Path, steps_per_call: str
) -> None:
    constant = ("scheduler=constant", f"steps_per_call={steps_per_call}")
    whole = run(lab, tmp_path / "whole", *constant, "trainer.max_epochs=2")
    run(lab, tmp_path / "parts", *constant, "trainer.max_epochs=1")
    parts = run(lab, tmp_path / "parts", *constant, "trainer.max_epochs=2")
    assert record_of(tmp_path / "parts")["resumed"]
    for name, value in whole["state_dict"].items():
        assert torch.equal(value, parts["state_dict"][name]), name


def test_a_matrix_of_zeros_learns() -> None:
    zeros = nn.Parameter(torch.zeros(4, 6))
    zeros.grad = torch.randn(4, 6, generator=torch.Generator().manual_seed(0))
    Muon([zeros], **(SETTINGS | {"normalize": True})).step()
    assert torch.isfinite(zeros).all()
    assert (zeros != 0).all()


@pytest.mark.parametrize("rate", [0.0, torch.tensor(0.0)], ids=["number", "on the device"])
def test_where_it_is_over_for_a_group_its_weights_stay(rate: Any) -> None:
    torch.manual_seed(0)
    weight = nn.Parameter(torch.randn(4, 6))  # of another norm than a step would give it
    before = weight.detach().clone()
    optimizer = Muon([{"params": [weight], "until": 0.5}], **(SETTINGS | {"normalize": True}))
    optimizer.param_groups[0]["lr"] = rate
    weight.grad = torch.randn(4, 6)
    optimizer.step()
    assert torch.equal(weight, before)
