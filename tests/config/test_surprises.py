"""Configuration without surprises: other spellings, old names, Lightning's arguments."""

from __future__ import annotations

import importlib
import inspect
import itertools
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from lightning.pytorch import Trainer

from cifar_lab.config.compose import compose, run_config, typed_overrides
from cifar_lab.config.overrides import CAN_BE_NONE, flags_first, normalized
from cifar_lab.config.schema import TRAINER_DEFAULTS, conf_dir
from cifar_lab.config.targets import locate
from cifar_lab.config.validate import check
from cifar_lab.errors import InputError
from cifar_lab.records.digest import MOVED, config_digest
from cifar_lab.sweep.compose import Composer
from cifar_lab.sweep.points import compose_point
from tests.conftest import TINY, record_of
from tests.support.hydra import hydra_of

Lab = Callable[..., tuple[int, str, str]]
PRESETS = ("experiment", "sweep", "debug")  # which nothing but the line chooses


def digest(*overrides: str) -> str:
    return config_digest(run_config(compose(overrides)))


# --- the same run ---------------------------------------------------------------------------------

# Made before the modules moved, the sweep's keys got a node and the monitors a group of their own.
BEFORE = {
    (): "d3ce36e9e824f914",
    ("data=synthetic",): "5623c85364a4224d",
    ("callbacks=ema",): "638f195853b7a02c",
    ("callbacks=early_stopping",): "e10808682b6a1a6b",
    ("callbacks=none",): "66cdd44d19c50ae6",
    ("experiment=report_cnn",): "a97453f400157563",
    (
        *("model=resnet10", "scheduler=constant", "augment=strong", "optimizer=adamw"),
        "trainer=ddp",
    ): "340cc072c1aacfbc",
    ("debug=fast",): "e9bbfa3b6b9a3298",
    ("sweep=lr_blocks", "seed=3"): "c3b2c3a42490ce4a",
}


@pytest.mark.parametrize("overrides", BEFORE, ids=str)
def test_runs_of_older_versions_are_found_again(overrides: tuple[str, ...]) -> None:
    assert digest(*overrides).startswith(BEFORE[overrides])


@pytest.mark.parametrize(
    "more",
    [
        "monitors=none",
        "monitors=progress",
        "~monitors.grad_norm",
        "monitors.test_figures=null",
        "sweep.slots=3",
        "sweep.report=false",
        "sweep=optuna",
        "optimizer/groups=none",
        "optimizer.groups=null",
        *(
            f"trainer.{key}={'null' if value is None else str(value).lower()}"
            for key, value in TRAINER_DEFAULTS.items()
        ),
    ],
)
def test_what_changes_no_result_changes_no_digest(more: str) -> None:
    assert digest(more) == digest()


def test_a_runs_configuration_has_no_key_of_a_sweep() -> None:
    config = run_config(compose(["sweep=optuna", "sweep.slots=2"]))
    assert not set(config) & {"sweep", "slots", "retries", "job_timeout", "fail_fast", "report"}


# --- leaving out ----------------------------------------------------------------------------------


def test_every_way_to_leave_a_group_out_is_the_same() -> None:
    # all of them at once: a composition takes its time
    none = compose([f"{group}=none" for group in CAN_BE_NONE])
    assert run_config(none)["callbacks"] == run_config(none)["logger"] == {}
    for spelling in ("{}=null", "~{}", "{}={{}}", "++{}=null"):
        found = compose([spelling.format(group) for group in CAN_BE_NONE])
        check(found)
        assert run_config(found) == run_config(none), spelling
        # and so in what Hydra is told and keeps in .hydra/
        typed = [typed_overrides(cfg.hydra) for cfg in (found, none)]
        assert typed == [[f"{group}=none" for group in CAN_BE_NONE]] * 2


def test_every_group_is_needed_or_has_the_option_none() -> None:
    needed = {"data", "model", "loss", "optimizer", "trainer"}
    groups = {path.name for path in conf_dir().iterdir() if path.is_dir()} - {"hydra"}
    assert groups - needed == set(CAN_BE_NONE) - {"optimizer/groups"}
    assert all((conf_dir() / group / "none.yaml").is_file() for group in CAN_BE_NONE)


def test_a_file_of_ones_own_may_leave_a_group_out(tmp_path: Path) -> None:
    folder = tmp_path / "conf" / "experiment"
    folder.mkdir(parents=True)
    groups = [group for group in CAN_BE_NONE if group not in PRESETS]
    none = run_config(compose([f"{group}=none" for group in groups]))
    for word in ("none", "null", "", "~"):
        lines = [f"  - override /{group}: {word}" for group in groups]
        text = "\n".join(["# @package _global_", "defaults:", *lines])
        (folder / "mine.yaml").write_text(text)
        found = compose(["experiment=mine"])
        check(found)
        assert run_config(found) == none, word


