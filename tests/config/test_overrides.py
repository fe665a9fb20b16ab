"""What a person types counts, or is refused in one line: nothing of it is ignored."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from cifar_lab.__main__ import main
from cifar_lab.config.compose import compose, run_config
from cifar_lab.config.overrides import check_unique
from cifar_lab.errors import InputError
from cifar_lab.records.digest import config_digest
from cifar_lab.sweep.compose import Composer
from cifar_lab.sweep.points import compose_point
from tests.conftest import TINY, record_of
from tests.support.hydra import hydra_of
from tests.sweep.conftest import SMALL

Lab = Callable[..., tuple[int, str, str]]

TWO_VALUES = [
    (["optimizer.lr=0.1", "optimizer.lr=0.2"], "optimizer.lr"),
    (["optimizer.lr=0.1", "seed=3", "++optimizer.lr=0.2"], "optimizer.lr"),
    (["+optimizer.foreach=true", "++optimizer.foreach=false"], "optimizer.foreach"),
    (["model=cnn", "model=resnet10"], "model"),
    (["hydra.run.dir=a", "hydra.run.dir=b"], "hydra.run.dir"),
    (["seed=1", "seed=1,2"], "seed"),
    (["seed=1,2", "seed=2,3"], "seed"),
    (["optimizer.lr=0.1", "optimizer={lr: 0.2}"], "optimizer.lr"),
    (["+callbacks.x={a: {b: 1}}", "+callbacks.x={a: {b: 2}}"], "callbacks.x.a.b"),
    (["callbacks.pictures=null", "~callbacks.pictures"], "callbacks.pictures"),
    (["model.num_blocks=[1,1]", "model.num_blocks=[1,2]"], "model.num_blocks"),
]
ONE_VALUE = [
    ["optimizer.lr=0.1", "optimizer.lr=0.10"],
    ["seed=1", "seed=1"],
    ["seed=1,2", "seed=1,2"],
    ["data.root=a", "data.root='a'"],
    ["optimizer=adamw", "optimizer.lr=0.1"],
    ["optimizer={lr: 0.1}", "optimizer={weight_decay: 0.1}"],
    ["optimizer={lr: 0.1, weight_decay: 0}", "optimizer.lr=0.1"],
    # what is there makes room
    ["~callbacks.pictures", "+callbacks.pictures={_target_: x}"],
]


@pytest.mark.parametrize(("overrides", "key"), TWO_VALUES, ids=str)
def test_two_values_for_one_key_are_refused_in_any_order(overrides: list[str], key: str) -> None:
    for typed in (overrides, overrides[::-1]):
        with pytest.raises(InputError) as raised:
            check_unique(["model.width=4", *typed, "threads=1"])
        assert str(raised.value).endswith(f": two values for {key}; give one")
        assert overrides[0] in str(raised.value)
        assert overrides[-1] in str(raised.value)


@pytest.mark.parametrize("overrides", ONE_VALUE, ids=str)
def test_one_value_given_twice_is_one_value(overrides: list[str]) -> None:
    check_unique(overrides)


@pytest.mark.parametrize("flags", [[], ["-m"], ["--multirun"]])
def test_the_command_refuses_two_values(
    flags: list[str], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert main([*flags, *TINY, "optimizer.lr=0.1", "seed=0", "optimizer.lr=0.2"]) == 2
    line = "cifar_lab: optimizer.lr=0.1 optimizer.lr=0.2: two values for optimizer.lr; give one\n"
    assert capfd.readouterr() == ("", line)
    assert not (tmp_path / "outputs").exists()


SPELLINGS = ("{g}=none", "{g}=null", "{g}={{}}", "{g}={{ }}", "++{g}=null", "~{g}", "~{g}=default")


@pytest.mark.parametrize("group", ["callbacks", "logger"])
def test_a_group_is_left_out_however_that_is_spelt(group: str) -> None:
    given = [run_config(compose([s.format(g=group)])) for s in SPELLINGS]
    assert all(fields[group] == {} for fields in given)
    assert len({config_digest(fields) for fields in given}) == 1
    assert run_config(compose([]))[group] != {}
    # what leaves out all leaves nothing to one that is added
    added = compose([f"~{group}", f"+{group}.mine._target_=x.Y"])
    assert list(added[group]) == ["mine"]


def test_augmentation_is_left_out_however_that_is_spelt() -> None:
    given = [run_config(compose([s.format(g="augment")])) for s in SPELLINGS if "default" not in s]
    assert len({config_digest(fields) for fields in given}) == 1


@pytest.mark.parametrize("group", ["experiment", "debug", "sweep"])
def test_a_preset_that_is_none_is_none(group: str) -> None:
    plain = run_config(compose([]))
    for word in ("null", "none"):
        assert run_config(compose([f"{group}={word}"])) == plain


def test_points_of_a_sweep_are_left_out_of_in_the_same_way() -> None:
    for key, values in (("logger", ["null", "csv"]), ("callbacks", ["{}", "default"])):
        loader, master = hydra_of(*TINY[:-3])
        composer = Composer(loader, master, [key])
        none, some = (compose_point(composer, [*TINY[:-3], f"{key}={v}"]) for v in values)
        assert none.config[key] == {}
        assert some.config[key] != {}
        assert (none.label, some.label) == (f"{key}={values[0]}", f"{key}={values[1]}")
    loader, master = hydra_of(*TINY)
    composer = Composer(loader, master, ["debug"])
    null, fast = (compose_point(composer, [*TINY, f"debug={v}"]) for v in ("null", "fast"))
    assert null.config == run_config(compose(list(TINY)))
    assert null.digest != fast.digest
    assert null.label == "debug=null"


def test_a_run_without_logger_and_callbacks_leaves_neither(lab: Lab, tmp_path: Path) -> None:
    run = ("trainer.max_epochs=1", "hydra.run.dir=run")
    status, _, err = lab(*TINY, *run, "callbacks={}", "logger=null")
    assert (status, err) == (0, "")
    left = {path.name for path in (tmp_path / "run").iterdir()}
    assert not left & {"checkpoints", "metrics.csv", "tensorboard"}
    record = record_of(tmp_path / "run")
    assert record["config"]["callbacks"] == record["config"]["logger"] == {}


# (arguments, what the one line begins with, what else it says)
REFUSED = [
    (["trainer.max_steps=0"], "trainer.max_steps=0: must be at least 1, or -1", ""),
    (["trainer.max_steps=-2"], "trainer.max_steps=-2: must be at least 1, or -1", ""),
    (["+trainer.max_time=00:00:00:00"], "trainer.max_time=00:00:00:00: must be above 0", ""),
    (["+trainer.min_epochs=9"], "trainer.min_epochs=9: must be at most max_epochs", ""),
    *[
        ([spelling.format(g=group)], f"{spelling.format(g=group)}: a run needs one", group)
        for group in ("data", "model", "loss", "optimizer", "trainer")
        for spelling in ("{g}=null", "~{g}")
    ],
    (["optimizer={}"], "optimizer={}: changes nothing", "~optimizer."),
    (["callbacks.checkpoints={}"], "callbacks.checkpoints={}: ", "~callbacks.checkpoints leaves"),
    (["hydra.sweep.dir=x"], "hydra.sweep.dir=x: is of a sweep", "hydra.run.dir"),
    (["hydra.sweep.subdir=x"], "hydra.sweep.subdir=x: is of a sweep", "add -m"),
    (["hydra/launcher=basic"], "hydra/launcher=basic: is of a sweep", "add -m"),
    (["hydra/sweeper=basic"], "hydra/sweeper=basic: is of a sweep", "add -m"),
    (["slots=2"], "slots=2: is called sweep.slots=2 now", ""),
    (["sweep.slots=2"], "sweep.slots=2: is of a sweep", "add -m"),
    (["seed=0,1"], "seed=0,1: several values are a sweep, which needs -m", "seed=[0,1]"),
    (["hydra.mode=multirun"], "hydra.mode=multirun: ", "[RUN, MULTIRUN]"),
    (["hydra.runtime.cwd=x"], "hydra.runtime.cwd=x: Hydra sets it", ""),
    (["hydra.overrides.task=[]"], "hydra.overrides.task=[]: Hydra sets it", ""),
    (["hydra.hydra_logging.root.level=DEBUG"], "hydra.hydra_logging", "hydra/job_logging"),
    (["+hydra.run.dir=x"], "+hydra.run.dir: the key exists; give it without +", ""),
    (["+seed=1"], "+seed: the key exists; give it without +", ""),
    (["-m", "hydra.run.dir=x"], "hydra.run.dir=x: is of one run", "hydra.sweep.dir"),
    (["-m", "hydra.mode=RUN"], "hydra.mode=RUN: contradicts -m", ""),
    (["-m", "hydra.sweep.subdir=x"], "hydra.sweep.subdir=x: ", "hydra/launcher=basic"),
    (["hydra.mode=MULTIRUN", "hydra.sweep.subdir=x"], "hydra.sweep.subdir=x: ", "a digest"),
    (["-m", "logger={csv: {}}"], "logger.csv={}: changes nothing", "~logger.csv leaves it out\n"),
    (["++optimizer={}"], "optimizer={}: changes nothing", "~optimizer."),
]


@pytest.mark.parametrize(("arguments", "start", "part"), REFUSED, ids=str)
def test_what_would_have_no_effect_is_one_line(
    lab: Lab, tmp_path: Path, arguments: list[str], start: str, part: str
) -> None:
    status, out, err = lab(*TINY, *arguments)
    assert (status, out) == (2, ""), err
    assert err.startswith(f"cifar_lab: {start}")
    assert len(err.strip().splitlines()) == 1
    assert part in err
    assert not (tmp_path / "outputs").exists()


def test_a_sweep_is_one_however_it_is_asked_for(lab: Lab, tmp_path: Path) -> None:
    """`-m` may stand anywhere, and ``hydra.mode=MULTIRUN`` is another word for it."""
    sweep = (*SMALL, "hydra.sweep.dir=sweep", "seed=0,1")
    assert lab("-m", *sweep)[0] == 0
    before = {path: path.read_bytes() for path in tmp_path.glob("sweep/*/run.json")}
    assert len(before) == 2
    for arguments in (
        (*sweep, "-m"),
        ("seed=0,1", "--multirun", *sweep),
        ("hydra.mode=MULTIRUN", *sweep),
    ):
        status, out, err = lab(*arguments)
        assert (status, err) == (0, "")
        assert "2 ended before" in out
    assert {path: path.read_bytes() for path in before} == before
