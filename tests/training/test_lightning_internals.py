"""What `cifar_lab.training.lightning_internals` takes for granted, asked of Lightning itself."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import WeightAveraging
from lightning.pytorch.core.optimizer import LightningOptimizer
from lightning.pytorch.loggers import TensorBoardLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor

from cifar_lab.training import lightning_internals as internals
from tests.support.toy import Batches, MakeData, MakeTrainer, Toy, ToyData


class Noted(Callback):
    """What a function of the trainer says at each hook."""

    def __init__(self, **asked: Any) -> None:
        self._asked = asked
        self.said: dict[str, list[Any]] = {hook: [] for hook in asked}

    def _note(self, hook: str, trainer: Trainer) -> None:
        if hook in self._asked:
            self.said[hook].append(self._asked[hook](trainer))

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._note("train_start", trainer)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._note("epoch_start", trainer)

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        self._note("batch_start", trainer)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self._note("batch_end", trainer)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._note("epoch_end", trainer)

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._note("validation", trainer)


class Saving(Callback):
    """Saves when the batch number ``after`` of an epoch is over, and keeps what was saved."""

    def __init__(self, path: Path, *, after: int) -> None:
        self._path, self._after = path, after
        self.saved: list[dict[str, Any]] = []

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if batch_idx == self._after:
            trainer.save_checkpoint(self._path)


class Resumable(Batches):
    """Batches that know where they are, as ours do."""

    def __init__(self, count: int) -> None:
        super().__init__(count)
        self.position = 0

    def __iter__(self) -> Any:
        for position, batch in enumerate(list(super().__iter__())):
            if position >= self.position:
                self.position = position + 1
                yield batch
        self.position = 0

    def state_dict(self) -> dict[str, int]:
        return {"position": self.position}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.position = state["position"] % self.count


class ResumableData(ToyData):
    def train_dataloader(self) -> Batches:
        return Resumable(self.counts[0])


class Plain(Toy):
    """Without figures of its own: an epoch that goes on may have none."""

    def on_train_epoch_end(self) -> None:
        pass


class Manual(Toy):
    """Makes the steps of a call itself, as `Classifier` does with several: all but the first."""

    def __init__(self, steps: int) -> None:
        super().__init__()
        self.automatic_optimization = False
        self._steps = steps

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Any:
        loss = super().training_step(batch, batch_idx)
        optimizer = self.optimizers()
        assert isinstance(optimizer, LightningOptimizer)
        optimizer.zero_grad()
        self.manual_backward(loss)
        optimizer.step()
        for _ in range(self._steps - 1):
            with internals.counted_step(optimizer):
                optimizer.optimizer.step()
        internals.add_logged_steps(self.trainer, self._steps - 1)


# --- what the connectors hang on a Trainer --------------------------------------------------------


def test_callbacks_run_in_the_order_in_which_they_are_set(
    toy: Toy, toy_data: MakeData, make_trainer: MakeTrainer
) -> None:
    turns: list[str] = []
    one, other, late = (
        Noted(train_start=lambda trainer, name=name: turns.append(name))
        for name in ("one", "other", "late")
    )
    trainer = make_trainer(max_epochs=1, callbacks=[one, other])
    assert internals.callbacks_of(trainer) == [one, other]
    internals.set_callbacks(trainer, [late, other, one])
    trainer.fit(toy, datamodule=toy_data())
    assert turns == ["late", "other", "one"]
    assert internals.callbacks_of(trainer) == [late, other, one]


def test_the_datamodule_is_that_of_the_fit(
    toy: Toy, toy_data: MakeData, make_trainer: MakeTrainer
) -> None:
    trainer, data = make_trainer(max_epochs=1), toy_data()
    trainer.fit(toy, datamodule=data)
    assert internals.datamodule_of(trainer) is data


def test_the_limit_of_batches_counts_as_it_was_last_set(
    toy: Toy, toy_data: MakeData, make_trainer: MakeTrainer
) -> None:
    trainer = make_trainer(max_epochs=1, limit_train_batches=2)
    internals.set_limit_train_batches(trainer, 1.0)
    trainer.fit(toy, datamodule=toy_data(train=4))
    assert trainer.global_step == 4


# --- where the training loop is -------------------------------------------------------------------


def test_calls_are_counted_from_each_epochs_start(
    toy: Toy, toy_data: MakeData, make_trainer: MakeTrainer
) -> None:
    index = Noted(**dict.fromkeys(("batch_start", "batch_end", "epoch_end"), internals.call_index))
    hooks = ("epoch_start", "batch_start", "epoch_end")
    done = Noted(**dict.fromkeys(hooks, internals.calls_done))
    trainer = make_trainer(callbacks=[index, done])
    trainer.fit(toy, datamodule=toy_data(train=3, val=0))
    assert index.said == {
        "batch_start": [0, 1, 2] * 2,
        "batch_end": [0, 1, 2] * 2,
        "epoch_end": [2, 2],
    }
    assert done.said["batch_start"] == [0, 1, 2] * 2
    assert done.said["epoch_end"] == [3, 3]
    # those of the epoch before, or none any more
    assert done.said["epoch_start"][0] == 0
    assert done.said["epoch_start"][1] in (0, 3)


def test_a_fit_that_goes_on_knows_the_calls_behind_it(
    make_trainer: MakeTrainer, tmp_path: Path
) -> None:
    path = tmp_path / "cut.ckpt"
    make_trainer(max_epochs=1, callbacks=[Saving(path, after=1)]).fit(
        Plain(), datamodule=ResumableData(train=4, val=0, test=1)
    )
    done = Noted(train_start=internals.calls_done)
    trainer = make_trainer(max_epochs=1, callbacks=[done])
    trainer.fit(Plain(), datamodule=ResumableData(train=4, val=0, test=1), ckpt_path=path)
    assert done.said == {"train_start": [2]}
    assert trainer.global_step == 4


@pytest.mark.parametrize("every", [2, 3, 5])
@pytest.mark.parametrize("per_epoch", [1, None])
@pytest.mark.parametrize("stops", [False, True])
def test_a_validation_follows_only_where_it_may(
    make_trainer: MakeTrainer, every: int, per_epoch: int | None, stops: bool
) -> None:
    toy = Toy()
    toy.val_accs = iter([0.5] * 100)
    said: list[bool] = []
    validated: list[int] = []

    class Watch(Callback):
        def on_train_batch_end(
            self,
            trainer: Trainer,
            module: LightningModule,
            outputs: Any,
            batch: Any,
            batch_idx: int,
        ) -> None:
            if stops and trainer.global_step == 4:
                trainer.should_stop = True
            said.append(internals.validation_may_follow(trainer, batch_idx))

        def on_validation_start(self, trainer: Trainer, module: LightningModule) -> None:
            validated.append(len(said))

    trainer = make_trainer(
        callbacks=[Watch()], val_check_interval=every, check_val_every_n_epoch=per_epoch
    )
    trainer.fit(toy, datamodule=ToyData(train=5, val=1, test=1))
    assert validated
    assert set(validated) <= {number for number, may in enumerate(said, 1) if may}


# --- optimizer steps of a manual optimization -----------------------------------------------------


@pytest.mark.parametrize("steps", [1, 3])
def test_steps_made_by_hand_count_and_loggers_get_their_number(
    make_trainer: MakeTrainer, tmp_path: Path, steps: int
) -> None:
    from lightning.pytorch.loggers import CSVLogger

    logged: list[int | None] = []

    class Logger(CSVLogger):
        def log_metrics(self, metrics: Any, step: int | None = None) -> None:
            logged.append(step)

    trainer = make_trainer(max_epochs=2, logger=Logger(tmp_path))
    trainer.fit(Manual(steps), datamodule=ToyData(train=4, val=0, test=1))
    assert trainer.global_step == internals.logged_step(trainer) == 8 * steps
    # where an epoch ends Lightning gives them the number of the step that was last
    assert logged == [4 * steps - 1, 8 * steps - 1]


def test_the_step_of_the_test_is_the_step_that_its_scalars_get(
    toy: Toy, toy_data: MakeData, make_trainer: MakeTrainer, tmp_path: Path
) -> None:
    from lightning.pytorch.loggers import CSVLogger

    steps: dict[str, int | None] = {}

    class Logger(CSVLogger):
        def log_metrics(self, metrics: Any, step: int | None = None) -> None:
            steps.update(dict.fromkeys(metrics, step))

    trainer = make_trainer(max_epochs=1, logger=Logger(tmp_path), accumulate_grad_batches=2)
    trainer.fit(toy, datamodule=toy_data(train=4))
    trainer.test(toy, datamodule=toy_data(), verbose=False)
    assert steps["test/acc"] == internals.logged_step(trainer) == 2


# --- the loops' state in a checkpoint -------------------------------------------------------------


@pytest.fixture
def cut(make_trainer: MakeTrainer, tmp_path: Path) -> Path:
    """A checkpoint of 4 batches an epoch, written behind the second of them."""
    path = tmp_path / "cut.ckpt"
    trainer = make_trainer(max_epochs=1, callbacks=[Saving(path, after=1)])
    trainer.fit(Plain(), datamodule=ResumableData(train=4, val=2, test=1))
    return path


def edited(path: Path, edit: Any) -> Path:
    checkpoint = torch.load(path, weights_only=True)
    edit(checkpoint)
    torch.save(checkpoint, path)
    return path


def test_the_training_loaders_state_is_found(cut: Path) -> None:
    checkpoint = torch.load(cut, weights_only=True)
    assert internals.train_loader_state(checkpoint) == {"position": 2}


@pytest.mark.parametrize("calls", [1, 2, 3])
def test_a_fit_begins_behind_the_calls_that_are_set(
    make_trainer: MakeTrainer, cut: Path, calls: int
) -> None:
    edited(cut, lambda checkpoint: internals.set_calls_done(checkpoint, calls))
    index = Noted(batch_start=internals.call_index)
    trainer = make_trainer(max_epochs=1, callbacks=[index])
    # the loader hands out what it has left; Lightning ends the epoch by its own count or by that
    trainer.fit(Plain(), datamodule=ResumableData(train=4, val=2, test=1), ckpt_path=cut)
    assert index.said["batch_start"][0] == calls


@pytest.mark.parametrize("manual", [False, True])
def test_a_fit_counts_from_the_steps_that_are_set_however_it_optimizes(
    make_trainer: MakeTrainer, cut: Path, manual: bool
) -> None:
    edited(cut, lambda checkpoint: internals.set_global_step(checkpoint, 100))
    steps = Noted(train_start=lambda trainer: trainer.global_step)
    trainer = make_trainer(max_epochs=1, callbacks=[steps])
    model = Manual(1) if manual else Plain()
    trainer.fit(model, datamodule=ResumableData(train=4, val=2, test=1), ckpt_path=cut)
    assert steps.said == {"train_start": [100]}
    assert trainer.global_step == 102


@pytest.mark.parametrize("entered", [False, True])
def test_a_fit_begins_with_the_whole_validation_that_it_would_skip(
    make_trainer: MakeTrainer, tmp_path: Path, entered: bool
) -> None:
    path = tmp_path / "cut.ckpt"

    class Save(Callback):
        def on_validation_start(self, trainer: Trainer, module: LightningModule) -> None:
            if trainer.current_epoch == 0:
                trainer.save_checkpoint(path)

    trainer = make_trainer(max_epochs=2, callbacks=[Save()])
    trainer.fit(Plain(), datamodule=ResumableData(train=4, val=2, test=1))
    if entered:
        edited(path, internals.enter_validation)
    batches: list[int] = []
    trained = Noted(batch_start=lambda trainer: trainer.global_step)

    class Count(Callback):
        def on_validation_batch_end(self, trainer: Trainer, *arguments: Any) -> None:
            batches.append(trainer.current_epoch)

    trainer = make_trainer(max_epochs=2, callbacks=[Count(), trained])
    trainer.fit(Plain(), datamodule=ResumableData(train=4, val=2, test=1), ckpt_path=path)
    # two batches a validation; the first epoch's four steps are behind
    assert batches == ([0, 0, 1, 1] if entered else [1, 1])
    assert trained.said["batch_start"] == [4, 5, 6, 7]


# --- averages of weights, TensorBoard -------------------------------------------------------------


def test_averages_are_where_they_are_looked_for_and_change_places_with_the_weights(
    toy: Toy, toy_data: MakeData, make_trainer: MakeTrainer
) -> None:
    class Every(WeightAveraging):
        def should_update(self, step_idx: int | None = None, epoch_idx: int | None = None) -> bool:
            return step_idx is not None

    averaging = Every()
    make_trainer(max_epochs=1, callbacks=[averaging]).fit(toy, datamodule=toy_data(train=4))
    model = internals.average_model(averaging)
    assert int(model.n_averaged) == 4
    assert model.module.state_dict().keys() == toy.state_dict().keys()
    with torch.no_grad():
        for weight in toy.parameters():
            weight.fill_(7)
    averages = [weight.clone() for weight in model.module.parameters()]
    internals.swap_averages(averaging, toy)
    assert all(map(torch.equal, toy.parameters(), averages))
    assert all(bool((weight == 7).all()) for weight in model.module.parameters())


def test_the_step_to_purge_from_reaches_the_writer(tmp_path: Path) -> None:
    for purge in (0, 5):
        logger = TensorBoardLogger(tmp_path, name="", version="run")
        assert internals.purge_step_of(logger) == 0
        if purge:
            internals.set_purge_step(logger, purge)
            assert internals.purge_step_of(logger) == purge
        for step in range(purge, 8):
            logger.log_metrics({"value": purge}, step)
        logger.finalize("success")
        with pytest.raises(AssertionError, match="before the first event"):
            internals.set_purge_step(logger, 13)
    found = EventAccumulator(str(tmp_path / "run")).Reload().Scalars("value")
    assert [(event.step, event.value) for event in found] == [(n, 5 * (n > 4)) for n in range(8)]


@pytest.mark.parametrize("fails", [False, True])
def test_a_fit_asks_for_no_state_of_cudas_generators(
    make_trainer: MakeTrainer,
    toy: Toy,
    toy_data: MakeData,
    monkeypatch: pytest.MonkeyPatch,
    fails: bool,
) -> None:
    module = import_module("lightning.pytorch.trainer.trainer")
    original, trainer = module.isolate_rng, make_trainer(max_epochs=1)

    def refuse(batch: int) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_rng_state_all", lambda: pytest.fail("asked"))
    if fails:
        toy.before_step = refuse
        with pytest.raises(ZeroDivisionError), internals.cuda_left_alone(trainer):
            trainer.fit(toy, toy_data())
    else:
        with internals.cuda_left_alone(trainer):
            trainer.fit(toy, toy_data())
    assert module.isolate_rng is original
