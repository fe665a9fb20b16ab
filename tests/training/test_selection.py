"""What is tested: the weights that were validated with the best value, and why is said."""

from __future__ import annotations

import csv
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loops.fit_loop import _FitLoop

from cifar_lab.config.compose import compose, run_config
from cifar_lab.errors import InputError
from cifar_lab.run.build import build
from cifar_lab.training.callbacks.checkpoints import Checkpoints
from cifar_lab.training.selection import Mode, is_better, meaning, mode_of
from tests.conftest import record_of
from tests.support.runs import SMALL, same, stop_at, stop_in

Lab = Callable[..., tuple[int, str, str]]
# 8 steps an epoch, 4 batches of held-out images
BARE = tuple(a for a in SMALL if not a.startswith("callbacks"))
EMA = (*BARE, "callbacks=ema", "callbacks.ema.decay=0.5")


class Scripted(Callback):
    """Logs the values it is given, one a validation; null is NaN, and "" logs nothing."""

    def __init__(self, *, values: list[Any], name: str = "val/f1") -> None:
        self._values, self._name = iter(values), name

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if (value := next(self._values)) != "":
            self.log(  # type: ignore[attr-defined]  # Lightning gives it to callbacks
                self._name, torch.tensor(math.nan if value is None else value)
            )


SCRIPTED = f"+callbacks.scripted._target_={__name__}.Scripted"


# --- which way is better --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("metric", "mode"),
    [
        *[(name, "min") for name in ("val/loss", "train/loss", "val/nll_loss", "val/error")],
        *[(name, "max") for name in ("val/acc", "val/top5_acc", "val/balanced_accuracy")],
        *[(name, None) for name in ("val/f1", "lr", "val/loss_ratio", "val/accordance")],
    ],
)
def test_a_name_says_which_values_are_better_or_says_nothing(metric: str, mode: Any) -> None:
    assert meaning(metric) == mode
    if mode is None:
        assert mode_of(metric, "min") == "min"
        with pytest.raises(InputError, match=f"the name {metric} doesn't say"):
            mode_of(metric, None)
    else:
        assert mode_of(metric, None) == mode_of(metric, mode) == mode
        other: Mode = "max" if mode == "min" else "min"
        way = "lower" if mode == "min" else "higher"
        with pytest.raises(InputError, match=f"better the {way} it is; must be {mode}"):
            mode_of(metric, other)


def test_of_equal_values_the_earlier_stays_and_nan_is_never_the_best() -> None:
    assert is_better(0.5, None, "max")
    assert is_better(0.6, 0.5, "max")
    assert is_better(0.4, 0.5, "min")
    for mode in ("min", "max"):
        assert not is_better(0.5, 0.5, mode)
        assert not is_better(math.nan, None, mode)
        assert not is_better(math.nan, 0.5, mode)
    assert not is_better(0.4, 0.5, "max")
    assert not is_better(0.6, 0.5, "min")
    assert is_better(math.inf, 0.5, "max")


@pytest.mark.parametrize(
    ("values", "mode", "best"),
    [
        ([0.3, 0.5, 0.4, 0.5], "max", 2),
        ([0.3, 0.5, 0.4, 0.3], "min", 1),
        ([0.3, 0.2, 0.2, 0.4], "min", 2),
        ([0.1, 0.2, 0.3, 0.4], "max", 4),
        ([None, 0.2, None, 0.1], "max", 2),
        ([None, 0.2, None, 0.1], "min", 4),
        ([0.0, -1.0, -2.0, None], "min", 3),
        ([None, None, None, None], "max", None),
    ],
    ids=str,
)
def test_the_best_is_kept_and_tested_and_the_record_says_so(
    lab: Lab, tmp_path: Path, values: list[float | None], mode: str, best: int | None
) -> None:
    listed = ",".join("null" if value is None else str(value) for value in values)
    run = tmp_path / "run"
    status, _, err = lab(
        *SMALL,
        *(SCRIPTED, f"+callbacks.scripted.values=[{listed}]"),
        *("callbacks.checkpoints.monitor=val/f1", f"callbacks.checkpoints.mode={mode}"),
        *("trainer.max_epochs=4", "trainer.limit_train_batches=1", f"hydra.run.dir={run}"),
    )
    assert status == 0, err
    record = record_of(run)
    assert record["best_epoch"] == record["best_step"] == best
    if best is None:
        assert record["tested"] == "last"
        assert record["tested_because"] == "val/f1 was never a number"
        assert err == (
            "the last weights are tested, and none were selected: val/f1 was never a number\n"
        )
        assert not (run / "checkpoints" / "best.ckpt").exists()
        return
    assert err == ""
    assert record["tested"] == "best"
    assert record["tested_because"] == f"{'lowest' if mode == 'min' else 'highest'} val/f1"
    assert record["metrics"]["val/f1"] == pytest.approx(values[best - 1])
    kept = torch.load(run / "checkpoints" / "best.ckpt", weights_only=True)
    assert kept["global_step"] == best
    assert record["metrics"]["val/acc"] == validated(run, SMALL)["val/acc"]


