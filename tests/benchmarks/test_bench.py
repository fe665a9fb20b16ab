from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.__main__ import main

TINY = ("--rounds=1", "--steps=2", "--batch-size=4", "--images=2000", "--threads=1")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--networks=vgg"], "'vgg' is none of cnn, resnet10, resnet1111"),
        (["--contenders=ours,me"], "'me' is none of ours, plain,"),
        (["--rounds=0"], "'0' must be a whole number of at least 1"),
        (["--images=100"], "'100' must be at least 2000"),
        (["--also=peer"], "'peer' must read NAME=COMMAND"),
        (["--also=vgg:peer=true"], "'vgg' is none of cnn"),
        (["--also=bare=true"], "that name is taken"),
        (["--also=a=true", "--also=cnn:a=true"], "that name is taken"),
        (["--networks=none", "--no-startup"], "nothing is left to measure"),
        (["--precision=64"], "invalid choice"),
        (["--rond=2"], "unrecognized arguments: --rond=2"),
    ],
)
def test_wrong_input_is_one_line_and_status_2(
    arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 2
    captured = capsys.readouterr()
    assert said in captured.err
    assert len(captured.err.splitlines()) == 1
    assert list(Path.cwd().iterdir()) == []


def test_a_device_that_is_not_there_is_wrong_input(capsys: pytest.CaptureFixture[str]) -> None:
    import torch

    missing = "mps" if torch.cuda.is_available() else "cuda"
    assert main([f"--device={missing}"]) == 2
    assert f"--device={missing}: torch finds none" in capsys.readouterr().err


def test_a_session_leaves_table_figures_and_every_measurement(
    capfd: pytest.CaptureFixture[str],
) -> None:
    status = main(
        [
            *TINY,
            *("--networks=cnn", "--contenders=bare,report", "--no-startup", "--out=bench"),
            *("--also=peer=echo accuracy 80.13%", "--also=resnet10:not_here=true"),
            "--also=broken=echo no; exit 3",
        ]
    )
    assert status == 1
    captured = capfd.readouterr()
    assert "80.13%" in captured.out
    assert "failed: cnn, broken, round 1: exit status 3: no" in captured.err
    written = json.loads(Path("bench/bench.json").read_text())
    assert [m["contender"] for m in written["measurements"]] == ["bare", "report", "peer", "broken"]
    assert all(m["images_per_s"] > 0 for m in written["measurements"][:2])
    assert written["measurements"][2]["accuracy"] == pytest.approx(0.8013)
    assert written["machine"]["threads"] == 1
    assert written["packages"]["torch"]
    assert set(written["git"]) == {"sha", "dirty", "diff"}
    assert "benchmarks.programs.bare" in written["commands"]["cnn"]["bare"]
    assert written["settings"]["networks"] == {"cnn": {"batch_size": 4, "steps": 2}}
    assert {path.name for path in Path("bench").iterdir()} == {
        *("bench.json", "bench.png", "bench.svg")
    }


@pytest.mark.slow
def test_ours_and_the_start_up_are_measured_through_the_door(
    capfd: pytest.CaptureFixture[str],
) -> None:
    status = main([*TINY, "--networks=cnn", "--contenders=ours,plain,tuned,bare", "--out=bench"])
    assert status == 0, capfd.readouterr().err
    rows = json.loads(Path("bench/bench.json").read_text())["measurements"]
    assert all(m["images_per_s"] > 0 for m in rows if m["table"] == "cnn")
    starts = {m["contender"]: m["start_s"] for m in rows if m["table"] == "start-up"}
    assert set(starts) == {"interpreter", "imports", "ours", "help"}
    # whatever the machine: both load torch, and --help doesn't
    assert min(starts["ours"], starts["imports"]) > starts["help"] > starts["interpreter"]


@pytest.mark.slow
def test_ctrl_c_ends_the_children_and_shows_what_there_is() -> None:
    command = [sys.executable, "-m", "benchmarks", *TINY, "--networks=cnn", "--contenders="]
    process = subprocess.Popen(
        [*command, "--no-startup", "--also=quick=echo 7", "--also=sleeper=echo $$ >pid; sleep 999"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    pid = Path("pid")
    while not (pid.exists() and pid.read_text().strip()):
        assert process.poll() is None
    process.send_signal(signal.SIGINT)
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "quick" in out
    [folder] = Path("outputs/bench").iterdir()
    rows = json.loads((folder / "bench.json").read_text())["measurements"]
    assert [m["contender"] for m in rows] == ["quick"]
    with pytest.raises(ProcessLookupError):
        os.kill(int(pid.read_text()), 0)
