from __future__ import annotations

import io
import logging
import os
import pty
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Trainer
from rich.console import Console

from cifar_lab.formats import clock, percent
from cifar_lab.training.callbacks import display
from cifar_lab.training.callbacks.progress import ProgressBar
from cifar_lab.training.callbacks.throughput import LaggedCopy, Rate, Sample
from tests.conftest import REPOSITORY
from tests.support.toy import MakeData, MakeTrainer, Toy

HIDE_CURSOR, SHOW_CURSOR = "\x1b[?25l", "\x1b[?25h"


@pytest.fixture
def screen() -> io.StringIO:
    return io.StringIO()


@pytest.fixture
def bar(screen: io.StringIO, monkeypatch: pytest.MonkeyPatch) -> ProgressBar:
    # every step is due: what a person would see over minutes happens within one
    monkeypatch.setattr(display, "REFRESH_S", -1.0)
    return ProgressBar(console=Console(file=screen, force_terminal=True, width=100))


def fit(
    bar: ProgressBar,
    toy: Toy,
    toy_data: MakeData,
    make_trainer: MakeTrainer,
    *,
    sizes: dict[str, int] | None = None,
    **settings: Any,
) -> Trainer:
    trainer = make_trainer(callbacks=[bar], enable_progress_bar=True, **settings)
    trainer.fit(toy, datamodule=toy_data(**(sizes or {})))
    return trainer


def test_the_bar_shows_epoch_batch_loss_accuracies_rate_and_time_left(
    bar: ProgressBar, screen: io.StringIO, toy: Toy, toy_data: MakeData, make_trainer: MakeTrainer
) -> None:
    fit(bar, toy, toy_data, make_trainer, max_epochs=3)
    shown = screen.getvalue()
    for text in ("epoch 1/3", "epoch 2/3 validating", "3/4", "loss ", "acc ", "images/s", " left"):
        assert text in shown
    assert "val 50.0 % (best 50.0 %)" in shown
    assert "val 70.0 % (best 70.0 %)" in shown


def test_one_line_stays_for_each_epoch_and_the_best_has_a_star(
    bar: ProgressBar, screen: io.StringIO, toy: Toy, toy_data: MakeData, make_trainer: MakeTrainer
) -> None:
    fit(bar, toy, toy_data, make_trainer, max_epochs=3)
    console = Console(file=io.StringIO(), force_terminal=True, width=100)
    plain = [line for line in console.render_str(screen.getvalue()).plain.splitlines() if line]
    assert sum("train/loss" in line for line in plain) == 1
    stays = [line for line in screen.getvalue().split("\n") if "1.2500" in line]
    assert len(stays) == 3
    assert ["*" in line for line in stays] == [True, True, False]


def test_the_terminal_is_left_clean_after_fit_test_and_errors(
    bar: ProgressBar, screen: io.StringIO, toy: Toy, toy_data: MakeData, make_trainer: MakeTrainer
) -> None:
    trainer = fit(bar, toy, toy_data, make_trainer)
    trainer.test(toy, datamodule=toy_data(), verbose=False)
    assert "testing" in screen.getvalue()

    def fail(batch: int) -> None:
        raise RuntimeError("in the step")

    toy.before_step = fail
    with pytest.raises(RuntimeError, match="in the step"):
        fit(bar, toy, toy_data, make_trainer)
    shown = screen.getvalue()
    assert shown.count(HIDE_CURSOR) == shown.count(SHOW_CURSOR) == 3
    assert shown.rindex(SHOW_CURSOR) > shown.rindex(HIDE_CURSOR)
    assert not bar.is_enabled


