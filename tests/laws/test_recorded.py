"""A step that is recorded once and replayed computes what the plain step computes, to the bit.

On a stand-in for the CUDA graph that repeats the operators of the recording and nothing of Python.
The learning rate is a power of two: the plain step has it as a float64, the recorded one as a
float32 on the device, and these are then the same number.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer, seed_everything
from torch import nn

from cifar_lab.data.augment import Pipeline
from cifar_lab.data.datamodule import Synthetic
from cifar_lab.training import fused_sgd
from cifar_lab.training.callbacks.ema import Ema
from cifar_lab.training.callbacks.grad_norm import GradNorm
from cifar_lab.training.callbacks.lookahead import Lookahead
from cifar_lab.training.callbacks.swa import Swa
from cifar_lab.training.classifier import Classifier
from cifar_lab.training.library_logging import route_library_logging
from cifar_lab.training.steps.cuda_graph import WARMUP_STEPS, GraphedStep
from cifar_lab.training.steps.multistep import arrange
from tests.conftest import FEED
from tests.laws.test_no_waiting import EVERY, NETWORKS, STANDARD
from tests.support.tape import Taped

EMA = partial(Ema, decay=0.75, start_step=5)
SWA = partial(Swa, start_fraction=0.3, every_steps=4, bn_images=100)
LOOKAHEAD = partial(Lookahead, alpha=0.5, every_steps=2)
EPOCHS, WHOLE = 3, 8  # and a short batch in each epoch


def halving(step: int, total_steps: int) -> float:
    return 2.0 ** -(3 * step // total_steps)


class Losses(Callback):
    """The sums that each epoch ends with."""

    def __init__(self) -> None:
        self.seen: list[list[float]] = []

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        assert isinstance(pl_module, Classifier)
        self.seen.append([*pl_module.running_train().tolist(), float(torch.rand(1))])


def fitted(
    folder: Path,
    network: str,
    optimizer: Any,
    *,
    graphed_step: type[GraphedStep] | None,
    size: int = 4,
    transforms: dict[str, Any] = STANDARD,
    averages: tuple[Any, ...] = (),
    **settings: Any,
) -> tuple[dict[str, torch.Tensor], list[list[float]], dict[str, float]]:
    """All weights (averages too), what each epoch summed and the next random number, the metrics"""
    route_library_logging()
    seed_everything(11, verbose=False)
    data = Synthetic(
        **{**FEED, "train_size": 390, "test_size": 40, "data_seed": 0, "batch_size": 40},
        val_size=60,
        augment=Pipeline(transforms=transforms),
        seed=3,
    )
    classifier = Classifier(
        network=nn.Sequential(NETWORKS[network](), nn.Dropout(0.1)),
        loss=nn.CrossEntropyLoss(),
        optimizer=optimizer,
        schedule=halving,
        config={},
    )
    losses = Losses()
    trainer = Trainer(
        default_root_dir=folder,
        accelerator="cpu",
        max_epochs=EPOCHS,
        logger=False,
        callbacks=[losses, GradNorm(), *(make() for make in averages)],
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        **settings,
    )
    data.open()
    classifier.train_on(arrange(trainer, data, size), graphed_step=graphed_step)
    trainer.fit(classifier, datamodule=data)
    assert trainer.global_step == EPOCHS * (WHOLE + 1)
    state = {**classifier.state_dict()}
    for index, moments in enumerate(trainer.optimizers[0].state_dict()["state"].values()):
        state |= {f"{index}.{k}": v for k, v in moments.items() if isinstance(v, torch.Tensor)}
    return state, losses.seen, {k: float(v) for k, v in trainer.callback_metrics.items()}


OPTIMIZERS: dict[str, Any] = {
    "sgd": partial(torch.optim.SGD, lr=2**-5, momentum=0.75, nesterov=True, fused=True),
    "adamw": partial(torch.optim.AdamW, lr=2**-8, fused=True),
}


@pytest.mark.parametrize(
    ("network", "optimizer", "more"),
    [
        ("cnn", "sgd", {}),
        ("resnet10", "sgd", {}),
        ("resnet10", "adamw", {}),
        ("cnn", "sgd", {"averages": (EMA,), "size": 3}),
        ("resnet10", "sgd", {"averages": (LOOKAHEAD, SWA), "size": 3}),
        ("resnet10", "sgd", {"transforms": EVERY, "size": 16}),
        ("cnn", "sgd", {"precision": "bf16-mixed"}),
        ("resnet10", "sgd", {"precision": "bf16-true"}),
    ],
    # parallel workers want one name for a test: no address of an object in it
    ids=lambda value: value if isinstance(value, str) else ",".join(value),
)
def test_a_replayed_fit_is_the_fit(
    tmp_path: Path, network: str, optimizer: str, more: dict[str, Any]
) -> None:
    if more.get("precision") == "bf16-true" and not fused_sgd.moves_all(torch.bfloat16):
        pytest.skip(f"torch {torch.__version__}'s fused SGD leaves elements to chance")
    Taped.recordings = Taped.replays = 0
    plain = fitted(tmp_path, network, OPTIMIZERS[optimizer], graphed_step=None, **more)
    taped = fitted(tmp_path, network, OPTIMIZERS[optimizer], graphed_step=Taped, **more)
    assert Taped.recordings == 1
    assert Taped.replays == EPOCHS * WHOLE - WARMUP_STEPS
    assert plain[0].keys() == taped[0].keys()
    for name, value in plain[0].items():
        assert torch.equal(taped[0][name], value), name
    assert taped[1] == plain[1]
    assert taped[2] == plain[2]