def test_of_a_sweep_too_no_preset_is_none() -> None:
    loader, master = hydra_of(*TINY)
    composer = Composer(loader, master, ["experiment", "debug"])
    words = (("none", "null"), ("null", "none"))
    one, other = (
        compose_point(composer, [*TINY, f"experiment={a}", f"debug={b}"]) for a, b in words
    )
    assert one.config == other.config == run_config(compose(list(TINY)))
    assert (one.digest, one.overrides) == (other.digest, other.overrides)


def test_no_schedule_is_a_constant_one() -> None:
    assert digest("scheduler=none") == digest("scheduler=constant")


# --- names that were changed ----------------------------------------------------------------------

RENAMED = [
    ("slots=2", "sweep.slots=2"),
    ("retries=0", "sweep.retries=0"),
    ("job_timeout=60", "sweep.job_timeout=60"),
    ("fail_fast=true", "sweep.fail_fast=true"),
    ("report=false", "sweep.report=false"),
    ("callbacks.progress=null", "monitors.progress=null"),
    ("~callbacks.pictures", "~monitors.test_figures"),
    ("callbacks.overview.graph=false", "monitors.model_overview.graph=false"),
    ("++callbacks.grad_norm=null", "++monitors.grad_norm=null"),
    ("callbacks=progress", "monitors=progress"),
    ("callbacks=pictures", "monitors=test_figures"),
    ("callbacks=[checkpoints,progress]", "monitors=progress"),
]


@pytest.mark.parametrize(("before", "now"), RENAMED)
@pytest.mark.parametrize("sweep", [(), ("-m", "seed=0,1")], ids=["run", "sweep"])
def test_an_old_name_is_one_line_with_the_new_one(
    lab: Lab, tmp_path: Path, before: str, now: str, sweep: Sequence[str]
) -> None:
    status, _, err = lab("data=synthetic", before, *sweep)
    assert status == 2
    assert err.startswith(f"cifar_lab: {before}: is called {now} now")
    assert len(err.strip().splitlines()) == 1
    assert not (tmp_path / "outputs").exists()


@pytest.mark.parametrize(("before", "now"), RENAMED)
def test_the_new_names_compose(before: str, now: str) -> None:
    assert normalized([now]) == [now]
    compose([now])


def test_an_old_key_in_a_file_of_ones_own_is_one_line(tmp_path: Path) -> None:
    folder = tmp_path / "conf" / "sweep"
    folder.mkdir(parents=True)
    (folder / "mine.yaml").write_text("# @package _global_\nslots: 2\n")
    with pytest.raises(InputError, match=r"slots: is called sweep\.slots now"):
        compose(["sweep=mine"])


@pytest.mark.parametrize("module", MOVED)
def test_a_target_that_moved_is_one_line_with_its_new_place(module: str) -> None:
    with pytest.raises(InputError, match=MOVED[module].replace(".", r"\.") + r"\.Part now"):
        locate("callbacks.mine", f"{module}.Part")
    importlib.import_module(MOVED[module])


# --- flags ----------------------------------------------------------------------------------------


def test_flags_may_stand_anywhere() -> None:
    arguments = ["-m", "model=cnn", "seed=0,1"]
    for order in itertools.permutations(arguments):
        assert sorted(flags_first(order)) == sorted(arguments)
        assert flags_first(order)[0] == "-m"
    assert flags_first(["a=1", "--cfg", "job", "b=2"]) == ["--cfg", "job", "a=1", "b=2"]
    assert flags_first(["a=1", "--info", "b=2"]) == ["--info", "a=1", "b=2"]
    assert flags_first(["a=1", "-i", "config", "-r"]) == ["-i", "config", "-r", "a=1"]


def test_a_sweep_is_a_sweep_wherever_its_flag_stands(lab: Lab) -> None:
    wrong = "trainer.max_epochs=0"
    answers = {
        lab(*order) for order in itertools.permutations(["data=synthetic", "-m", f"{wrong},1"])
    }
    ((status, _, err),) = answers
    assert status == 2
    assert wrong in err


def test_the_configuration_is_shown_whatever_comes_first(lab: Lab) -> None:
    first, last = lab("--cfg", "job", "seed=7"), lab("seed=7", "--cfg", "job")
    assert first == last
    assert "seed: 7" in first[1]


