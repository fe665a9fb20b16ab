"""The average of the weights: what it is, who sees it, and that a stop doesn't change it."""

from __future__ import annotations

import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from cifar_lab.training.callbacks.ema import Ema
from cifar_lab.training.classifier import Classifier
from cifar_lab.training.lightning_internals import average_model
from tests.support.runs import SMALL, same, stop_at, stop_in, weights

Lab = Callable[..., tuple[int, str, str]]
EMA = (
    *[a for a in SMALL if not a.startswith("callbacks")],
    "callbacks=ema",
    "callbacks.ema.decay=0.9",
    "monitors=grad_norm",
)


def test_the_average_is_the_recurrence_and_validation_and_test_see_it(
    lab: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[torch.Tensor] = []
    tested: list[torch.Tensor] = []
    step, test_step = Classifier.training_step, Classifier.test_step

    def noted(self: Classifier, batch: Any, batch_idx: int) -> Any:
        if self.global_step:
            seen.append(self.network.get_parameter("features.0.weight").detach().clone())
        return step(self, batch, batch_idx)

    def noted_test(self: Classifier, batch: Any, batch_idx: int) -> Any:
        tested.append(self.network.get_parameter("features.0.weight").detach().clone())
        return test_step(self, batch, batch_idx)

    monkeypatch.setattr(Classifier, "training_step", noted)
    monkeypatch.setattr(Classifier, "test_step", noted_test)
    arguments = (*EMA, "data.val_size=0", "callbacks.ema.start_step=2", "trainer.max_epochs=1")
    status, _, err = lab(*arguments, f"hydra.run.dir={tmp_path}/run")
    assert (status, err) == (0, "")
    last = tmp_path / "run" / "checkpoints" / "last.ckpt"
    current = torch.load(last, weights_only=True)["current_model_state"]
    name = "network.features.0.weight"
    average, *rest = [*seen, current[name]][2:]
    for weight in rest:
        average = 0.9 * average + 0.1 * weight
    torch.testing.assert_close(weights(tmp_path / "run")[name], average)
    assert not torch.equal(average, current[name])
    torch.testing.assert_close(tested[0], average)


def test_a_network_with_a_cache_that_grows_is_averaged(lab: Lab, tmp_path: Path) -> None:
    own = ("model._target_=tests.training.test_trial.Cached", "~model.width", "~model.dropout")
    status, _, err = lab(
        *[a for a in EMA if not a.startswith("model.")],
        *("model=cnn", *own, "trainer.max_epochs=1", f"hydra.run.dir={tmp_path}/run"),
    )
    assert (status, err) == (0, "")


@pytest.mark.parametrize("val_size", [200, 0])
def test_before_it_begins_the_average_is_the_weights(
    lab: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, val_size: int
) -> None:
    none = (*[a for a in SMALL if not a.startswith("callbacks")], "callbacks=checkpoints")
    shared = f"data.val_size={val_size}"
    assert lab(*none, shared, f"hydra.run.dir={tmp_path}/none")[0] == 0
    # the last of its steps: an average of one is the weights too, and is refused
    steps = 16 if val_size else 24
    monkeypatch.setattr(Ema, "check_layout", lambda *_: None)
    late = (*EMA, f"callbacks.ema.start_step={steps - 1}", "monitors=none", shared)
    assert lab(*late, f"hydra.run.dir={tmp_path}/late")[0] == 0
    same(tmp_path / "none", tmp_path / "late")
    with monkeypatch.context() as patch:
        stop_at(patch, 5)
        assert lab(*late, f"hydra.run.dir={tmp_path}/cut")[0] == 130
    assert lab(*late, f"hydra.run.dir={tmp_path}/cut")[0] == 0
    same(tmp_path / "none", tmp_path / "cut")


@pytest.mark.parametrize("val_size", [200, 0])
@pytest.mark.parametrize(
    "stop",
    [
        lambda patch: stop_at(patch, 3),
        lambda patch: stop_at(patch, 9),
        lambda patch: stop_in(patch, "validation_step", 2),
        lambda patch: stop_in(patch, "on_train_epoch_end", 1),
        lambda patch: stop_in(patch, "test_step", 1),
    ],
    ids=["in an epoch", "in the next", "in the validation", "at the epoch's end", "in the test"],
)
def test_stopped_and_continued_equals_undisturbed_to_the_bit(
    lab: Lab,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    stop: Callable[[pytest.MonkeyPatch], None],
    val_size: int,
) -> None:
    arguments = (*EMA, f"data.val_size={val_size}")
    assert lab(*arguments, f"hydra.run.dir={tmp_path}/whole")[0] == 0
    stop(monkeypatch)
    status, _, err = lab(*arguments, f"hydra.run.dir={tmp_path}/cut")
    if status == 0:  # nothing held out, no validation to stop in
        assert val_size == 0
        return
    assert status == 128 + signal.SIGINT, err
    monkeypatch.undo()
    status, _, err = lab(*arguments, f"hydra.run.dir={tmp_path}/cut")
    assert status == 0, err
    same(tmp_path / "whole", tmp_path / "cut")


@pytest.mark.parametrize("start_step", [0, 5])
def test_several_steps_per_call_have_the_averages_of_single_ones(
    lab: Lab, tmp_path: Path, start_step: int
) -> None:
    arguments = (*EMA, f"callbacks.ema.start_step={start_step}")
    assert lab(*arguments, f"hydra.run.dir={tmp_path}/single")[0] == 0
    more = ("steps_per_call=3", f"hydra.run.dir={tmp_path}/several")
    status, _, err = lab(*arguments, *more)
    assert (status, err) == (0, "")
    same(tmp_path / "single", tmp_path / "several")
    single, several = (
        torch.load(tmp_path / n / "checkpoints/last.ckpt") for n in ("single", "several")
    )
    assert several["steps_per_call"] == 3
    for key, value in single["current_model_state"].items():
        assert torch.equal(several["current_model_state"][key], value), key
    assert several["averaging_state"] == single["averaging_state"]
    assert int(several["averaging_state"]["n_averaged"]) == 16 - start_step


def test_the_average_is_that_of_torchs_own_model_to_the_bit(lab: Lab, tmp_path: Path) -> None:
    assert lab(*EMA, f"hydra.run.dir={tmp_path}/ours")[0] == 0

    def theirs(self: Ema, module: Any) -> None:
        average = average_model(self)
        average.multi_avg_fn = self._average
        average.update_parameters(module)
        self._count += 1

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Ema, "_update", theirs)
        assert lab(*EMA, f"hydra.run.dir={tmp_path}/theirs")[0] == 0
    same(tmp_path / "ours", tmp_path / "theirs")


@pytest.mark.parametrize("bad", ["decay=1", "decay=-0.1", "start_step=-1"])
def test_wrong_numbers_are_told(lab: Lab, bad: str) -> None:
    status, _, err = lab(*EMA, f"callbacks.ema.{bad}")
    assert status == 2
    assert f"callbacks.ema.{bad}: must" in err
