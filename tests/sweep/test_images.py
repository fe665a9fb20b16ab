"""In a sweep, too, the images decide: what is joined, what is skipped, and what is refused."""

from __future__ import annotations

import json
import pkgutil
import shutil
from collections.abc import Callable
from dataclasses import replace
from multiprocessing import Pipe
from pathlib import Path
from typing import Any

import pytest

from cifar_lab.data.fetch import locate as cifar10
from cifar_lab.errors import InputError
from cifar_lab.records.digest import run_digest
from cifar_lab.sweep import launch
from cifar_lab.sweep.compose import Composer
from cifar_lab.sweep.folder import SweepFolder
from cifar_lab.sweep.jobs import make_jobs
from cifar_lab.sweep.points import Point, compose_point
from cifar_lab.sweep.tasks import Found, Task
from cifar_lab.sweep.worker import run_job
from tests.conftest import record_of
from tests.support.hydra import hydra_of
from tests.support.images import write_zip
from tests.support.own_images import OFFLINE, RUN, change, replace_in_place

Lab = Callable[..., tuple[int, str, str]]
SWEEP = ("-m", *OFFLINE, "trainer.max_epochs=1", "sweep.report=false", "hydra.sweep.dir=sweep")


def records_of(folder: Path) -> dict[str, dict[str, Any]]:
    return {path.parent.name: record_of(path.parent) for path in sorted(folder.glob("*/run.json"))}


def images_of(folder: Path) -> set[str]:
    return {record["data"]["digest"] for record in records_of(folder).values()}


def test_a_sweep_over_images_runs_each_once_and_takes_no_others_for_them(
    lab: Lab, tmp_path: Path
) -> None:
    a, b = (write_zip(tmp_path / f"{name}.zip", seed) for name, seed in (("A", 1), ("B", 2)))
    same = write_zip(tmp_path / "same", 1, folder=True)
    roots = f"data.root={a},{b},{same}"
    status, out, err = lab(*SWEEP, roots)
    assert status == 0, err
    assert "sweep: 2 jobs; 1 more are the same as one of them;" in out
    first = records_of(tmp_path / "sweep")
    assert len(first) == len(images_of(tmp_path / "sweep")) == 2
    assert len({record["metrics"]["val/loss"] for record in first.values()}) == 2
    for name, record in first.items():
        assert name.endswith(run_digest(record["config_digest"], record["data"]["digest"])[:8])

    status, out, err = lab(*SWEEP, roots)
    assert (status, err) == (0, "")
    assert "; 2 ended before;" in out
    assert records_of(tmp_path / "sweep") == first

    # one of them replaced; the other made by another torch
    replace_in_place(b, write_zip(tmp_path / "C.zip", 3))
    for name, record in first.items():
        if record["config"]["data"]["root"] == str(a):
            change(tmp_path / "sweep" / name, by_another_torch)
    status, out, err = lab(*SWEEP, roots)
    assert status == 0
    assert "; 1 ended before;" in out
    assert len(records_of(tmp_path / "sweep")) == len(images_of(tmp_path / "sweep")) == 3
    here = next(iter(first.values()))["packages"]["torch"]
    changed, made = err.splitlines()
    assert "B.zip has changed since it was cached" in changed
    assert made == (
        f"cifar_lab: 1 of the 2 jobs ended before, made with torch 2.13.0 (here {here}); delete "
        "their folders or choose another hydra.sweep.dir to run them anew"
    )

    shutil.rmtree(same)
    before = records_of(tmp_path / "sweep")
    status, out, err = lab(*SWEEP, roots)
    assert (status, out) == (2, "")
    assert len(err.strip().splitlines()) == 1
    assert f"data.root={same}: does not exist" in err
    assert f"their results stay in {tmp_path}/sweep" in err
    assert records_of(tmp_path / "sweep") == before


def by_another_torch(record: dict[str, Any]) -> None:
    record["starts"][0]["packages"]["torch"] = "2.13.0"


