"""A fused SGD in half precision is the plain one, or is refused: torch 2.11's trains nothing."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim import SGD, AdamW, Optimizer

from cifar_lab.errors import InputError
from cifar_lab.training import fused_sgd
from cifar_lab.training.muon import Muon
from tests.conftest import TINY, merged

Lab = Callable[..., tuple[int, str, str]]
HALF = (torch.bfloat16, torch.float16)


def stepped(make: Callable[..., Optimizer], size: int, dtype: torch.dtype) -> torch.Tensor:
    """Where two steps of a momentum end: both in numbers that half precision has exactly."""
    parameter = nn.Parameter(torch.zeros(size, dtype=dtype))
    optimizer = make([parameter])
    for _ in range(2):
        parameter.grad = torch.arange(size, dtype=torch.float32).remainder(8).to(dtype)
        optimizer.step()
    return parameter.detach().float()


@pytest.mark.parametrize("dtype", HALF, ids=str)
def test_what_is_let_through_moves_every_element(dtype: torch.dtype) -> None:
    if not fused_sgd.moves_all(dtype):
        pytest.skip(f"torch {torch.__version__}'s doesn't, and is refused: see the next test")
    make = partial(SGD, lr=1.0, momentum=0.5)
    for size in (*range(1, 40), 64, 100, 144):
        fused = stepped(partial(make, fused=True), size, dtype)
        assert torch.equal(fused, stepped(make, size, dtype)), size


@pytest.mark.parametrize("dtype", HALF, ids=str)
def test_muon_s_own_moves_every_element_of_what_is_no_matrix(dtype: torch.dtype) -> None:
    make = partial(
        Muon,
        lr=1.0,
        momentum=0.5,
        nesterov=False,
        weight_decay=0.0,
        orthogonal=True,
        normalize=False,
        iterations=5,
        dtype="float32",
    )

    def beside_a_matrix(parameters: list[nn.Parameter]) -> Optimizer:
        matrix = nn.Parameter(torch.zeros(2, 2, dtype=dtype))  # Muon asks for one
        return make([*parameters, matrix])

    for size in (5, 16, 37, 144):
        plain = stepped(partial(SGD, lr=1.0, momentum=0.5), size, dtype)
        assert torch.equal(stepped(beside_a_matrix, size, dtype), plain), size


@pytest.mark.parametrize("works", [True, False])
def test_a_run_starts_where_it_works(
    lab: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, works: bool
) -> None:
    if works and not fused_sgd.moves_all(torch.bfloat16):
        pytest.skip(f"torch {torch.__version__}'s doesn't work")
    if not works:  # as in torch 2.11
        monkeypatch.setattr(fused_sgd, "moves_all", lambda dtype: dtype not in HALF)
    run = tmp_path / "run"
    more = ("trainer.precision=bf16-true", "trainer.max_epochs=1", f"hydra.run.dir={run}")
    status, _, err = lab(*merged(*TINY, *more))
    assert (status, run.exists()) == ((0, True) if works else (2, False))
    if not works:
        assert err == (
            "cifar_lab: optimizer.fused=true: with trainer.precision=bf16-true on a CPU torch "
            f"{torch.__version__} leaves most weights where they are; set optimizer.fused=false, "
            "or use torch 2.15\n"
        )


def test_nothing_else_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fused_sgd, "moves_all", lambda dtype: dtype not in HALF)
    wide = [nn.Parameter(torch.zeros(3))]
    half: list[Any] = [{"params": wide}, {"params": [nn.Parameter(torch.zeros(3).bfloat16())]}]
    fused = partial(SGD, lr=1.0, fused=True)
    for optimizer, device, precision in (
        (fused(wide), "cpu", "bf16-mixed"),
        (fused(wide), "cpu", "64-true"),
        (fused(wide), "cuda", "bf16-true"),
        (SGD(wide, lr=1.0), "cpu", "bf16-true"),
        (AdamW(wide, fused=True), "cpu", "bf16-true"),
    ):
        fused_sgd.check(optimizer, device=device, precision=precision)
    with pytest.raises(InputError):  # a network that is in half precision by itself
        fused_sgd.check(fused(half), device="cpu", precision="32-true")