# --- what the record says belongs to the weights that are kept ------------------------------------


def validated(run_dir: Path, arguments: Sequence[str], file: str = "best.ckpt") -> dict[str, float]:
    """What the weights of a checkpoint have on the held-out images, computed anew."""
    cfg = compose([*arguments, "logger=csv", "callbacks=checkpoints"])
    parts = build(cfg, run_config(cfg), run_dir)
    state = torch.load(run_dir / "checkpoints" / file, weights_only=True)["state_dict"]
    parts.classifier.load_state_dict(state)
    parts.trainer.validate(parts.classifier, datamodule=parts.data, verbose=False)
    return {name: float(value) for name, value in parts.trainer.callback_metrics.items()}


def logged(run_dir: Path, metric: str) -> list[float]:
    with open(run_dir / "metrics.csv", newline="") as file:
        return [float(row[metric]) for row in csv.DictReader(file) if row[metric]]


EPOCHS = ((), 3)
QUARTERS = (("+trainer.val_check_interval=0.25",), 12)
BATCHES = (("+trainer.val_check_interval=3",), 6)
ACROSS = (("+trainer.val_check_interval=5", "trainer.check_val_every_n_epoch=null"), 4)


@pytest.mark.parametrize(
    ("arguments", "monitor", "interval", "validations"),
    [
        (SMALL, "val/loss", *EPOCHS),
        (SMALL, "val/loss", *QUARTERS),
        (SMALL, "val/acc", *BATCHES),
        (SMALL, "val/loss", *ACROSS),
        (EMA, "val/loss", *EPOCHS),
        (EMA, "val/acc", *QUARTERS),
    ],
    ids=["epochs", "quarters", "batches", "across epochs", "averages", "averages in quarters"],
)
def test_what_the_record_says_is_of_the_best_weights_which_are_tested(
    lab: Lab,
    tmp_path: Path,
    arguments: tuple[str, ...],
    monitor: str,
    interval: tuple[str, ...],
    validations: int,
) -> None:
    run = tmp_path / "run"
    # so high a rate that the last one isn't the best
    more = (f"callbacks.checkpoints.monitor={monitor}", "optimizer.lr=0.3", "trainer.max_epochs=3")
    status, _, err = lab(*arguments, *more, *interval, f"hydra.run.dir={run}")
    assert (status, err) == (0, "")
    record, values = record_of(run), logged(run, monitor)
    assert len(values) == validations
    best = min(values) if monitor == "val/loss" else max(values)
    of_kept = validated(run, BARE)
    assert record["metrics"][monitor] == best == of_kept[monitor]
    assert record["metrics"]["val/loss"] == of_kept["val/loss"]
    assert record["metrics"]["val/acc"] == of_kept["val/acc"]
    assert record["tested_because"] == f"{'lowest' if 'loss' in monitor else 'highest'} {monitor}"


WITHIN = (
    *("callbacks.checkpoints.monitor=val/loss", "optimizer.lr=0.1"),
    "+trainer.val_check_interval=3",
)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """The run that nothing happened to, made once for each command."""
    folder, made = tmp_path_factory.mktemp("undisturbed"), dict[tuple[str, ...], Path]()

    def of(lab: Lab, *command: str) -> Path:
        if command not in made:
            run = folder / str(len(made))
            assert lab(*command, f"hydra.run.dir={run}")[0] == 0
            made[command] = run
        return made[command]

    return of