@pytest.fixture
def in_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a sweep asks its worker is answered by the same functions in this process."""

    def ask(target: str, request: Callable[[Any], Any]) -> Any:
        ours, theirs = Pipe(duplex=False)
        assert pkgutil.resolve_name(target)(request(theirs)) == 0
        return ours.recv()

    monkeypatch.setattr(launch, "_ask_worker", ask)


def grid(tmp_path: Path, *roots: Path) -> list[Point]:
    """Three learning rates on each of the roots."""
    loader, master = hydra_of(*RUN)
    composer = Composer(loader, master, ["optimizer.lr", "data.root"])
    return [
        compose_point(composer, [*RUN, f"optimizer.lr={lr}", f"data.root={root}"])
        for root in roots
        for lr in (0.1, 0.2, 0.3)
    ]


def write_record(folder: Path, digest: str, images: str | None, **more: Any) -> None:
    folder.mkdir(parents=True)
    data = {} if images is None else {"data": {"digest": images, "official": False}}
    record = {"schema": 1, "status": "finished", "config_digest": digest, **data, **more}
    (folder / "run.json").write_text(json.dumps(record))


def opened_by(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The roots that are opened from now on."""
    roots, original = [], cifar10.open_from

    def counted(*, root: str, **more: Any) -> Any:
        roots.append(root)
        return original(root=root, **more)

    monkeypatch.setattr(cifar10, "open_from", counted)
    return roots


