"""Several optimizer steps per call of Lightning's loop change nothing but the time they take."""

from __future__ import annotations

import itertools
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import (
    EarlyStopping,
    GradientAccumulationScheduler,
    LambdaCallback,
    StochasticWeightAveraging,
)

from cifar_lab.config.validate import precision_warning
from cifar_lab.data.feed.epoch import Multistep
from cifar_lab.training.classifier import Classifier
from cifar_lab.training.steps.multistep import sees_steps
from tests.conftest import record_of
from tests.support.runs import SMALL, same

Lab = Callable[..., tuple[int, str, str]]

# 400 images in batches of 60: six whole ones and a short one
ARGUMENTS = (*(a for a in SMALL if not a.startswith("data.batch_size")), "data.batch_size=60")


@pytest.mark.parametrize("size", [1, 2, 3, 7, 50])
@pytest.mark.parametrize(("full", "batches"), [(6, 7), (6, 6), (0, 1), (7, 8)])
def test_calls_cover_an_epoch_once_and_their_counts_agree(
    size: int, full: int, batches: int
) -> None:
    multistep = Multistep(size=size, full=full, batches=batches, max_steps=None)
    position, ends = 0, [0]
    while position < batches:
        end = multistep.end(0, position)
        assert position < end <= batches
        assert end - position <= size
        assert end <= full or end - position == 1
        position = end
        ends.append(position)
    assert len(ends) - 1 == multistep.calls_per_epoch
    assert [multistep.batches_done(index) for index in range(len(ends))] == ends
    for index, (first, end) in enumerate(itertools.pairwise(ends)):
        # taken up anywhere inside a call, the epoch goes on to that call's end
        assert {multistep.calls_done(inside) for inside in range(first, end)} == {index}
        assert {multistep.end(3, inside) for inside in range(first, end)} == {end}


def test_a_call_ends_with_the_last_step_of_the_fit() -> None:
    multistep = Multistep(size=4, full=6, batches=7, max_steps=16)
    assert multistep.end(1, 4) == 6
    assert multistep.end(2, 0) == 2  # steps 15 and 16


@pytest.mark.parametrize("size", [2, 5, 16])
@pytest.mark.parametrize(
    "more",
    [
        (),
        ("trainer.limit_train_batches=5",),
        ("trainer.max_steps=9",),
        ("data.val_size=0",),
        ("trainer.precision=bf16-mixed",),
    ],
    ids=str,
)
def test_several_steps_per_call_equal_single_steps_to_the_bit(
    lab: Lab, tmp_path: Path, size: int, more: tuple[str, ...]
) -> None:
    status, _, before = lab(*ARGUMENTS, *more, f"hydra.run.dir={tmp_path}/single")
    assert status == 0, before
    status, _, err = lab(
        *ARGUMENTS, *more, f"steps_per_call={size}", f"hydra.run.dir={tmp_path}/multistep"
    )
    # that bfloat16 is slow here is all that may be said
    slow = precision_warning("bf16-mixed", "cpu") if "bf16" in str(more) else None
    said = "" if slow is None else f"{slow}\n"
    assert (status, err, before) == (0, said, said)
    same(tmp_path / "single", tmp_path / "multistep")
    single, several = (record_of(tmp_path / name) for name in ("single", "multistep"))
    assert single["steps"] == several["steps"]
    assert single["config_digest"] == several["config_digest"]


def test_a_run_stopped_in_a_call_may_go_on_in_others(
    lab: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = (*ARGUMENTS, "trainer.max_epochs=3")
    assert lab(*arguments, f"hydra.run.dir={tmp_path}/whole")[0] == 0
    pending = [1, 5, 8, 12, 16]
    forward = Classifier.forward

    def stopped(self: Classifier, images: Any) -> Any:
        if self.training and pending and self.global_step >= pending[0]:
            pending.pop(0)
            signal.raise_signal(signal.SIGINT)
        return forward(self, images)

    monkeypatch.setattr(Classifier, "forward", stopped)
    for size in (2, 4, 1, 3, 5):
        command = (*arguments, f"steps_per_call={size}", f"hydra.run.dir={tmp_path}/cut")
        status, _, err = lab(*command)
        assert status == 130, err
    assert not pending
    monkeypatch.undo()
    status, _, err = lab(*arguments, "steps_per_call=2", f"hydra.run.dir={tmp_path}/cut")
    assert status == 0, err
    same(tmp_path / "whole", tmp_path / "cut")


class Watcher(Callback):
    """A callback that somebody wrote for single batches."""

    seen = 0

    def on_train_batch_end(self, *arguments: Any) -> None:
        type(self).seen += 1


def test_a_callback_that_looks_at_every_step_gets_every_step_and_that_is_said_once(
    lab: Lab, tmp_path: Path
) -> None:
    status, _, err = lab(
        *ARGUMENTS,
        "steps_per_call=4",
        f"+callbacks.watcher._target_={Watcher.__module__}.Watcher",
        f"hydra.run.dir={tmp_path}/run",
    )
    assert status == 0
    assert err.count("the callback Watcher looks at every step; going on with one") == 1
    assert Watcher.seen == record_of(tmp_path / "run")["steps"] == 14


@pytest.mark.parametrize(
    ("callback", "sees"),
    [
        (Watcher(), True),
        (LambdaCallback(on_train_batch_end=print), True),
        (LambdaCallback(on_train_epoch_end=print), False),
        (StochasticWeightAveraging(swa_lrs=0.1), True),
        (GradientAccumulationScheduler(scheduling={0: 2}), True),
        (EarlyStopping(monitor="val/acc"), False),
    ],
)
def test_who_looks_at_every_step_is_known(callback: Callback, sees: bool) -> None:
    assert sees_steps(callback) is sees


@pytest.mark.parametrize(
    ("more", "reason"),
    [
        ("trainer.gradient_clip_val=1", "trainer.gradient_clip_val=1"),
        ("trainer.accumulate_grad_batches=2", "trainer.accumulate_grad_batches=2"),
        ("trainer.val_check_interval=0.5", "validates within epochs"),
        ("trainer.val_check_interval=1", "validates within epochs"),
        ("data.loader=torchvision", "hands out single batches"),
    ],
)
def test_what_needs_single_steps_gets_them(
    lab: Lab, tmp_path: Path, more: str, reason: str
) -> None:
    arguments = (*ARGUMENTS, "augment=none", "data.workers=0", "+" * ("interval" in more) + more)
    status, _, err = lab(*arguments, "steps_per_call=4", f"hydra.run.dir={tmp_path}/run")
    assert status == 0, err
    assert reason in err
    assert len(err.splitlines()) == 1
