"""Nothing within an epoch waits for the device, and no operator mixes devices.

Twice: a whole run of the command line on the CPU, whose reads are counted, and fits on the meta
device, where a read raises. What is read where a split ends is left out there.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Trainer, seed_everything
from lightning.pytorch.plugins.precision import MixedPrecision
from torch import nn

from cifar_lab.data.augment import (
    ColorJitter,
    CutMix,
    Cutout,
    Mixup,
    Pipeline,
    RandomCrop,
    RandomFlip,
)
from cifar_lab.data.auto_augment import RandAugment, TrivialAugment
from cifar_lab.data.datamodule import Synthetic
from cifar_lab.model.cnn import CNN
from cifar_lab.model.resnet import ResNet
from cifar_lab.training.callbacks.ema import Ema
from cifar_lab.training.callbacks.grad_norm import GradNorm
from cifar_lab.training.callbacks.lookahead import Lookahead
from cifar_lab.training.callbacks.sam import Sam
from cifar_lab.training.callbacks.swa import Swa
from cifar_lab.training.classifier import Classifier
from cifar_lab.training.distillation import Distillation
from cifar_lab.training.hard_examples import HardExamples
from cifar_lab.training.library_logging import route_library_logging
from cifar_lab.training.optimizers import OptimizerFactory
from cifar_lab.training.schedules import cosine
from cifar_lab.training.steps.cuda_graph import GraphedStep
from cifar_lab.training.steps.multistep import arrange, multistep_of
from tests.conftest import FEED, TINY
from tests.support.device_laws import (
    MetaStrategy,
    Waits,
    WithinEpochs,
    meta_device,
    reads_of_python,
)

Lab = Callable[..., tuple[int, str, str]]

NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "cnn": lambda: CNN(width=4, dropout=0.5),
    "resnet10": lambda: ResNet(num_blocks=[1, 1], width=4),
}
STANDARD = {"flip": RandomFlip(p=0.5), "crop": RandomCrop(padding=4, mode="zero")}
EVERY: dict[str, Any] = {
    "flip": RandomFlip(p=0.5),
    "crop": RandomCrop(padding=4, mode="reflect"),
    "trivial": TrivialAugment(),
    "rand": RandAugment(operations=2, magnitude=9),
    "jitter": ColorJitter(brightness=0.2, contrast=0.2, saturation=0.2),
    "cutout": Cutout(size=8),
    "mixup": Mixup(alpha=0.2, p=0.5),
    "cutmix": CutMix(alpha=1.0, p=0.5),
}
SGD: Any = partial(torch.optim.SGD, lr=0.05, momentum=0.9, nesterov=True, fused=True)
ADAMW: Any = partial(torch.optim.AdamW, lr=0.003, fused=True)


class WithoutNumbers(Classifier):
    """Leaves out what is read where a split ends."""

    def assert_finite(self) -> None:
        pass

    def _means(self, split: str) -> dict[str, float]:
        return {}


class NoSideStream(GraphedStep):
    """Without what only CUDA has: the recording is never replayed."""

    def on_side_stream(self) -> Any:
        return nullcontext()

    def capture(self, run: Callable[[], None]) -> Callable[[], None]:
        run()
        return lambda: None


EMA = partial(Ema, decay=0.9, start_step=2)
SWA = partial(Swa, start_fraction=0.3, every_steps=2, bn_images=100)
LOOKAHEAD = partial(Lookahead, alpha=0.5, every_steps=2)
SAM = partial(Sam, rho=0.05, start_fraction=0.2)

SETUPS: dict[str, dict[str, Any]] = {
    "plain": {},
    "ema": {"callbacks": [EMA]},
    "sam, lookahead, swa": {"callbacks": [SAM, LOOKAHEAD, SWA]},
    "sam, bf16-mixed": {
        "trainer": {"plugins": [MixedPrecision("bf16-mixed", "cpu")]},
        "callbacks": [SAM],
    },
    "multistep, lookahead, swa": {"size": 4, "callbacks": [LOOKAHEAD, SWA]},
    "recorded, lookahead, swa": {
        "size": 4,
        "graphed_step": NoSideStream,
        "callbacks": [LOOKAHEAD, SWA],
    },
    "clipping": {"trainer": {"gradient_clip_val": 1.0}},
    "clipping by value": {
        "trainer": {"gradient_clip_val": 1.0, "gradient_clip_algorithm": "value"}
    },
    "accumulation": {"trainer": {"accumulate_grad_batches": 3}, "callbacks": [EMA]},
    "bf16-true": {"trainer": {"precision": "bf16-true"}},
    "bf16-mixed": {"trainer": {"plugins": [MixedPrecision("bf16-mixed", "cpu")]}, "size": 4},
    "multistep": {"size": 4},
    "multistep, ema": {"size": 4, "callbacks": [EMA]},
    "every transform": {"transforms": EVERY},
    "every transform, multistep": {"transforms": EVERY, "size": 4},
    "distillation": {"teachers": 2},
    "distillation, recorded": {"teachers": 1, "size": 4, "graphed_step": NoSideStream},
    "distillation, hard examples, sam": {"teachers": 1, "hard": True, "callbacks": [SAM]},
    "hard examples, multistep, ema": {"hard": True, "size": 4, "callbacks": [EMA]},
    "adamw": {"optimizer": ADAMW},
    "recorded": {"size": 4, "graphed_step": NoSideStream},
    "recorded adamw, ema": {
        "size": 4,
        "graphed_step": NoSideStream,
        "optimizer": ADAMW,
        "callbacks": [EMA],
    },
}


def made(
    folder: Path,
    network: str,
    within: WithinEpochs,
    *,
    size: int = 1,
    optimizer: Any = SGD,
    transforms: dict[str, Any] = STANDARD,
    callbacks: list[Any] | None = None,
    graphed_step: type[GraphedStep] | None = None,
    teachers: int = 0,
    hard: bool = False,
    trainer: dict[str, Any] | None = None,
) -> tuple[Trainer, Classifier, Synthetic]:
    route_library_logging()
    seed_everything(11, verbose=False)
    data = Synthetic(
        **{**FEED, "train_size": 400, "test_size": 90, "data_seed": 0, "batch_size": 40},
        val_size=60,
        augment=Pipeline(transforms=transforms),
        seed=3,
    )
    classifier = WithoutNumbers(
        network=NETWORKS[network](),
        loss=nn.CrossEntropyLoss(),
        optimizer=optimizer,
        schedule=partial(cosine, warmup_fraction=0.2, final_factor=0.1),
        config={},
        distillation=Distillation(
            [NETWORKS[network]() for _ in range(teachers)], temperature=4.0, weight=0.5
        )
        if teachers
        else None,
        hard_examples=HardExamples(
            NETWORKS[network](),
            loss=nn.CrossEntropyLoss(),
            optimizer=OptimizerFactory(optimizer),
            schedule=partial(cosine, warmup_fraction=0.2, final_factor=0.1),
            share=0.5,
            every=2,
        )
        if hard
        else None,
    )
    more = [make() for make in callbacks or []]
    fit = Trainer(
        default_root_dir=folder,
        max_epochs=2,
        logger=False,
        callbacks=[within, GradNorm(), *more],
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        **(trainer or {}),
    )
    data.open()
    classifier.train_on(arrange(fit, data, size), graphed_step=graphed_step)
    return fit, classifier, data


def check_steps(fit: Trainer, *, size: int = 1) -> None:
    assert fit.global_step == (6 if fit.accumulate_grad_batches > 1 else 18)
    assert (multistep_of(fit) is not None) == (size > 1)


def fit_on_meta(folder: Path, network: str, **setup: Any) -> Waits:
    within = WithinEpochs()
    within.waits = Waits("meta")
    within.waits.inside = False
    trainer = {"strategy": MetaStrategy(), **setup.pop("trainer", {})}
    fit, classifier, data = made(folder, network, within, trainer=trainer, **setup)
    with meta_device(), within.waits:
        fit.fit(classifier, datamodule=data)
    check_steps(fit, size=setup.get("size", 1))
    return within.waits


@pytest.mark.parametrize("setup", SETUPS)
@pytest.mark.parametrize("network", NETWORKS)
def test_a_fit_on_the_meta_device_reads_nothing_within_an_epoch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, network: str, setup: str
) -> None:
    monkeypatch.setattr(GradNorm, "_last", lambda *_: None)  # it is read where the epoch ends
    waits = fit_on_meta(tmp_path, network, **SETUPS[setup])
    assert waits.found == []
    assert waits.operators.total() > 1000


class ErrorsWithinEpochs(WithinEpochs):
    """CUDA itself raises where something waits."""

    def _open(self, wanted: bool) -> None:
        torch.cuda.set_sync_debug_mode("error" if wanted else "default")


ON_A_GPU = {**SETUPS, "16-mixed": {"trainer": {"precision": "16-mixed"}}}


@pytest.mark.gpu
# torch says once that it doesn't know all that waits
@pytest.mark.filterwarnings("ignore:Synchronization debug mode is a prototype")
@pytest.mark.parametrize("setup", ON_A_GPU)
@pytest.mark.parametrize("network", NETWORKS)
def test_a_fit_on_a_gpu_waits_for_nothing_within_an_epoch(
    tmp_path: Path, network: str, setup: str
) -> None:
    settings = dict(ON_A_GPU[setup])
    trainer = dict(settings.pop("trainer", {}))
    if trainer.pop("plugins", None):
        trainer["precision"] = "bf16-mixed"
    if "graphed_step" in settings:
        settings["graphed_step"] = GraphedStep
    trainer |= {"accelerator": "gpu", "devices": 1}
    within = ErrorsWithinEpochs()
    fit, classifier, data = made(tmp_path, network, within, trainer=trainer, **settings)
    try:
        fit.fit(classifier, datamodule=data)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    check_steps(fit, size=settings.get("size", 1))


# --- whole runs of the command line, with all that observes ---------------------------------------


RUN = (
    *(a for a in TINY if not a.startswith(("model", "monitors", "callbacks"))),
    *("model.width=4", "threads=1", "data.val_size=130", "augment=strong"),
    *("callbacks=ema", "monitors=default", "callbacks.ema.decay=0.9"),
    "+callbacks.within._target_=tests.support.device_laws.WithinEpochs",
)


@pytest.mark.parametrize(
    "more",
    [
        ("model=cnn",),
        (
            *("model=resnet10", "model.num_blocks=[1,1]", "steps_per_call=4"),
            "+augment.sizes=[[0,16],[1,32]]",
        ),
        (
            *("model=cnn", "trainer.precision=bf16-mixed", "trainer.gradient_clip_val=1"),
            "trainer.accumulate_grad_batches=2",
        ),
    ],
    ids=["plain", "multistep, resizing", "bf16, clipping, accumulation"],
)
def test_a_run_reads_nothing_within_an_epoch(
    lab: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, more: tuple[str, ...]
) -> None:
    waits = Waits("cpu")
    waits.inside = False
    monkeypatch.setattr(WithinEpochs, "waits", waits)
    with waits, reads_of_python(waits):
        status, _, err = lab(*RUN, *more, f"hydra.run.dir={tmp_path}/run")
    assert status == 0, err
    assert waits.found == []
    assert waits.operators.total() > 1000
