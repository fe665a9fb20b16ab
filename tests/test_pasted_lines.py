"""Every line that is printed for pasting runs as printed, whatever the folders are called."""

from __future__ import annotations

import random
import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser

from cifar_lab.__main__ import without_repeated_folder
from cifar_lab.config.overrides import as_typed, assignment
from cifar_lab.records.record import command_line
from cifar_lab.sweep.launch import print_continue
from tests.conftest import TINY, environment, merged, record_of
from tests.support.images import write_zip
from tests.support.own_images import RUN
from tests.support.runs import SMALL, same, stop_at

Lab = Callable[..., tuple[int, str, str]]

HOSTILE = (
    *("jörg", "a b", "(1)", "a=b", "it's", 'the "q"', "a,b", "$x", "a&b", "#1", "x;y", "[1,2]"),
    *("{a:1}", "'", '"', "\\", "a\\'b", "*?!", "~x", "日本", "null", "-m", "%d {}", "::"),
)
LETTERS = "aä \t()='\",$&#;\\[]{}:!*?~@%|<>`^+-.0é日🎉null"


def value_of(argument: str) -> object:
    (override,) = OverridesParser.create().parse_overrides([argument])
    return override.value()


def pasted(line: str) -> list[str]:
    """The arguments that a shell hands to the program."""
    python, dash_m, name, *arguments = shlex.split(line)
    assert (python, dash_m, name) == ("python", "-m", "cifar_lab")
    return arguments


def names(count: int) -> list[str]:
    draw = random.Random(0)
    drawn = ("".join(draw.choices(LETTERS, k=draw.randint(0, 9))) for _ in range(count))
    return [*HOSTILE, *(name for name in drawn if "${" not in name)]


def test_shell_and_hydra_read_back_any_text() -> None:
    for name in names(300):
        for text in (name, f"/tmp/{name}/x"):
            (argument,) = pasted(command_line([assignment("hydra.run.dir", text)]))
            assert value_of(argument) == text
            assert as_typed([argument]) == [argument]


def test_a_path_needs_no_quotes_of_hydras() -> None:
    # blanks at its end are cut off, and backslashes escape: as Hydra has it
    for name in (n for n in names(300) if "\\" not in n and n == n.strip()):
        (argument,) = as_typed([f"data.root=/tmp/{name}"])
        assert value_of(argument) == f"/tmp/{name}"
    assert as_typed(["data.root=jörg/a,b"]) == ['data.root="jörg/a,b"']
    assert as_typed(["data.root=out(1)"]) == ['data.root="out(1)"']


def test_commas_part_the_paths_of_a_sweep() -> None:
    assert as_typed(["-m", "data.root=/jörg,/a b,/x"]) == ["-m", 'data.root="/jörg",/a b,/x']
    assert as_typed(["-m", "data.root=glob(*)"]) == ["-m", "data.root=glob(*)"]


def test_what_is_hydras_stays_hydras() -> None:
    for argument in (
        *("model.num_blocks=[1,1]", "optimizer.lr=0.1,0.2", "data.root=null", "data.root=${a}"),
        *("optimizer.lr=interval(0.1", "model.num_blocks=1,1]", "data.root='/a b'", "~logger.csv"),
    ):
        assert as_typed([argument]) == [argument]


def test_home_may_be_called_anything(
    lab: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = tmp_path / "jörg (a,b)"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    write_zip(home / "images.zip")
    status, _, err = lab(*RUN, "data.root=~/images.zip", "hydra.run.dir=~/run")
    assert status == 0, err
    assert record_of(home / "run")["config"]["data"]["root"] == f"{home}/images.zip"


@pytest.mark.parametrize("name", ["jörg (a=b), c", 'it\'s "q" $x & #1; [x] {y}'])
def test_the_line_that_continues_a_run_continues_it(
    lab: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    folder = tmp_path / name
    folder.mkdir()
    monkeypatch.chdir(folder)  # the run's own folder lies below
    assert lab(*SMALL, f"hydra.run.dir={tmp_path}/whole")[0] == 0
    stop_at(monkeypatch, 3)
    status, _, err = lab(*SMALL)
    assert status == 130
    line = re.search("to continue: (.*)", err)
    assert line is not None
    status, out, err = lab(*pasted(line[1]))
    assert status == 0, err
    (run_dir,) = (folder / "outputs" / "runs").glob("*/*")
    same(tmp_path / "whole", run_dir)
    assert record_of(run_dir)["resumed"] is True
    dashboard = re.search("dashboard +(.*)", out)
    assert dashboard is not None
    assert shlex.split(dashboard[1]) == ["tensorboard", "--logdir", str(folder / "outputs")]


def test_the_line_that_continues_a_sweep_names_its_folder(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    swept = ["-m", "seed=0,1", "data.root='/a b'", "hydra.sweep.dir=old"]
    monkeypatch.setattr(sys, "argv", ["x", *swept, 'hydra.searchpath=["file:///jörg/conf"]'])
    for name in HOSTILE:
        print_continue(Path("/tmp") / name)
        *kept, folder = pasted(capsys.readouterr().err.partition("to continue: ")[2])
        assert kept == swept[:3]
        assert value_of(folder) == f"/tmp/{name}"


def test_a_process_that_lightning_starts_has_the_folder_of_the_first() -> None:
    for name in HOSTILE:
        first = ["seed=1", assignment("hydra.run.dir", f"/tmp/{name}"), "hydra.job.name=x"]
        again = f'hydra.run.dir="/tmp/{name}"'  # the same text for some
        assert without_repeated_folder([*first, again]) == first


def test_two_processes_in_a_hostile_folder(tmp_path: Path) -> None:
    folder = tmp_path / 'jörg (a=b)\'s "q", $x & #1; [x]'
    (folder / "conf" / "experiment").mkdir(parents=True)
    own = "# @package _global_\noptimizer:\n  lr: 0.03\n"
    (folder / "conf" / "experiment" / "mine.yaml").write_text(own)
    arguments = merged(*TINY, "trainer=ddp", "threads=1", "trainer.max_epochs=1", "logger=csv")
    done = subprocess.run(
        [sys.executable, "-m", "cifar_lab", *arguments, "experiment=mine"],
        env=environment(),
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    (run_dir,) = (folder / "outputs" / "runs").glob("*/*")
    assert record_of(run_dir)["config"]["optimizer"]["lr"] == 0.03


@pytest.mark.parametrize("name", ["a\nb", "a${b}", "\udcff", "\x1b[31m"])
def test_names_that_no_line_can_hold_are_refused_in_one(
    lab: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    folder = tmp_path / name
    folder.mkdir()
    monkeypatch.chdir(folder)
    status, _, err = lab(*TINY)
    assert status == 2
    assert len(err.splitlines()) == 1
    assert "hydra.run.dir" in err
    assert "choose another folder" in err
    assert not list(folder.iterdir())