def test_without_a_terminal_nothing_is_written_even_under_force_color(
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    toy: Toy,
    toy_data: MakeData,
    make_trainer: MakeTrainer,
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    trainer = fit(ProgressBar(), toy, toy_data, make_trainer)
    trainer.test(toy, datamodule=toy_data(), verbose=False)
    assert capfd.readouterr() == ("", "")


def test_every_epoch_is_logged_terminal_or_not(
    caplog: pytest.LogCaptureFixture, toy: Toy, toy_data: MakeData, make_trainer: MakeTrainer
) -> None:
    with caplog.at_level(logging.INFO, logger="cifar_lab"):
        fit(ProgressBar(), toy, toy_data, make_trainer)
    lines = [r.getMessage() for r in caplog.records if r.name.startswith("cifar_lab")]
    assert [line.split(":")[0] for line in lines] == ["epoch 1/2", "epoch 2/2"]
    assert "val/acc 70.0 %" in lines[1]
    assert "images/s" in lines[1]


def test_no_validation_no_validation_figures(
    bar: ProgressBar, screen: io.StringIO, toy: Toy, toy_data: MakeData, make_trainer: MakeTrainer
) -> None:
    fit(bar, toy, toy_data, make_trainer, sizes={"val": 0})
    assert "val" not in screen.getvalue()


def test_an_epoch_without_validation_does_not_repeat_the_last_one(
    caplog: pytest.LogCaptureFixture, toy: Toy, toy_data: MakeData, make_trainer: MakeTrainer
) -> None:
    with caplog.at_level(logging.INFO, logger="cifar_lab"):
        fit(ProgressBar(), toy, toy_data, make_trainer, max_epochs=3, check_val_every_n_epoch=2)
    lines = [r.getMessage() for r in caplog.records if r.name.startswith("cifar_lab")]
    assert ["val/acc" in line for line in lines] == [False, True, False]


def test_a_step_limit_instead_of_epochs_still_has_a_time_left(
    bar: ProgressBar, screen: io.StringIO, toy: Toy, toy_data: MakeData, make_trainer: MakeTrainer
) -> None:
    fit(bar, toy, toy_data, make_trainer, max_epochs=-1, max_steps=6)
    assert "epoch 2" in screen.getvalue()
    assert " left" in screen.getvalue()


def test_limited_batches_are_the_bar_s_total(
    bar: ProgressBar, screen: io.StringIO, toy: Toy, toy_data: MakeData, make_trainer: MakeTrainer
) -> None:
    fit(bar, toy, toy_data, make_trainer, limit_train_batches=2, max_epochs=1)
    assert "2/2" in screen.getvalue()
    assert "/4" not in screen.getvalue()


def test_a_resume_in_mid_epoch_goes_on_at_its_batch_with_the_best_so_far(
    bar: ProgressBar,
    screen: io.StringIO,
    toy: Toy,
    toy_data: MakeData,
    make_trainer: MakeTrainer,
    tmp_path: Path,
) -> None:
    trainer = make_trainer(callbacks=[bar], enable_progress_bar=True, max_epochs=3)

    def save(batch: int) -> None:
        if trainer.current_epoch == 1 and batch == 2:
            trainer.save_checkpoint(tmp_path / "mid.ckpt")

    toy.before_step = save
    trainer.fit(toy, datamodule=toy_data())
    screen.truncate(0)
    toy.before_step = lambda batch: None
    resumed = ProgressBar(console=Console(file=screen, force_terminal=True, width=100))
    trainer = make_trainer(callbacks=[resumed], enable_progress_bar=True, max_epochs=3)
    with pytest.warns(UserWarning, match="dataloader is not resumable"):
        trainer.fit(toy, datamodule=toy_data(), ckpt_path=tmp_path / "mid.ckpt", weights_only=True)
    shown = screen.getvalue()
    assert "epoch 1/3" not in shown
    assert "epoch 2/3" in shown
    assert "1/4" not in shown.split("epoch 3/3")[0]
    assert "(best 65.0 %)" in shown  # 65.0 comes after the resume, 50.0 was before


def test_a_rank_above_zero_draws_nothing(
    bar: ProgressBar, screen: io.StringIO, toy: Toy, toy_data: MakeData, make_trainer: MakeTrainer
) -> None:
    bar.disable()  # what the base class does in setup() on those ranks
    fit(bar, toy, toy_data, make_trainer)
    assert screen.getvalue() == ""


def test_what_is_printed_during_training_stands_above_the_bar(
    bar: ProgressBar, screen: io.StringIO, toy: Toy, toy_data: MakeData, make_trainer: MakeTrainer
) -> None:
    toy.before_step = lambda batch: toy.print("a word from the step")
    fit(bar, toy, toy_data, make_trainer, max_epochs=1)
    assert "a word from the step\n" in screen.getvalue()


def test_a_step_between_two_refreshes_reads_nothing_from_the_module(
    monkeypatch: pytest.MonkeyPatch,
    screen: io.StringIO,
    toy: Toy,
    toy_data: MakeData,
    make_trainer: MakeTrainer,
) -> None:
    monkeypatch.setattr(display, "REFRESH_S", 3600.0)
    bar = ProgressBar(console=Console(file=screen, force_terminal=True, width=100))
    nothing: Any = None  # any access to the trainer or the module would raise
    between: list[bool] = []

    def step(batch: int) -> None:
        bar.on_train_batch_end(nothing, nothing, None, None, batch)
        between.append(bar.is_enabled)

    toy.before_step = step
    fit(bar, toy, toy_data, make_trainer, max_epochs=1)
    assert between == [True] * 4


def test_rate_follows_the_last_seconds_and_not_the_whole_run() -> None:
    rate = Rate(window_s=10)
    for second in range(100):
        rate.add(Sample(float(second), second, 100.0 * second))
    for second in range(100, 121):
        rate.add(Sample(float(second), second, 100.0 * 99 + 10 * (second - 99)))
    assert rate.per_s() == (1.0, 10.0)


def test_rate_is_unknown_before_two_moments() -> None:
    rate = Rate()
    assert rate.per_s() is None
    rate.add(Sample(0.0, 0, 0.0))
    assert rate.per_s() is None


def test_on_the_cpu_the_sums_are_read_directly() -> None:
    assert LaggedCopy().read(torch.tensor([1.0, 2.0, 3.0]), "now") == ([1.0, 2.0, 3.0], "now")


@pytest.mark.gpu
def test_on_cuda_a_read_gives_what_the_read_before_copied() -> None:
    copy, source = LaggedCopy(), torch.tensor([1.0, 2.0, 3.0], device="cuda")
    assert copy.read(source, "first") is None
    torch.cuda.synchronize()
    source += 1
    assert copy.read(source, "second") == ([1.0, 2.0, 3.0], "first")
    torch.cuda.synchronize()
    assert copy.read(source, "third") == ([2.0, 3.0, 4.0], "second")


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.4, "0:00"), (59.6, "1:00"), (61, "1:01"), (3725, "1:02:05")]
)
def test_clock(seconds: float, text: str) -> None:
    assert clock(seconds) == text


