"""What a start means in a folder that holds a run: one line for each case, and nothing touched."""

from __future__ import annotations

import copy
import json
import os
import socket
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest

from cifar_lab.config.compose import compose, run_config
from cifar_lab.errors import InputError
from cifar_lab.records.digest import config_digest
from cifar_lab.records.environment import process_started
from cifar_lab.records.record import RunRecord
from cifar_lab.run.resume import Earlier, check_images, find, root_of
from tests.conftest import TINY

Config = dict[str, Any]
Make = Callable[..., tuple[Path, Config]]


def resolved(**trainer: Any) -> Config:
    """A configuration with a schedule that a longer run would have had too."""
    config = copy.deepcopy(composed())
    config["trainer"] |= trainer
    return config


@lru_cache
def composed() -> Config:
    return run_config(compose([*TINY, "scheduler=constant", "trainer.max_epochs=1"]))


def without_callbacks(*overrides: str) -> Config:
    """The same with others' callbacks than the fewest."""
    fewest = [one for one in TINY if not one.startswith(("callbacks=", "trainer.max_epochs="))]
    return run_config(compose([*fewest, "scheduler=constant", "trainer.max_epochs=1", *overrides]))


@pytest.fixture
def make(tmp_path: Path) -> Make:
    """A folder that holds a run of this configuration, finished unless `fields` say otherwise."""

    def made(config: Config | None = None, **fields: Any) -> tuple[Path, Config]:
        folder = tmp_path / "run"
        checkpoints(folder).mkdir(parents=True)
        for name in ("last.ckpt", "previous.ckpt"):
            (checkpoints(folder) / name).touch()
        config = config or resolved()
        ours = {"config": config, "config_digest": config_digest(config), "status": "finished"}
        epochs = config["trainer"]["max_epochs"] or 0
        RunRecord.model_validate({**ours, "epochs": epochs, **fields}).write(folder)
        return folder, copy.deepcopy(config)

    return made


def refused(folder: Path, config: Config) -> str:
    """The one line with which it is refused; the folder is as it was."""
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    with pytest.raises(InputError) as error:
        find(folder, config)
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before
    return str(error.value)


def checkpoints(folder: Path) -> Path:
    return folder / "checkpoints"


# --- with and without a run -----------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["auto", "never"])
def test_an_empty_folder_is_a_new_run(tmp_path: Path, mode: str) -> None:
    assert find(tmp_path, {"resume": mode}) == Earlier(record=None, finished=False, checkpoint=None)


def test_must_needs_a_run(tmp_path: Path) -> None:
    assert f"resume=must: {tmp_path} holds no run" in refused(tmp_path, {"resume": "must"})


def test_never_wants_none(make: Make) -> None:
    folder, config = make()
    assert f"resume=never: {folder} holds a run" in refused(folder, {**config, "resume": "never"})


@pytest.mark.parametrize("mode", ["auto", "must"])
def test_a_finished_run_is_its_result(make: Make, mode: str) -> None:
    folder, config = make()
    earlier = find(folder, {**config, "resume": mode})
    assert earlier == Earlier(RunRecord.read(folder), finished=True, checkpoint=None)


@pytest.mark.parametrize("status", ["interrupted", "failed", "diverged", "pruned"])
def test_an_unfinished_one_goes_on_from_its_last_checkpoint(
    make: Make, status: str, capfd: pytest.CaptureFixture[str]
) -> None:
    folder, config = make(status=status)
    earlier = find(folder, config)
    assert earlier.record is not None
    assert (earlier.finished, earlier.record.status) == (False, status)
    assert earlier.checkpoint == checkpoints(folder) / "last.ckpt"
    earlier.checkpoint.unlink()
    assert find(folder, config).checkpoint == checkpoints(folder) / "previous.ckpt"
    assert find(folder, {**config, "resume": "must"}).checkpoint is not None
    (checkpoints(folder) / "previous.ckpt").unlink()
    assert find(folder, config).checkpoint is None
    assert "has left no checkpoint" in refused(folder, {**config, "resume": "must"})
    assert capfd.readouterr().err == ""


# --- records that are no record, or of one that runs ----------------------------------------------


@pytest.mark.parametrize("text", ["", "{", "[]", '{"schema": 99}'])
def test_a_record_that_can_not_be_read_is_said(make: Make, text: str) -> None:
    folder, config = make()
    (folder / "run.json").write_text(text)
    assert f"hydra.run.dir={folder}: its run.json: " in refused(folder, config)


