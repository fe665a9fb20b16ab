from __future__ import annotations

import json
import os
import re
import signal
from pathlib import Path
from urllib.request import urlopen

import pytest

from cifar_lab import dashboard
from cifar_lab.dashboard import Links, runs_below, short_name
from cifar_lab.records.record import SCHEMA
from tests.support.served import served

DAY = "outputs/runs/2026-11-22"
SWEEP = "outputs/sweeps/2026-11-21/08-30-00-abcdef"


def make_run(folder: Path, *overrides: str) -> Path:
    """A run folder as far as the dashboard reads it."""
    (folder / "tensorboard").mkdir(parents=True)
    (folder / "tensorboard" / "events.out.tfevents.1.host.1.0").touch()
    record = {"schema": SCHEMA, "status": "finished", "overrides": overrides}
    (folder / "run.json").write_text(json.dumps(record))
    return folder


def make_sweep(folder: Path, *jobs: str) -> list[Path]:
    folder.mkdir(parents=True)
    (folder / "sweep.json").write_text("{}")
    return [make_run(folder / job) for job in jobs]


def test_a_run_is_named_by_when_it_began_and_what_was_varied(tmp_path: Path) -> None:
    overrides = ("model=resnet10", "optimizer.lr=0.1", "data.root=/x/y", "hydra.run.dir=z")
    run = make_run(tmp_path / DAY / "15-54-34-1a2b3c", *overrides)
    assert short_name(run, tmp_path) == "11-22 15.54 resnet10 lr0.1"
    plain = make_run(tmp_path / DAY / "15-55-00-1a2b3c")
    assert short_name(plain, tmp_path) == "11-22 15.55 defaults"


def test_a_job_is_named_by_what_was_swept(tmp_path: Path) -> None:
    job, other = make_sweep(tmp_path / SWEEP, "lr0.1-seed0-0123abcd", "lr0.1-seed1-4567abcd")
    assert short_name(job, tmp_path / "outputs") == "11-21 08.30/lr0.1-seed0"
    assert short_name(other, tmp_path / SWEEP) == "lr0.1-seed1"


def test_a_folder_with_a_name_of_its_own_keeps_it(tmp_path: Path) -> None:
    (job,) = make_sweep(tmp_path / "out" / "depth", "lr0.1-0123abcd")
    assert short_name(job, tmp_path / "out") == "depth/lr0.1"
    run = make_run(tmp_path / "out" / "mine", "seed=3")
    assert short_name(run, tmp_path / "out") == "mine seed3"
    assert short_name(run, run) == "seed3"


def test_long_names_end_at_a_word_and_say_so(tmp_path: Path) -> None:
    run = make_run(tmp_path / "r", *[f"augment.transforms.some_key_{i}=0.5" for i in range(9)])
    name = short_name(run, run)
    assert name.endswith("some_key_20.5 …")
    assert len(name) <= 50


def test_every_run_with_events_has_a_link_that_leads_to_them(tmp_path: Path) -> None:
    run = make_run(tmp_path / DAY / "15-54-34-1a2b3c", "seed=1")
    twin = make_run(tmp_path / DAY / "15-54-59-4d5e6f", "seed=1")
    jobs = make_sweep(tmp_path / SWEEP, "lr0.1-0123abcd", "lr0.2-4567abcd")
    (tmp_path / DAY / "15-59-00-ffffff" / "tensorboard").mkdir(parents=True)  # no event yet
    folder = tmp_path / "links"
    folder.mkdir()
    links = Links(tmp_path / "outputs", folder)
    links.refresh()
    assert {(folder / name).resolve() for name in links.names.values()} == {
        path / "tensorboard" for path in (run, twin, *jobs)
    }
    assert links.names[run] == "11-22 15.54 seed1"
    assert links.names[twin] == "11-22 15.54 seed1 4d5e6f"


def test_links_follow_what_comes_and_goes_and_names_stay(tmp_path: Path) -> None:
    (tmp_path / "links").mkdir()
    (tmp_path / "out").mkdir()
    links = Links(tmp_path / "out", tmp_path / "links")
    links.refresh()
    assert links.names == {}
    second = make_run(tmp_path / "out" / "b", "seed=1")
    links.refresh()
    assert links.names == {second: "b seed1"}
    (second / "run.json").write_text("{")  # unreadable: its curves stay
    first = make_run(tmp_path / "out" / "a")
    (first / "run.json").unlink()
    links.refresh()
    assert links.names == {second: "b seed1", first: "a no run.json"}
    (second / "tensorboard" / "events.out.tfevents.1.host.1.0").unlink()
    links.refresh()
    assert [path.name for path in (tmp_path / "links").iterdir()] == ["a no run.json"]


def test_nothing_is_looked_for_below_a_run(tmp_path: Path) -> None:
    run = make_run(tmp_path / "a")
    make_run(run / "checkpoints" / "b")
    make_run(run / "c")
    assert list(runs_below(tmp_path)) == [run]


@pytest.mark.parametrize("arguments", [["nowhere"], ["a_file"], [".", "--port", "70000"]])
def test_wrong_input_is_one_line_and_status_2(
    arguments: list[str], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "a_file").touch()
    assert dashboard.main(arguments) == 2
    out, err = capfd.readouterr()
    assert out == ""
    assert len(err.splitlines()) == 1
    assert arguments[-1] in err


@pytest.mark.parametrize(("signum", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_it_serves_this_machine_only_and_ends_cleanly(
    tmp_path: Path, signum: int, status: int
) -> None:
    make_run(tmp_path / "out" / "a", "seed=1")
    with served("dashboard", tmp_path / "out", TMPDIR=str(tmp_path)) as (process, address):
        assert re.fullmatch(r"http://127\.0\.0\.1:\d+/", address)
        with urlopen(f"{address}data/logdir", timeout=20) as answer:
            assert answer.status == 200
        os.kill(process.pid, signum)
        assert process.wait(20) == status
        assert process.stderr is not None
        assert process.stderr.read().strip() == "cifar_lab: dashboard ended"
    # the folder of links is gone
    assert [path.name for path in tmp_path.iterdir() if "dashboard" in path.name] == []