# --- every argument of Lightning's Trainer --------------------------------------------------------


def test_every_argument_is_known_and_at_lightnings_default() -> None:
    signature = inspect.signature(Trainer).parameters
    assert set(compose([]).trainer) - {"_target_"} == set(signature)
    defaults = {name: signature[name].default for name in TRAINER_DEFAULTS}
    assert defaults == TRAINER_DEFAULTS


REFUSED = {
    "logger=false": "group logger",
    "callbacks=[]": "groups callbacks and monitors",
    "default_root_dir=x": "hydra.run.dir",
    "barebones=true": "callbacks=none",
    "overfit_batches=2": "data.shuffle=false",
    "reload_dataloaders_every_n_epochs=1": "images stay in memory",
    "limit_predict_batches=2": "limit_test_batches",
    "model_registry=mine": "checkpoints lie in the run folder",
    "enable_checkpointing=false": "~callbacks.checkpoints",
    "enable_progress_bar=true": "monitors=progress",
    "gradient_clip_algorithm=value": "trainer.gradient_clip_val",
    "sync_batchnorm=true": "needs CUDA",
    "detect_anomaly=perhaps": "must be true or false",
    "benchmark=perhaps": "must be true or false",
    "num_nodes=2": "started alone",
    "min_epochs=9": "at most max_epochs",
    "max_time=00:00:00:00": "above 0",
    "val_check_interval=00:01:00:00": "the clock",
    "inference_mode=perhaps": "must be true or false",
    "enable_progress_bar=perhaps": "must be true or false",
}


@pytest.mark.parametrize("argument", REFUSED)
def test_what_a_run_can_not_have_is_one_line(lab: Lab, tmp_path: Path, argument: str) -> None:
    status, _, err = lab(*TINY, f"trainer.{argument}")
    assert status == 2, err
    assert err.startswith(f"cifar_lab: trainer.{argument.partition('=')[0]}")
    assert REFUSED[argument] in err
    assert len(err.strip().splitlines()) == 1
    assert not (tmp_path / "outputs").exists()


WORK = (
    ("detect_anomaly=true", "inference_mode=false", "benchmark=false", "min_epochs=1"),
    ("fast_dev_run=true",),
    ("overfit_batches=2", "data.shuffle=false"),
    ("gradient_clip_algorithm=value", "gradient_clip_val=0.1", "max_time=00:01:00:00"),
    ("use_distributed_sampler=false", "enable_autolog_hparams=false", "min_steps=2"),
    ("val_check_interval=0.5", "enable_checkpointing=true", "enable_progress_bar=false"),
)


@pytest.mark.parametrize("arguments", WORK, ids=str)
def test_the_others_work_without_a_plus(lab: Lab, tmp_path: Path, arguments: Sequence[str]) -> None:
    given = [a if a.startswith("data.") else f"trainer.{a}" for a in arguments]
    small = (*TINY, "trainer.max_epochs=1", "logger=none")
    status, _, err = lab(*small, *given, f"hydra.run.dir={tmp_path}/run")
    assert (status, err) == (0, "")
    assert record_of(tmp_path / "run")["status"] == "finished"


def test_every_argument_that_a_file_leaves_at_its_default_is_tried() -> None:
    tried = [*REFUSED, *(argument for arguments in WORK for argument in arguments), "plugins="]
    assert {argument.partition("=")[0] for argument in tried} >= set(TRAINER_DEFAULTS)


def test_a_plus_before_one_still_works() -> None:
    assert run_config(compose(["+trainer.val_check_interval=0.5"])) == run_config(
        compose(["trainer.val_check_interval=0.5"])
    )


# --- monitors -------------------------------------------------------------------------------------


def test_what_changes_results_is_no_monitor(lab: Lab) -> None:
    stopping = "+monitors.stop._target_=lightning.pytorch.callbacks.EarlyStopping"
    status, _, err = lab(*TINY, stopping, "+monitors.stop.monitor=val/acc")
    assert status == 2
    assert "monitors.stop: EarlyStopping has a part in the result" in err
    assert "callbacks.stop" in err


@pytest.mark.parametrize("setting", ["storage=x", "n_trials=3", "pruner=asha"])
def test_a_setting_of_a_search_needs_one(lab: Lab, tmp_path: Path, setting: str) -> None:
    status, _, err = lab(*TINY, "-m", "seed=0,1", f"sweep.{setting}", "hydra.sweep.dir=sweep")
    assert status == 2
    assert f"sweep.{setting}: is of a search; add sweep=optuna" in err
    assert not (tmp_path / "sweep").exists()