def test_a_run_that_goes_on_is_left_alone(make: Make) -> None:
    parent, host = os.getppid(), socket.gethostname()
    started = process_started(parent)
    folder, config = make(status="running", pid=parent, pid_started=started, host=host)
    said = refused(folder, config)
    assert f"hydra.run.dir={folder}: process {parent} on {host} is running in it" in said


def test_one_of_this_very_process_that_it_could_not_close_is_over(make: Make) -> None:
    mine = {"pid": os.getpid(), "pid_started": process_started(os.getpid())}
    folder, config = make(status="running", host=socket.gethostname(), **mine)
    assert find(folder, config).checkpoint == checkpoints(folder) / "last.ckpt"


# --- other configurations -------------------------------------------------------------------------


@pytest.mark.parametrize("status", ["finished", "interrupted"])
def test_what_differs_is_named_and_nothing_else(make: Make, status: str) -> None:
    folder, config = make(status=status)
    config["optimizer"]["lr"] = 0.5
    config["model"]["width"] = 8
    config["new"] = {"key": 1}  # only here
    del config["optimizer"]["momentum"]  # only there
    config["steps_per_call"] = 16  # no part of what a run is
    said = refused(folder, config)
    assert f"hydra.run.dir={folder}: holds a run of another configuration" in said
    named = said.partition("these differ: ")[2].partition("; choose")[0]
    assert named == (
        "model.width (4 there, 8 here), new.key (null there, 1 here), "
        "optimizer.lr (0.03 there, 0.5 here), optimizer.momentum (0.9 there, null here)"
    )


def test_what_decides_no_result_may_differ(make: Make) -> None:
    folder, config = make()
    config["steps_per_call"] = 16
    config["data"]["offline"] = "whatever"
    assert find(folder, config).finished


def test_a_key_that_the_earlier_run_had_not_yet_may_be_null(make: Make) -> None:
    folder, config = make()
    config["optimizer"]["newer"] = None
    assert find(folder, config).finished


# --- other images ---------------------------------------------------------------------------------

HERS: dict[str, Any] = {"digest": "a" * 64, "official": False}


def run_on(data: dict[str, Any], config: Config | None = None) -> RunRecord:
    return RunRecord.model_validate({"status": "finished", "data": data, "config": config})


def test_the_same_images_are_taken_wherever_they_lie(tmp_path: Path) -> None:
    config = {"data": {"_target_": "a.Cifar10", "root": "elsewhere"}}
    then = {"data": {"_target_": "a.Cifar10", "root": "there"}}
    check_images(tmp_path, config, run_on(HERS, then), "a" * 64)
    check_images(tmp_path, config, run_on({**HERS, "official": True}, then), None)


@pytest.mark.parametrize("record", [None, run_on({}), run_on({"official": True})])
@pytest.mark.parametrize("images", ["b" * 64, None])
def test_a_run_that_had_not_read_any_fits_all(
    tmp_path: Path, record: RunRecord | None, images: str | None
) -> None:
    check_images(tmp_path, {}, record, images)


@pytest.mark.parametrize(
    ("images", "found"),
    [("b" * 64, "b" * 12), (None, "the official images, not on this machine")],
)
def test_other_images_are_refused_with_both_digests_and_both_places(
    tmp_path: Path, images: str | None, found: str
) -> None:
    config = {"data": {"_target_": "a.Cifar10", "root": None}}
    record = run_on(HERS, {"data": {"_target_": "a.Cifar10", "root": "x.zip"}})
    with pytest.raises(InputError) as error:
        check_images(tmp_path, config, record, images)
    assert str(error.value) == (
        f"data.root=null: these images ({found}) are not those of the run in {tmp_path} "
        f"({'a' * 12}, data.root=x.zip then); give those to go on with it or to see its result, "
        "or choose another hydra.run.dir for a run on these"
    )


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"data": {"_target_": "a.b.Cifar10", "root": "x.zip"}}, "data.root=x.zip"),
        ({"data": {"_target_": "a.b.Cifar10", "root": None}}, "data.root=null"),
        ({"data": {"_target_": "a.b.Synthetic"}}, "data=synthetic"),
    ],
)
def test_where_images_lie_is_said_as_it_is_typed(config: Config, said: str) -> None:
    assert root_of(config) == said