# validated after steps 3, 6, 11 and 14 of 16, four batches each
@pytest.mark.parametrize(
    ("arguments", "stop"),
    [
        (SMALL, lambda patch: stop_at(patch, 2)),
        (SMALL, lambda patch: stop_at(patch, 3, 5, 7, 8)),
        (SMALL, lambda patch: stop_in(patch, "validation_step", 1)),
        (SMALL, lambda patch: stop_in(patch, "validation_step", 12)),
        (EMA, lambda patch: stop_at(patch, 3)),
        (EMA, lambda patch: stop_in(patch, "validation_step", 5)),
    ],
)
def test_validated_within_the_epoch_a_stopped_run_goes_on_to_the_bit(
    lab: Lab,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    undisturbed: Callable[..., Path],
    arguments: tuple[str, ...],
    stop: Callable[[pytest.MonkeyPatch], None],
) -> None:
    whole = undisturbed(lab, *arguments, *WITHIN)
    stop(monkeypatch)
    status, starts = 130, 0
    while status == 130:
        status, _, err = lab(*arguments, *WITHIN, f"hydra.run.dir={tmp_path}/cut")
        starts += 1
    assert status == 0, err
    assert starts > 1
    same(whole, tmp_path / "cut")


# a checkpoint for each of these validations, and one for each epoch
@pytest.mark.parametrize("save", [0, 1, 2, 4])
def test_a_crash_right_behind_a_checkpoint_loses_nothing(
    lab: Lab,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    undisturbed: Callable[..., Path],
    save: int,
) -> None:
    whole = undisturbed(lab, *SMALL, *WITHIN)
    save_last, calls = Checkpoints.save_last, iter(range(100))

    def crashing(self: Checkpoints, *arguments: Any) -> None:
        save_last(self, *arguments)
        if next(calls) == save:
            raise ZeroDivisionError("on purpose")

    monkeypatch.setattr(Checkpoints, "save_last", crashing)
    assert lab(*SMALL, *WITHIN, f"hydra.run.dir={tmp_path}/cut")[0] == 1
    monkeypatch.undo()
    status, _, err = lab(*SMALL, *WITHIN, f"hydra.run.dir={tmp_path}/cut")
    assert status == 0, err
    same(whole, tmp_path / "cut")


# --- the last weights are tested, and why is said -------------------------------------------------


@pytest.mark.parametrize(
    ("more", "because", "warned"),
    [
        (("data.val_size=0",), "nothing was held out to select with", False),
        (
            ("~callbacks.checkpoints",),
            "no callback selects: callbacks.checkpoints is missing",
            False,
        ),
        (
            ("callbacks.checkpoints.monitor=null",),
            "callbacks.checkpoints.monitor=null selects none",
            False,
        ),
        (
            ("callbacks.checkpoints.monitor=null", "trainer.limit_val_batches=0"),
            "callbacks.checkpoints.monitor=null selects none",
            False,
        ),
        (("trainer.max_steps=3",), "the fit ended before its first validation", True),
    ],
    ids=str,
)
def test_why_the_last_weights_are_tested(
    lab: Lab, tmp_path: Path, more: tuple[str, ...], because: str, warned: bool
) -> None:
    status, out, err = lab(*SMALL, *more, f"hydra.run.dir={tmp_path}/run")
    assert status == 0, err
    assert (because in err) == warned
    assert len(err.splitlines()) == int(warned)
    record = record_of(tmp_path / "run")
    assert (record["tested"], record["tested_because"]) == ("last", because)
    assert (record["best_epoch"], record["best_step"]) == (None, None)
    assert f"last epoch ({because})" in out


NULL = "callbacks.checkpoints.monitor=null"


# 3 epochs of 8 steps: validated after the second, after the last, and never in the last
@pytest.mark.parametrize(
    ("none", "more", "known"),
    [
        (NULL, ("trainer.check_val_every_n_epoch=2",), False),
        (NULL, ("trainer.check_val_every_n_epoch=3",), True),
        ("~callbacks.checkpoints", ("+trainer.val_check_interval=5",), False),
        (NULL, ("trainer.max_steps=20",), False),
        ("~callbacks.checkpoints", ("trainer.max_steps=16",), True),
    ],
    ids=str,
)
def test_a_validation_of_other_weights_is_not_said_of_the_last(
    lab: Lab, tmp_path: Path, none: str, more: tuple[str, ...], known: bool
) -> None:
    run = tmp_path / "run"
    status, out, err = lab(*SMALL, none, "trainer.max_epochs=3", *more, f"hydra.run.dir={run}")
    assert (status, err) == (0, "")
    metrics, last = record_of(run)["metrics"], logged(run, "val/acc")[-1]
    assert metrics["val/acc"] == (last if known else None)
    assert (metrics["val/loss"] is None) == (not known)
    assert ("\nvalidation" in out) == known


