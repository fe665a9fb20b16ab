"""A recorded step does what the step does; what only a GPU can show runs where there is one.

Without one the recording is a list of what the step would launch: the step itself, run again on the
tensors that were given when it was recorded. So everything that a CUDA graph would not see (numbers
that Python changes between steps, tensors that are replaced) goes wrong here too.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Trainer, seed_everything
from lightning.pytorch.callbacks import Timer
from torch import Tensor, nn

from cifar_lab.data.augment import Pipeline, RandomFlip
from cifar_lab.data.datamodule import Synthetic
from cifar_lab.errors import Diverged, InputError
from cifar_lab.model.resnet import ResNet
from cifar_lab.training.classifier import Classifier
from cifar_lab.training.library_logging import route_library_logging
from cifar_lab.training.schedules import cosine
from cifar_lab.training.steps.cuda_graph import WARMUP_STEPS, GraphedStep, check, check_calls
from cifar_lab.training.steps.multistep import arrange
from tests.conftest import FEED, TINY, record_of

Lab = Callable[..., tuple[int, str, str]]


class Repeated(GraphedStep):
    """Runs the step where CUDA would replay it, with all that Python holds as it was recorded."""

    recordings = 0
    replays = 0

    @contextmanager
    def on_side_stream(self) -> Iterator[None]:
        yield

    def capture(self, run: Callable[[], None]) -> Callable[[], None]:
        type(self).recordings += 1
        groups = self._optimizer.param_groups

        def replay() -> None:
            type(self).replays += 1
            rates = [group["lr"] for group in groups]
            for group in groups:
                group["lr"] = math.nan  # a graph doesn't see what the schedule puts there
            self._optimizer.zero_grad()
            run()
            for group, rate in zip(groups, rates, strict=True):
                group["lr"] = rate

        return replay


def fitted(
    folder: Path,
    optimizer: Callable[..., torch.optim.Optimizer],
    *,
    size: int = 4,
    graphed_step: type[GraphedStep] | None = None,
    precision: str = "32-true",
    accelerator: str = "cpu",
) -> tuple[Classifier, Trainer]:
    route_library_logging()
    seed_everything(11, verbose=False)
    data = Synthetic(
        **{**FEED, "train_size": 400, "test_size": 90, "data_seed": 0, "batch_size": 40},
        val_size=60,  # 8 whole batches and a short one
        augment=Pipeline(transforms={"flip": RandomFlip(p=0.5)}),
        seed=3,
    )
    network = ResNet(num_blocks=[1, 1], width=4)
    classifier = Classifier(
        network=nn.Sequential(network, nn.Dropout(0.1)),
        loss=nn.CrossEntropyLoss(),
        optimizer=optimizer,
        schedule=partial(cosine, warmup_fraction=0.2, final_factor=0.1),
        config={},
    )
    trainer = Trainer(
        default_root_dir=folder,
        accelerator=accelerator,
        max_epochs=3,
        precision=precision,  # type: ignore[arg-type]
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
    )
    data.open()
    multistep = arrange(trainer, data, size)
    classifier.train_on(multistep, graphed_step=graphed_step)
    trainer.fit(classifier, datamodule=data)
    return classifier, trainer


OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "sgd": partial(torch.optim.SGD, lr=0.05, momentum=0.9, nesterov=True, fused=True),
    "plain sgd": partial(torch.optim.SGD, lr=0.05, fused=True),
    "adamw": partial(torch.optim.AdamW, lr=0.003, fused=True),
}


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_replayed_steps_are_the_steps(tmp_path: Path, name: str, precision: str) -> None:
    Repeated.recordings = Repeated.replays = 0
    plain, trainer = fitted(tmp_path, OPTIMIZERS[name], precision=precision)
    ours, recorded = fitted(tmp_path, OPTIMIZERS[name], precision=precision, graphed_step=Repeated)
    assert Repeated.recordings == 1
    assert Repeated.replays == 3 * 8 - WARMUP_STEPS
    assert recorded.global_step == trainer.global_step == 3 * 9
    # the learning rate is a float32 on the device, which is all the difference
    for key, value in plain.state_dict().items():
        torch.testing.assert_close(ours.state_dict()[key], value, rtol=1e-3, atol=1e-5, msg=key)
    for metric, number in trainer.callback_metrics.items():
        torch.testing.assert_close(recorded.callback_metrics[metric], number, rtol=1e-4, atol=1e-4)
    rates = [t.optimizers[0].param_groups[0]["lr"] for t in (recorded, trainer)]
    assert rates[0] == rates[1]


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed", "bf16-true"])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_on_a_gpu_replayed_steps_are_the_steps(tmp_path: Path, name: str, precision: str) -> None:
    torch.backends.cudnn.deterministic = True
    try:
        plain, recorded = (
            fitted(
                tmp_path,
                OPTIMIZERS[name],
                precision=precision,
                graphed_step=graphed_step,
                accelerator="gpu",
            )[0].state_dict()
            for graphed_step in (None, GraphedStep)
        )
    finally:
        torch.backends.cudnn.deterministic = False
    loose = precision != "32-true"  # a last bit of a rate is one of a weight's few
    for key, value in plain.items():
        torch.testing.assert_close(
            recorded[key],
            value,
            rtol=0.05 if loose else 1e-3,
            atol=0.02 if loose else 1e-4,
            msg=key,
        )


@pytest.mark.parametrize("size", [3, 16])
def test_the_size_of_blocks_changes_nothing(tmp_path: Path, size: int) -> None:
    reference, _ = fitted(tmp_path, OPTIMIZERS["sgd"], graphed_step=Repeated)
    other, _ = fitted(tmp_path, OPTIMIZERS["sgd"], size=size, graphed_step=Repeated)
    for key, value in reference.state_dict().items():
        assert torch.equal(other.state_dict()[key], value), key


def test_the_first_bad_step_is_known_in_a_replay_too(tmp_path: Path) -> None:
    huge = partial(torch.optim.SGD, lr=1e20, fused=True)
    with pytest.raises(Diverged, match="became NaN or infinite at step") as plain:
        fitted(tmp_path, huge)
    with pytest.raises(Diverged) as recorded:
        fitted(tmp_path, huge, graphed_step=Repeated)
    assert str(recorded.value) == str(plain.value)


class Counted(GraphedStep):
    """Says of which kind each step was."""

    @contextmanager
    def on_side_stream(self) -> Iterator[None]:
        self.kinds.append("warm-up")
        yield

    def capture(self, run: Callable[[], None]) -> Callable[[], None]:
        self.kinds.append("recording")
        return lambda: self.kinds.append("replay")

    kinds: list[str]


def test_short_batches_are_neither_recorded_nor_replayed() -> None:
    weight = nn.Parameter(torch.ones(1))
    steps: list[int] = []

    def step(images: Tensor, labels: Tensor) -> None:
        steps.append(len(images))
        weight.grad = torch.ones(1)

    whole = Counted(
        step=step,
        optimizer=torch.optim.SGD([weight], lr=1.0),
        batch_size=4,
        device=torch.device("cpu"),
    )
    whole.kinds = []
    for size in (4, 3, 4, 4, 3, 4, 4, 3, 4):
        whole(torch.zeros(size, 3, 2, 2), torch.zeros(size))
    assert whole.kinds == ["warm-up"] * 3 + ["recording"] + ["replay"] * 3
    assert steps == [4, 3, 4, 4, 3, 3]


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"device": "cpu"}, "needs a CUDA device, and this is cpu"),
        ({"precision": "16-mixed"}, "set trainer.precision=bf16-mixed"),
        ({"fused": False}, "SGD as it is set reads its learning rate on the CPU"),
    ],
)
def test_what_cannot_be_recorded_is_refused(changes: dict[str, Any], reason: str) -> None:
    settings: dict[str, Any] = {"device": "cuda", "precision": "32-true", "fused": True, **changes}
    optimizer = torch.optim.SGD([nn.Parameter(torch.ones(1))], fused=settings.pop("fused"))
    with pytest.raises(InputError, match="cuda_graph=true: ") as refused:
        check(optimizer, **settings)
    assert reason in str(refused.value)


@pytest.mark.parametrize("precision", ["16-true", "bf16-true", "bf16-mixed", "32-true"])
def test_precisions_without_a_scaler_can_be_recorded(precision: str) -> None:
    optimizer = torch.optim.SGD([nn.Parameter(torch.ones(1))], fused=True)
    check(optimizer, device="cuda", precision=precision)


@pytest.mark.parametrize(
    ("size", "more", "reason"),
    [
        (1, {}, "set steps_per_call=16"),
        (4, {"gradient_clip_val": 1.0}, "trainer.gradient_clip_val=1.0, so that"),
        (4, {"accumulate_grad_batches": 2}, "trainer.accumulate_grad_batches=2, so that"),
        (4, {"val_check_interval": 0.5}, "validates within epochs, so that"),
        (4, {"callbacks": [Timer()]}, "the callback Timer looks at every step, so that"),
    ],
)
def test_what_keeps_a_step_from_being_recorded_is_named(
    tmp_path: Path, size: int, more: dict[str, Any], reason: str
) -> None:
    data = Synthetic(
        **{**FEED, "train_size": 400, "test_size": 90, "data_seed": 0, "batch_size": 40},
        val_size=60,
        augment=Pipeline(transforms={}),
        seed=3,
    )
    trainer = Trainer(
        default_root_dir=tmp_path,
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        **more,
    )
    with pytest.raises(InputError, match="cuda_graph=true: ") as refused:
        check_calls(trainer, data, steps_per_call=size, singly=None)
    assert reason in str(refused.value)


def test_a_cpu_is_refused_before_anything_is_on_disk(lab: Lab, tmp_path: Path) -> None:
    status, _, err = lab(*TINY, "cuda_graph=true", f"hydra.run.dir={tmp_path}/run")
    assert status == 2
    assert "cuda_graph=true: needs a CUDA device" in err
    assert not (tmp_path / "run").exists()


@pytest.mark.gpu
@pytest.mark.parametrize("compiled", ["none", "default"])
def test_on_a_gpu_a_recorded_run_is_the_run(lab: Lab, tmp_path: Path, compiled: str) -> None:
    arguments = (
        *(a for a in TINY if a != "trainer=cpu"),
        *("trainer=gpu", "model.width=16", "trainer.max_epochs=4", f"compile={compiled}"),
    )
    assert lab(*arguments, f"hydra.run.dir={tmp_path}/plain")[0] == 0
    recorded_steps = ("cuda_graph=true", "steps_per_call=4")
    status, _, err = lab(*arguments, *recorded_steps, f"hydra.run.dir={tmp_path}/recorded")
    assert (status, err) == (0, "")
    plain, recorded = (record_of(tmp_path / name) for name in ("plain", "recorded"))
    assert recorded["steps"] == plain["steps"]
    for metric in ("train/loss", "val/loss", "test/loss"):
        assert recorded["metrics"][metric] == pytest.approx(plain["metrics"][metric], rel=0.05)