# --- longer ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", ["finished", "interrupted"])
def test_a_longer_run_goes_on_where_it_would_have_come_by(
    make: Make, status: str, capfd: pytest.CaptureFixture[str]
) -> None:
    folder, _ = make(status=status)
    earlier = find(folder, resolved(max_epochs=4))
    assert (earlier.finished, earlier.checkpoint) == (False, checkpoints(folder) / "last.ckpt")
    assert f"cifar_lab: {folder}: 3 more epochs for this run" in capfd.readouterr().err


@pytest.mark.parametrize(("before", "now"), [(3, 2), (3, None), (None, 3), (0, 3)])
def test_a_shorter_one_or_one_without_a_bound_is_another(
    make: Make, before: int | None, now: int | None
) -> None:
    folder, _ = make(resolved(max_epochs=before))
    said = refused(folder, resolved(max_epochs=now))
    there, here = json.dumps(before), json.dumps(now)
    assert f"trainer.max_epochs ({there} there, {here} here)" in said


def test_a_longer_one_in_which_something_else_differs_too_is_another(make: Make) -> None:
    folder, _ = make()
    said = refused(folder, {**resolved(max_epochs=4), "seed": 7})
    assert "seed (0 there, 7 here), trainer.max_epochs (1 there, 4 here)" in said


def test_a_schedule_that_depends_on_the_length_is_named(make: Make) -> None:
    cosine = run_config(compose([*TINY, "scheduler=cosine"]))["scheduler"]
    folder, _ = make({**resolved(), "scheduler": cosine})
    said = refused(folder, {**resolved(max_epochs=4), "scheduler": cosine})
    assert f"trainer.max_epochs=4: {folder} holds a run of 1 epochs, whose learning rates" in said
    assert "(scheduler=cosine); choose another folder for one of 4" in said
    assert said.endswith("or give trainer.max_epochs=1")


SHARES = {
    "callbacks.swa.start_fraction": "callbacks=swa",
    "callbacks.swa.every_steps": (
        "callbacks=swa callbacks.swa.start_fraction=0 callbacks.swa.every_steps=3"
    ),
    "callbacks.sam.start_fraction": "callbacks=sam callbacks.sam.start_fraction=0.8",
    "callbacks.lookahead.power": "callbacks=lookahead +callbacks.lookahead.power=3",
    "optimizer.groups.early.until": "+optimizer.groups.early.parameters=biases "
    "+optimizer.groups.early.until=1.0",
}


@pytest.mark.parametrize("key", SHARES)
def test_an_ingredient_at_a_share_of_the_fit_is_named(make: Make, key: str) -> None:
    begun = without_callbacks(*SHARES[key].split())
    folder, longer = make(begun)
    longer["trainer"]["max_epochs"] = 4
    assert f"holds a run of 1 epochs, in which {key} is laid out by that " in refused(
        folder, longer
    )


@pytest.mark.parametrize("group", ["ema", "early_stopping", "sam", "lookahead", "swa"])
def test_one_that_is_at_no_share_of_it_goes_on(make: Make, group: str) -> None:
    begins = ["callbacks.swa.start_fraction=0"] if group == "swa" else []
    folder, longer = make(without_callbacks(f"callbacks={group}", *begins))
    longer["trainer"]["max_epochs"] = 4
    assert find(folder, longer).checkpoint is not None


def test_a_schedule_that_is_gone_is_named_by_its_key(make: Make) -> None:
    gone = {"_target_": "cifar_lab.nowhere.schedule"}
    folder, _ = make({**resolved(), "scheduler": gone})
    said = refused(folder, {**resolved(max_epochs=4), "scheduler": gone})
    assert said.startswith("scheduler")


def test_a_bound_on_the_steps_is_named(make: Make) -> None:
    folder, _ = make(resolved(max_steps=5))
    said = refused(folder, resolved(max_steps=5, max_epochs=4))
    assert "holds a run of 1 epochs, which trainer.max_steps bounds as well; choose" in said


def test_only_a_finished_run_can_have_stopped_early(make: Make) -> None:
    folder, _ = make(resolved(max_epochs=3), epochs=2)
    said = refused(folder, resolved(max_epochs=5))
    assert "holds a run of 3 epochs, which stopped early, after 2; choose" in said


@pytest.mark.parametrize(("status", "epochs"), [("interrupted", 2), ("finished", 3)])
def test_one_that_was_stopped_or_made_all_its_epochs_did_not(
    make: Make, status: str, epochs: int
) -> None:
    folder, _ = make(resolved(max_epochs=3), status=status, epochs=epochs)
    assert find(folder, resolved(max_epochs=5)).checkpoint is not None
