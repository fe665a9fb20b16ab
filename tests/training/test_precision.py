"""Sums are exact whatever the precision: counts of images, losses, and the gradient's norm."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from cifar_lab.errors import InputError
from cifar_lab.training.callbacks.grad_norm import GradNorm
from cifar_lab.training.classifier import Classifier
from cifar_lab.training.schedules import constant
from tests.conftest import TINY, record_of
from tests.support.runs import begin

Lab = Callable[..., tuple[int, str, str]]
PRECISIONS = ("32-true", "64-true", "bf16-mixed", "bf16-true", "16-true")
# one batch of each split, of more images than bfloat16 can count, whose 8 bits end at 256
COUNTS = ("data.train_size=1001", "data.val_size=614", "data.test_size=387", "data.batch_size=387")
ONE_BATCH = (
    *(a for a in TINY if not a.startswith(("data.", "model", "trainer.max"))),
    *COUNTS,
    *("model=cnn", "model.width=4", "trainer.max_epochs=1", "threads=1", "augment=none"),
    # not fused: torch 2.11's is refused in half precision
    *("optimizer.lr=0.003", "optimizer.fused=false", "data.shuffle=false"),
)


def numpy_of(logits: np.ndarray, labels: np.ndarray) -> tuple[int, float]:
    """Right answers and mean cross-entropy, in float64."""
    wide = logits.astype(np.float64)
    wide -= wide.max(1, keepdims=True)
    losses = np.log(np.exp(wide).sum(1)) - wide[np.arange(len(labels)), labels]
    return int((logits.argmax(1) == labels).sum()), float(losses.mean())


@pytest.mark.parametrize("precision", PRECISIONS[:4])  # the command line refuses 16-true
def test_metrics_are_those_of_the_logits_that_were_kept(
    lab: Lab, tmp_path: Path, precision: str
) -> None:
    status, _, err = lab(
        *ONE_BATCH, f"trainer.precision={precision}", f"hydra.run.dir={tmp_path}/r"
    )
    assert status == 0, err
    metrics = record_of(tmp_path / "r")["metrics"]
    with np.load(tmp_path / "r" / "predictions.npz") as kept:
        correct, loss = numpy_of(kept["logits"], kept["labels"])
    assert metrics["test/acc"] == correct / 387
    assert metrics["test/loss"] == pytest.approx(loss, rel=1e-6)
    for name, count in (("train/acc", 387), ("val/acc", 614)):
        assert metrics[name] * count == pytest.approx(round(metrics[name] * count), abs=1e-9)


class Fixed(nn.Module):
    """Gives the logits that it was made with, in its own type."""

    def __init__(self, logits: torch.Tensor) -> None:
        super().__init__()
        self.logits = nn.Parameter(logits)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.logits


def of(logits: torch.Tensor, loss: nn.Module) -> Classifier:
    optimizer = partial(torch.optim.SGD, lr=0.1)
    return Classifier(
        network=Fixed(logits), loss=loss, optimizer=optimizer, schedule=constant, config={}
    )


@pytest.mark.parametrize("mixed", [False, True])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_a_step_counts_exactly(dtype: torch.dtype, mixed: bool) -> None:
    labels = torch.arange(387) % 10
    logits = nn.functional.one_hot((labels + (torch.arange(387) % 9 == 0)) % 10, 10)
    logits = (3 * logits + torch.randn(387, 10, generator=torch.Generator().manual_seed(0)) / 9).to(
        dtype
    )
    target = nn.functional.one_hot(labels, 10).to(dtype) if mixed else labels
    module = begin(of(logits, nn.CrossEntropyLoss()))
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)  # as Lightning's half precision has it in a step
    try:
        for _ in range(3):
            loss = module.training_step((torch.empty(387, 0), target), 0)
    finally:
        torch.set_default_dtype(before)
    correct, expected = numpy_of(logits.double().numpy(), labels.numpy())
    sums = module.running_train()
    assert sums[1:].tolist() == [3 * correct, 3 * 387]
    assert float(sums[0]) == pytest.approx(3 * 387 * expected, rel=1e-6)
    assert loss is not None
    loss.backward()
    gradient = module.network.get_parameter("logits").grad
    assert gradient is not None
    assert gradient.dtype == dtype


@pytest.mark.parametrize("precision", ["bf16-true", "64-true"])
def test_a_loss_with_weights_of_its_own_takes_part_in_any_precision(
    lab: Lab, tmp_path: Path, precision: str
) -> None:
    weighted = ("loss._target_=tests.training.test_precision.Weighted", "~loss.label_smoothing")
    more = (f"trainer.precision={precision}", f"hydra.run.dir={tmp_path}/run")
    status, _, err = lab(*ONE_BATCH, *weighted, *more)
    assert status == 0, err
    assert record_of(tmp_path / "run")["metrics"]["test/loss"] > 0


class Weighted(nn.CrossEntropyLoss):
    def __init__(self) -> None:
        super().__init__(weight=torch.arange(1.0, 11.0))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_the_gradient_s_norm_is_that_of_its_numbers(
    dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = of(torch.zeros(300, 10, dtype=dtype), nn.CrossEntropyLoss())
    gradient = 700 * torch.randn(300, 10, generator=torch.Generator().manual_seed(0))
    module.network.logits.grad = gradient.to(dtype)  # in float16 the norm of this is infinite
    logged: dict[str, float] = {}
    monkeypatch.setattr(module, "log_with_epoch", logged.update)
    GradNorm().on_train_epoch_end(None, module)  # type: ignore[arg-type]
    expected = float(gradient.to(dtype).double().norm())
    assert logged["grad_norm"] == pytest.approx(expected, rel=1e-6)


AVERAGES: tuple[tuple[str, ...], ...] = (
    ("callbacks=ema",),
    (
        "+callbacks.swa._target_=lightning.pytorch.callbacks.StochasticWeightAveraging",
        "+callbacks.swa.swa_lrs=0.01",
    ),
)


@pytest.mark.parametrize("arguments", AVERAGES, ids=["ema", "swa"])
def test_weights_are_not_averaged_in_half_precision(
    lab: Lab, tmp_path: Path, arguments: tuple[str, ...]
) -> None:
    status, _, err = lab(
        *(a for a in ONE_BATCH if not a.startswith("callbacks")),
        *arguments,
        *("trainer.precision=bf16-true", f"hydra.run.dir={tmp_path}/run"),
    )
    assert status == 2
    assert "averages of weights in half precision stand still" in err
    assert len(err.splitlines()) == 1
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "arguments",
    [
        "callbacks=ema",
        "callbacks=swa callbacks.swa.start_fraction=0 callbacks.swa.every_steps=1",
        "callbacks=schedule_free optimizer=schedule_free scheduler=none",
    ],
)
def test_in_float64_they_are_averaged_in_it(lab: Lab, tmp_path: Path, arguments: str) -> None:
    kept = [a for a in ONE_BATCH if not a.startswith(("callbacks", "optimizer", "trainer.max"))]
    more = ("trainer.precision=64-true", "trainer.max_epochs=3", f"hydra.run.dir={tmp_path}/run")
    status, _, err = lab(*kept, *arguments.split(), *more)
    assert status == 0, err
    averages = torch.load(tmp_path / "run/checkpoints/last.ckpt", weights_only=True)["state_dict"]
    assert {weight.dtype for weight in averages.values()} == {torch.float64}
    # which float32 can't hold
    assert any(bool((weight != weight.float()).any()) for weight in averages.values())


def test_such_an_average_would_stand_still() -> None:
    from torch.optim.swa_utils import get_ema_multi_avg_fn

    average, weights = torch.ones(4, dtype=torch.bfloat16), torch.full((4,), 1.2).bfloat16()
    for _ in range(1000):
        get_ema_multi_avg_fn(0.99)([average], [weights], 1)
    assert average.tolist() == [1.0] * 4


def test_a_dampened_fused_sgd_has_no_scaler() -> None:
    from cifar_lab.config.validate import check_fused

    sgd = {"fused": True, "momentum": 0.9, "dampening": 0.1}
    with pytest.raises(InputError, match=r"^optimizer.dampening=0.1: .* set optimizer.fused=false"):
        check_fused({"precision": "16-mixed"}, sgd, "cuda")
    for fine in ({"precision": "bf16-mixed"}, {"precision": "16-true"}):
        check_fused(fine, sgd, "cuda")
    check_fused({"precision": "16-mixed"}, {**sgd, "fused": False}, "cuda")


@pytest.mark.parametrize("name", ["Adam", "AdamW", "NAdam", "RMSprop", "Adagrad"])
def test_float16_has_no_room_for_squares_of_gradients(name: str) -> None:
    from cifar_lab.config.validate import check_squares

    node = {"_target_": f"torch.optim.{name}"}
    with pytest.raises(InputError, match=f"^trainer.precision=16-true: {name} keeps squares"):
        check_squares({"precision": "16-true"}, node)
    check_squares({"precision": "bf16-true"}, node)
    check_squares({"precision": "16-true"}, {"_target_": "torch.optim.SGD"})


def test_with_them_adamw_would_go_elsewhere_and_stay_finite() -> None:
    ends = []
    for dtype in (torch.float32, torch.float16):
        weight = nn.Parameter(torch.zeros(1000, dtype=dtype))
        optimizer = torch.optim.AdamW([weight], lr=1e-3, fused=True)
        generator = torch.Generator().manual_seed(0)
        for _ in range(50):
            weight.grad = (1e-3 * torch.randn(1000, generator=generator)).to(dtype)
            optimizer.step()
        ends.append(weight.detach().float())
    assert bool(torch.isfinite(ends[1]).all())
    assert float((ends[0] - ends[1]).abs().max()) > 1  # 50 steps of 0.001 can't come that far


@pytest.mark.parametrize("algorithm", ["norm", "value"])
def test_gradients_are_clipped_alike_for_a_fused_optimizer_and_a_plain_one(
    lab: Lab, tmp_path: Path, algorithm: str
) -> None:
    # so tight that every step is clipped
    clipped = (
        *("trainer.precision=bf16-mixed", "trainer.gradient_clip_val=0.001"),
        f"+trainer.gradient_clip_algorithm={algorithm}",
    )
    norms = {}
    for fused in ("true", "false"):
        more = (f"optimizer.fused={fused}", f"hydra.run.dir={tmp_path}/{fused}")
        status, _, err = lab(*ONE_BATCH, *clipped, *more, "monitors=grad_norm")
        assert status == 0, err
        norms[fused] = record_of(tmp_path / fused)["metrics"]["grad_norm"]
    assert norms["true"] == pytest.approx(norms["false"], rel=1e-3)
    if algorithm == "norm":
        assert norms["true"] == pytest.approx(0.001, rel=1e-2)