def test_percent_has_one_decimal() -> None:
    assert percent(0.78125) == "78.1 %"


CTRL_C = """
import time
from rich.console import Console
from lightning.pytorch import Trainer
from cifar_lab.training.callbacks.progress import ProgressBar
from cifar_lab.training.library_logging import route_library_logging
from tests.support.toy import Toy, ToyData
route_library_logging()
toy = Toy()
toy.before_step = lambda batch: (print("step", flush=True), time.sleep(0.05))
trainer = Trainer(accelerator="cpu", max_epochs=9, logger=False, enable_checkpointing=False,
    enable_model_summary=False, num_sanity_val_steps=0, callbacks=[ProgressBar()])
trainer.fit(toy, datamodule=ToyData(train=1000, val=0, test=1))
"""


@pytest.mark.slow
def test_ctrl_c_gives_the_cursor_back_on_a_real_terminal() -> None:
    main, terminal = pty.openpty()
    environment = os.environ | {
        "TERM": "xterm-256color",
        "PYTHONPATH": str(REPOSITORY),
        "OMP_NUM_THREADS": "1",
    }
    process = subprocess.Popen(
        [sys.executable, "-c", CTRL_C], stdout=terminal, stderr=terminal, env=environment
    )
    os.close(terminal)
    shown = b""
    asked = False
    while True:
        try:
            chunk = os.read(main, 65536)
        except OSError:  # how Linux says that the other side has closed
            break
        if not chunk:
            break
        shown += chunk
        if not asked and shown.count(b"step") > 3:
            process.send_signal(signal.SIGINT)
            asked = True
    os.close(main)
    assert process.wait(60) != 0
    text = shown.decode()
    assert "epoch 1/9" in text
    assert text.count(HIDE_CURSOR) == text.count(SHOW_CURSOR) == 1
    assert text.rindex(SHOW_CURSOR) > text.rindex(HIDE_CURSOR)
