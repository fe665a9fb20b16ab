from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.contenders import (
    FLAVOURS,
    MAKERS,
    NETWORKS,
    WARMUP_STEPS,
    Workload,
    our_command,
    read_last_line,
)
from cifar_lab.config.compose import compose
from cifar_lab.config.validate import check
from cifar_lab.training.callbacks.timings import WARMUP_STEPS as OUR_WARMUP_STEPS


def workload(network: str) -> Workload:
    return Workload(
        data=Path("/data"),
        network=network,
        batch_size=10,
        steps=5,
        device="cpu",
        precision="32-true",
        threads=1,
        workers=0,
    )


@pytest.mark.parametrize(
    ("line", "images_per_s", "accuracy"),
    [
        ('{"images_per_s": 1768.5, "step_ms": 3}', 1768.5, None),
        ('{"accuracy": 0.94}', None, 0.94),
        ("took 164.86 seconds to train, and final model accuracy is 80.13%.", None, 0.8013),
        ("Test accuracy: 0.9402", None, 0.9402),
        ("accuracy 1", None, 1.0),
        ("throughput 1,768 images/s", 1768.0, None),
        ("epoch 3 | 2.5e3", 2500.0, None),
        ("done", None, None),
        ("", None, None),
    ],
)
def test_the_last_line_of_an_outside_program_is_read(
    line: str, images_per_s: float | None, accuracy: float | None
) -> None:
    told = read_last_line(f"epoch 1, loss 2.3\n{line}\n\n" if line else "")
    assert told.images_per_s == images_per_s
    assert told.accuracy == pytest.approx(accuracy)


def test_json_that_is_no_number_is_refused() -> None:
    with pytest.raises(ValueError, match="accuracy='high'"):
        read_last_line('{"accuracy": "high"}')


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("name", FLAVOURS)
def test_our_commands_compose_and_pass_the_check(network: str, name: str) -> None:
    command = list(MAKERS[name](workload(network)).command(Path("/folder")))
    cfg = compose(command[3:])
    check(cfg)
    assert cfg.trainer.max_steps == WARMUP_STEPS + 5
    assert cfg.channels_last is (name != "plain")
    assert cfg.trainer.precision == ("bf16-mixed" if name == "bf16" else "32-true")
    assert cfg.augment.transforms == {}


def test_the_warm_up_is_the_one_of_our_own_rate() -> None:
    assert WARMUP_STEPS == OUR_WARMUP_STEPS


def test_threads_that_nobody_chose_are_left_to_torch() -> None:
    from dataclasses import replace

    free = replace(workload("cnn"), threads=None)
    assert not [word for word in our_command(free, 1, Path("/f")) if word.startswith("threads")]
