from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from cifar_lab.records.record import Data, RunRecord
from cifar_lab.run.summary import describe_data, print_summary

RECORD: dict[str, Any] = {
    "tested": "best",
    "best_epoch": 18,
    "metrics": {"test/acc": 0.78125, "test/loss": 0.6543, "val/acc": 0.791, "val/loss": 0.61},
    "epochs": 20,
    "steps": 7040,
    "timings": {"fit_s": 1234.5, "images_per_s": 928.4},
    "parameters": 1276234,
    "device": "cpu: some processor, 2 cores",
    "data": {"name": "cifar10", "layout": "zip", "official": False},
}
RUN = Path("/somewhere/outputs/runs/2026-01-02/03-04-05-abc")


def printed(record: dict[str, Any], run: Path = RUN, **settings: Any) -> str:
    stream = io.StringIO()
    typed = RunRecord.model_validate({"status": "finished", **record})
    print_summary(typed, run, console=Console(file=stream, highlight=False, **settings))
    return stream.getvalue()


def test_the_table_says_what_came_out_and_with_what() -> None:
    text = printed(RECORD)
    for part in (
        "78.1 %, loss 0.6543",
        "best checkpoint by validation (epoch 18)",
        "79.1 %, loss 0.6100",
        "20 epochs, 7,040 steps",
        "20:34 in all, 928 images/s in training",
        "1,276,234",
        "some processor",
        "CIFAR-10 from zip: not the official bytes",
        str(RUN),
    ):
        assert part in text


def test_the_dashboard_is_named_where_a_logger_wrote_for_it(tmp_path: Path) -> None:
    run = tmp_path / "outputs" / "runs" / "x"
    (run / "tensorboard").mkdir(parents=True)
    assert "--logdir" not in printed(RECORD, run)
    (run / "tensorboard" / "events.out.tfevents.1").touch()
    assert f"tensorboard --logdir {tmp_path}/outputs\n" in printed(RECORD, run)


def test_without_a_terminal_it_is_plain_text_without_padding() -> None:
    text = printed(RECORD)
    assert "\x1b" not in text
    assert not any(line.endswith(" ") for line in text.splitlines())


def test_a_path_is_never_broken_in_two() -> None:
    assert str(RUN) in printed(RECORD, width=20)


def test_it_says_why_these_weights_are_tested_and_what_ran_other_than_asked() -> None:
    why = {"tested_because": "lowest val/loss", "best_step": 6336}
    text = printed({**RECORD, **why, "steps_planned": 7040, "departures": []})
    assert "best checkpoint by validation (epoch 18, lowest val/loss)" in text
    assert "20 epochs, 7,040 steps\n" in text
    last = {"tested": "last", "best_epoch": None, "tested_because": "nothing was held out"}
    text = printed({**RECORD, **last, "steps_planned": 8000, "departures": ["one", "two"]})
    assert "last epoch (nothing was held out)" in text
    assert "20 epochs, 7,040 of 8,000 steps\n" in text
    assert [line for line in text.splitlines() if line.startswith("not as asked")] == [
        "not as asked   one",
        "not as asked   two",
    ]


def test_a_record_of_little_prints_what_it_has() -> None:
    text = printed({"metrics": {"test/acc": 0.5}, "tested": "last", "timings": {}})
    assert "50.0 %" in text
    assert "last epoch\n" in text
    assert "None" not in text


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (
            {"name": "cifar10", "layout": "archive", "official": True},
            "CIFAR-10, the official bytes",
        ),
        ({"name": "cifar10", "layout": "folders", "official": False}, "not the official bytes"),
        ({"name": "synthetic", "layout": "synthetic", "official": False}, "no benchmark"),
        ({"name": "digits", "layout": "folders", "official": False}, "digits, from folders"),
    ],
)
def test_official_and_other_bytes_are_told_apart(data: dict[str, Any], words: str) -> None:
    assert words in describe_data(Data.model_validate(data))