def test_a_metric_that_no_validation_logs_ends_the_run(lab: Lab, tmp_path: Path) -> None:
    status, _, err = lab(
        *SMALL,
        *(SCRIPTED, "+callbacks.scripted.values=['','']"),
        *("callbacks.checkpoints.monitor=val/f1", "callbacks.checkpoints.mode=max"),
        f"hydra.run.dir={tmp_path}/run",
    )
    assert status == 1
    record = record_of(tmp_path / "run")
    assert record["status"] == "failed"
    line = "callbacks.checkpoints.monitor=val/f1: the validation didn't log it"
    assert record["error"] == f"{line}; it logged val/acc, val/loss"
    assert line in err
    assert "test/acc" not in record["metrics"]


def test_a_fit_without_a_step_is_not_tested(
    lab: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # as a time limit does that is over before the fit begins
    monkeypatch.setattr(_FitLoop, "done", True)
    status, *_ = lab(*SMALL, f"hydra.run.dir={tmp_path}/run")
    assert status == 1
    record = record_of(tmp_path / "run")
    assert record["status"] == "failed"
    assert "before its first optimizer step" in record["error"]
    assert "test/acc" not in record["metrics"]


# --- refused before anything is on disk -----------------------------------------------------------

EARLY = ("callbacks=early_stopping",)
MINE = "+callbacks.mine._target_=lightning.pytorch.callbacks.ModelCheckpoint"
REFUSED: list[tuple[Sequence[str], Sequence[str]]] = [
    (["callbacks.checkpoints.monitor=val/nope"], ["val/nope: nothing logs it", "val/acc"]),
    (["callbacks.checkpoints.monitor=val/los"], ["did you mean val/loss?"]),
    (["callbacks.checkpoints.monitor=test/acc"], ["test/acc", "once, after the fit"]),
    (["callbacks.checkpoints.monitor=test/acc", "data.val_size=0"], ["once, after the fit"]),
    (["callbacks.checkpoints.monitor=train/loss"], ["train/loss: held-out images alone", "null"]),
    (["callbacks.checkpoints.monitor=lr"], ["lr: held-out images alone"]),
    (
        ["callbacks.checkpoints.monitor=val/loss", "callbacks.checkpoints.mode=max"],
        ["callbacks.checkpoints.mode=max", "the lower it is; must be min"],
    ),
    (["callbacks.checkpoints.mode=min"], ["val/acc is better the higher it is; must be max"]),
    (["callbacks.checkpoints.mode=best"], ["callbacks.checkpoints.mode=best: must be", "min"]),
    (
        [SCRIPTED, "+callbacks.scripted.values=[]", "callbacks.checkpoints.monitor=val/f1"],
        ["callbacks.checkpoints.mode=null: the name val/f1 doesn't say", "min or max"],
    ),
    (
        ["trainer.check_val_every_n_epoch=3"],
        ["trainer.check_val_every_n_epoch=3 and trainer.max_epochs=2", "2 or less", "monitor=null"],
    ),
    (["trainer.limit_val_batches=0"], ["200 images are held out", "limit_val_batches=0", "null"]),
    (["trainer.limit_val_batches=0.0"], ["limit_val_batches=0.0"]),
    (["+trainer.val_check_interval=00:00:10:00"], ["=00:00:10:00", "the clock", "batches"]),
    (["+trainer.val_check_interval=0"], ["val_check_interval=0: must be at least 1"]),
    (["+trainer.val_check_interval=0.1"], ["val_check_interval=0.1: must be at least 1"]),
    (["+trainer.val_check_interval=9"], ["val_check_interval=9: must be at most 8", "=null"]),
    (
        ["+trainer.val_check_interval=4", "trainer.accumulate_grad_batches=3"],
        ["val_check_interval=4: validates within a step", "must be a multiple of it"],
    ),
    (
        ["+trainer.val_check_interval=0.5", "trainer.accumulate_grad_batches=3"],
        ["val_check_interval=0.5: validates within a step", "(4 batches here)"],
    ),
    (
        [
            *("+trainer.val_check_interval=9", "trainer.check_val_every_n_epoch=null"),
            "trainer.accumulate_grad_batches=3",
        ],
        ["an epoch's 8 batches must be a multiple of it as well"],
    ),
    (
        [
            "+callbacks.second._target_=cifar_lab.training.callbacks.checkpoints.Checkpoints",
            *("+callbacks.second.monitor=val/loss", "+callbacks.second.every_minutes=null"),
        ],
        ["callbacks.second: callbacks.checkpoints keeps the checkpoints"],
    ),
    ([MINE, "+callbacks.mine.monitor=val/acc"], ["callbacks.mine.mode=min", "must be max"]),
    ([MINE, "+callbacks.mine.monitor=test/loss"], ["callbacks.mine.monitor=test/loss"]),
    ([MINE, "~logger.csv", "~logger.tensorboard"], ["ModelCheckpoint", "dirpath of its own"]),
    (
        [MINE, "+callbacks.mine.monitor=val/loss", "data.val_size=0"],
        ["callbacks.mine.monitor=val/loss: nothing is held out"],
    ),
    (
        [*EARLY, "callbacks.early_stopping.monitor=val/loss"],
        ["callbacks.early_stopping.mode=max: val/loss is better the lower", "must be min"],
    ),
    (
        [*EARLY, "callbacks.early_stopping.monitor=val/nope"],
        ["callbacks.early_stopping.monitor=val/nope: nothing logs it"],
    ),
    (
        [*EARLY, "callbacks.early_stopping.monitor=test/acc"],
        ["callbacks.early_stopping.monitor=test/acc", "once, after the fit"],
    ),
    (
        [*EARLY, "callbacks.checkpoints.monitor=null", "trainer.limit_val_batches=0"],
        ["callbacks.early_stopping.monitor=val/acc: no batch is validated"],
    ),
    (
        [
            *(*EARLY, "callbacks.checkpoints.monitor=null", "trainer.max_epochs=2"),
            "trainer.check_val_every_n_epoch=3",
        ],
        ["callbacks.early_stopping.monitor=val/acc: no epoch is validated"],
    ),
    (
        [
            *(*EARLY, "trainer.check_val_every_n_epoch=2"),
            "+callbacks.early_stopping.check_on_train_epoch_end=true",
        ],
        ["check_on_train_epoch_end=true: val/acc is not new at the end of every epoch"],
    ),
    (
        [
            *(*EARLY, "trainer.check_val_every_n_epoch=2", "callbacks.early_stopping.mode=min"),
            *("callbacks.early_stopping.monitor=train/loss", "data.val_size=0"),
        ],
        ["train/loss: is new where an epoch ends", "check_on_train_epoch_end=true"],
    ),
    (
        [
            "+callbacks.own._target_=lightning.pytorch.callbacks.EarlyStopping",
            *(SCRIPTED, "+callbacks.scripted.values=[]", "+callbacks.own.monitor=val/f1"),
        ],
        ["callbacks.own.mode=null: the name val/f1 doesn't say"],
    ),
    (
        ["+trainer.plugins=[{_target_:lightning.pytorch.plugins.io.AsyncCheckpointIO}]"],
        ["trainer.plugins: AsyncCheckpointIO", "callbacks.checkpoints"],
    ),
    (["trainer.limit_test_batches=0"], ["limit_test_batches=0", "ends with its test"]),
]


@pytest.mark.parametrize(("more", "parts"), REFUSED, ids=lambda value: " ".join(value)[:60])
def test_what_can_not_select_is_one_line_and_nothing_on_disk(
    lab: Lab, tmp_path: Path, more: Sequence[str], parts: Sequence[str]
) -> None:
    status, out, err = lab(*SMALL, *more, f"hydra.run.dir={tmp_path}/run")
    assert status == 2, err
    assert len(err.splitlines()) == 1, err
    assert out == ""
    for part in parts:
        assert part in err
    assert not (tmp_path / "run").exists()


def test_a_checkpoint_callback_of_lightning_beside_ours_changes_nothing(
    lab: Lab, tmp_path: Path
) -> None:
    assert lab(*SMALL, f"hydra.run.dir={tmp_path}/alone")[0] == 0
    status, _, err = lab(
        *SMALL,
        *(MINE, f"+callbacks.mine.dirpath={tmp_path}/mine", "+callbacks.mine.save_last=true"),
        *("+callbacks.mine.monitor=val/loss", f"hydra.run.dir={tmp_path}/both"),
    )
    assert (status, err) == (0, "")
    same(tmp_path / "alone", tmp_path / "both")
    assert (tmp_path / "mine" / "last.ckpt").exists()
    names = [
        sorted(p.name for p in (tmp_path / run / "checkpoints").iterdir())
        for run in ("alone", "both")
    ]
    assert names[0] == names[1]