def test_many_finished_jobs_are_compared_by_one_opening_of_each_data_set(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, in_process: None
) -> None:
    a, b = write_zip(tmp_path / "A.zip", 1), write_zip(tmp_path / "B.zip", 2)
    points = grid(tmp_path, a, b)
    found = launch.open_data([points[0], points[3]])
    digests = [str(each.digest) for each in found]
    for i, point in enumerate(points):
        # as older versions named them: without the images
        name = f"job{i}-{point.digest[:8]}"
        write_record(tmp_path / "sweep" / name, point.digest, digests[i // 3])
    roots = opened_by(monkeypatch)
    settled = launch.settled_images(SweepFolder(tmp_path / "sweep"), points)
    assert sorted(roots) == [str(a), str(b)]
    assert settled == dict(enumerate([digests[0]] * 3 + [digests[1]] * 3))
    jobs = make_jobs(
        SweepFolder(tmp_path / "sweep"),
        [replace(point, images=settled[i]) for i, point in enumerate(points)],
    )
    assert [job.run_dir.name for job in jobs] == [
        f"job{i}-{point.digest[:8]}" for i, point in enumerate(points)
    ]
    assert all(job.before for job in jobs)
    # other images in place of one
    write_zip(b, 3)
    assert set(launch.settled_images(SweepFolder(tmp_path / "sweep"), points)) == {0, 1, 2}


def test_the_check_of_the_points_says_which_images_they_are_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, in_process: None
) -> None:
    a, b = write_zip(tmp_path / "A.zip", 1), write_zip(tmp_path / "B.zip", 2, test_in_train=3)
    points = grid(tmp_path, a, b)
    roots = opened_by(monkeypatch)
    findings = launch.check_points(points)
    assert sorted(roots) == [str(a), str(b)]
    assert findings.images[:3] == [findings.images[0]] * 3
    assert findings.images[3:] == [findings.images[3]] * 3
    assert findings.images[0] != findings.images[3]
    assert findings.warnings == [
        f"data.root={b}: 3 of the 30 test images are also training images (exact copies): the test "
        "accuracy will be too high, by up to 10 points"
    ]


def test_names_are_unique_and_depend_on_configuration_and_images_alone(tmp_path: Path) -> None:
    points = [
        replace(point, images=images)
        for images in ("a" * 64, "b" * 64)
        for point in grid(tmp_path, tmp_path / "A.zip", tmp_path / "B.zip")
    ]
    jobs = make_jobs(SweepFolder(tmp_path / "sweep"), points)
    assert len(jobs) == 6  # the root is no part of it
    names = [job.run_dir.name for job in jobs]
    assert len(set(names)) == 6
    again = make_jobs(SweepFolder(tmp_path / "sweep"), points[::-1])
    assert {name[-9:] for name in names} == {job.run_dir.name[-9:] for job in again}


def test_a_job_that_ended_before_it_had_read_its_images_is_found_by_its_name_alone(
    tmp_path: Path,
) -> None:
    point = replace(grid(tmp_path, tmp_path / "A.zip")[0], images="a" * 64)
    other = replace(point, images="b" * 64)
    mine = tmp_path / "sweep" / point.folder_name
    write_record(mine, point.digest, None, status="failed")
    folder = SweepFolder(tmp_path / "sweep")
    assert [job.run_dir for job in make_jobs(folder, [point])] == [mine]
    assert [job.run_dir for job in make_jobs(folder, [other])] != [mine]
    (mine / "run.json").unlink()  # killed before it had a record
    assert [job.run_dir for job in make_jobs(SweepFolder(mine.parent), [point])] == [mine]


def test_images_that_change_while_the_sweep_runs_are_refused_by_the_job(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    a = write_zip(tmp_path / "A.zip", 1)
    point = grid(tmp_path, a)[0]
    (tmp_path / "job").mkdir()
    task = Task(point.cfg, point.overrides, tmp_path / "job", images="f" * 64)
    assert run_job(task) == 2
    record = record_of(tmp_path / "job")
    assert record["status"] == "failed"
    assert f"data.root={a}: these images (" in record["error"]
    assert "not those of when the sweep began (ffffffffffff)" in record["error"]
    assert record["data"]["digest"] == ""  # it has run on none
    assert not (tmp_path / "job" / "checkpoints").exists()
    assert capfd.readouterr().out.strip().splitlines()[-1] == f"cifar_lab: {record['error']}"


def test_images_that_are_not_here_settle_only_a_run_on_the_official_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # no root: what would be fetched is the official archive, or nothing
    points = grid(tmp_path, tmp_path / "A.zip")[:2]
    for i, point in enumerate(points):
        write_record(tmp_path / "sweep" / f"job{i}", point.digest, str(i) * 64)
    change(tmp_path / "sweep" / "job1", lambda record: record["data"].update(official=True))
    monkeypatch.setattr(launch, "open_data", lambda points: [Found()] * len(points))
    assert launch.settled_images(SweepFolder(tmp_path / "sweep"), points) == {1: "1" * 64}


# --- a study --------------------------------------------------------------------------------------


def test_a_study_is_of_its_images_and_of_what_it_does_not_search(tmp_path: Path) -> None:
    optuna = pytest.importorskip("optuna")
    from cifar_lab.sweep.search import check_study

    def config(lr: float = 0.1, width: int = 4, **more: Any) -> dict[str, Any]:
        return {"optimizer": {"lr": lr}, "model": {"width": width}, "seed": 0, **more}

    study, folder = optuna.create_study(study_name="cifar_lab"), SweepFolder(tmp_path)
    probes = [config(0.1), config(0.3)]
    check_study(study, folder, probes, ["a" * 64] * 2)
    check_study(study, folder, probes, ["a" * 64] * 2)
    # another range, more values, other threads, other slots: the same search
    check_study(study, folder, [config(0.01, threads=9), config(1.0, slots=3)], ["a" * 64] * 2)
    # one key fewer that is searched, one more
    check_study(study, folder, [config(0.1)], ["a" * 64])
    check_study(study, folder, probes, ["a" * 64] * 2)
    with pytest.raises(InputError) as caught:
        check_study(study, folder, [config(width=8), config(0.3, 8)], ["a" * 64] * 2)
    assert "sweep.study=cifar_lab" in str(caught.value)
    assert "these differ: model.width (4 there, 8 here); choose another" in str(caught.value)
    with pytest.raises(InputError, match=r"digest a{12}, here b{12}\); choose another"):
        check_study(study, folder, probes, ["b" * 64] * 2)
    # the images are searched, too: one more is no contradiction, one less is
    check_study(study, folder, probes, ["a" * 64, "b" * 64])
    with pytest.raises(InputError, match=r"digest b{12}, here a{12}\)"):
        check_study(study, folder, probes, ["a" * 64] * 2)


def test_a_study_of_an_older_version_is_known_by_its_jobs(tmp_path: Path) -> None:
    optuna = pytest.importorskip("optuna")
    from cifar_lab.sweep.search import check_study

    study = optuna.create_study()
    trial = study.ask()
    trial.set_user_attr("job", "job0")
    write_record(tmp_path / "job0", "0" * 64, "a" * 64)
    with pytest.raises(InputError, match=r"digest a{12}, here b{12}\)"):
        check_study(study, SweepFolder(tmp_path), [{"seed": 0}], ["b" * 64])
    check_study(study, SweepFolder(tmp_path), [{"seed": 0}], ["a" * 64])


def test_a_search_is_not_continued_on_other_images(lab: Lab, tmp_path: Path) -> None:
    pytest.importorskip("optuna")
    a = write_zip(tmp_path / "A.zip", 1)
    search = (*SWEEP, "sweep=optuna", "sweep.n_trials=1")
    status, _, err = lab(*search, f"data.root={a}", "optimizer.lr=interval(0.01,0.1)")
    assert status == 0, err
    b = write_zip(tmp_path / "B.zip", 2)
    status, out, err = lab(*search, f"data.root={b}", "optimizer.lr=interval(0.01,0.1)")
    assert status == 2
    assert "best" not in out
    assert "sweep.study=cifar_lab: its trials are on other images (digest " in err.splitlines()[-1]
    assert len(records_of(tmp_path / "sweep")) == 1
