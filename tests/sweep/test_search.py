"""sweep=optuna: the space is Hydra's, the study is Optuna's, and a trial is one of our jobs."""

from __future__ import annotations

from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf

from cifar_lab.errors import InputError
from tests.conftest import TINY, record_of
from tests.sweep.conftest import SMALL

optuna = pytest.importorskip("optuna")

Lab = Callable[..., tuple[int, str, str]]
LR = "optimizer.lr"
TWO = "sweep.directions=[maximize,minimize]"


def trials_of(folder: Path) -> list[Any]:
    study = optuna.load_study(study_name="cifar_lab", storage=f"sqlite:///{folder}/study.db")
    return list(study.trials)


def states_of(folder: Path) -> list[str]:
    return [trial.state.name for trial in trials_of(folder)]


def test_hydras_syntax_is_optunas_distribution() -> None:
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    from cifar_lab.sweep.space import parse_space

    lines = [
        "a=interval(0.1,1)",
        "b=tag(log,interval(0.001,0.1))",
        "c=int(interval(1,8))",
        "d=tag(log,int(interval(1,64)))",
        "e=range(2,9,3)",
        "f=choice([1,1],[2,2])",
        "g=range(0,1,0.5)",
        "h=sgd,adamw",
        "i=[3,4]",
    ]
    space = parse_space(OverridesParser.create().parse_overrides(lines))
    assert space.distributions == {
        "a": FloatDistribution(0.1, 1),
        "b": FloatDistribution(0.001, 0.1, log=True),
        "c": IntDistribution(1, 8),
        "d": IntDistribution(1, 64, log=True),
        "e": IntDistribution(2, 8, step=3),
        "f": CategoricalDistribution(["[1,1]", "[2,2]"]),
        "g": CategoricalDistribution(["0.0", "0.5"]),
        "h": CategoricalDistribution(["sgd", "adamw"]),
    }
    assert space.fixed == ["i=[3,4]"]
    seen = [probe["f"] for probe in space.probes()]
    assert {"[1,1]", "[2,2]"} == set(seen)
    with pytest.raises(InputError, match=r"a: sweep\.sampler=grid needs values"):
        space.grid()


@pytest.mark.parametrize(
    ("then", "here", "said"),
    [
        ("a=0.1,0.2", "a=0.1,0.2,0.3", "a choice of 0.1, 0.2, 0.3 here"),
        ("a=0.1,0.2", "a=interval(0.1,0.2)", "an interval of numbers, 0.1 to 0.2 here"),
        (
            "a=int(interval(1,8))",
            "a=interval(1,8)",
            "trials are of an interval of integers, 1 to 8",
        ),
        ("a=interval(0.1,1)", "a=tag(log,interval(0.1,1))", "on a log scale, 0.1 to 1.0 here"),
        ("a=interval(0.1,1)", "a=interval(0.01,2)", None),
        ("a=int(interval(1,8))", "a=range(1,20,2)", None),
        ("a=x,y", "a=x,y b=1,2", None),
        ("a=x,y b=1,2", "a=x,y", None),
    ],
)
def test_what_may_change_in_a_study_is_said(then: str, here: str, said: str | None) -> None:
    from cifar_lab.sweep.search import check_space
    from cifar_lab.sweep.space import parse_space

    def space(words: str) -> Any:
        return parse_space(OverridesParser.create().parse_overrides(words.split()))

    study = optuna.create_study()
    study.ask(dict(space(then).distributions))
    if said is None:
        check_space(study, space(here))
        study.ask(dict(space(here).distributions))  # which is Optuna's own check
        return
    with pytest.raises(InputError, match=r"choose another hydra\.sweep\.dir") as error:
        check_space(study, space(here))
    assert said in str(error.value)
    with pytest.raises(ValueError, match=r"space|kind|configuration"):
        study.ask(dict(space(here).distributions))


WRONG = [
    (["sweep.pruner=hyperband", "sweep.objectives=[val/acc,fit_s]", TWO], "prunes"),
    (
        ["sweep.pruner=asha", "sweep.objectives=[fit_s]", "sweep.directions=[minimize]"],
        "sweep.objectives=[fit_s] has none",
    ),
    (["sweep.objectives=[test/acc]"], "the test split selects nothing"),
    (["sweep.directions=[up]"], "maximize or minimize"),
    (["sweep.sampler=magic"], "tpe, random, grid"),
    (["sweep.pruner=magic"], "hyperband, asha, median"),
    (["sweep.sampler=grid"], "needs values"),
    (["sweep.n_trials=0"], "at least 1"),
    ([f"{LR}=0.1"], "nothing to search"),
    ([f"{LR}=tag(log,interval(0,1))"], LR),
    ([f"{LR}=interval(-1,1)"], f"{LR}=-1"),
    (["sweep.n_trial=3"], "sweep.n_trial"),
]


@pytest.mark.parametrize(("arguments", "part"), WRONG, ids=lambda value: " ".join(value)[:40])
def test_what_a_search_can_not_do_is_wrong_input(
    lab: Lab, tmp_path: Path, arguments: list[str], part: str
) -> None:
    status, out, err = lab("-m", "sweep=optuna", *SMALL, *arguments)
    assert status == 2, err
    assert len(err.strip().splitlines()) == 1, err
    assert part in err
    assert out == ""
    assert not (tmp_path / "outputs").exists()


def test_a_storage_that_can_not_be_opened_is_wrong_input(lab: Lab) -> None:
    status, _, err = lab("-m", "sweep=optuna", *SMALL, "sweep.storage=sqlite:////dev/null/x.db")
    assert status == 2
    assert "sweep.storage=sqlite:////dev/null/x.db" in err


def test_a_search_is_continued_and_its_lost_trial_taken_up(lab: Lab, tmp_path: Path) -> None:
    search = ("-m", "sweep=optuna", *SMALL, "hydra.sweep.dir=sweep", "sweep.sampler=random")
    status, out, err = lab(*search, "sweep.n_trials=2")
    assert status == 0, err
    assert "best: lr" in out
    folder = tmp_path / "sweep"
    assert states_of(folder) == ["COMPLETE"] * 2
    first = trials_of(folder)
    # what a supervisor leaves behind that is killed with a job at work
    study = optuna.load_study(study_name="cifar_lab", storage=f"sqlite:///{folder}/study.db")
    lost = study.ask({LR: first[0].distributions[LR]})
    status, out, err = lab(*search, "sweep.n_trials=4")
    assert status == 0, err
    assert states_of(folder) == ["COMPLETE"] * 4
    again = trials_of(folder)
    assert again[2].params == lost.params
    assert [t.values for t in again[:2]] == [t.values for t in first]
    assert len({trial.params[LR] for trial in again}) == 4
    for trial in again:
        record = record_of(folder / trial.user_attrs["job"])
        assert trial.value == record["metrics"]["val/acc"]
        assert record["config"]["optimizer"]["lr"] == trial.params[LR]


def test_a_point_that_is_drawn_again_is_not_run_again(lab: Lab, tmp_path: Path) -> None:
    status, _, err = lab(
        *("-m", "sweep=optuna", *SMALL, "sweep.sampler=random", "sweep.n_trials=5"),
        *(f"{LR}=0.05,0.01", "hydra.sweep.dir=sweep"),
    )
    assert status == 0, err
    assert len(list(tmp_path.glob("sweep/*/run.json"))) == 2
    assert set(states_of(tmp_path / "sweep")) <= {"COMPLETE", "FAIL"}
    values = {(t.params[LR], t.value) for t in trials_of(tmp_path / "sweep") if t.values}
    assert len(values) == 2


@pytest.mark.parametrize(
    ("objective", "direction"), [("val/acc", "maximize"), ("val/loss", "minimize")]
)
@pytest.mark.parametrize("better_first", [True, False])
def test_of_two_trials_the_worse_is_pruned_whichever_way_is_better(
    tmp_path: Path, objective: str, direction: str, better_first: bool
) -> None:
    from cifar_lab.records.record import RunRecord
    from cifar_lab.sweep.folder import SweepFolder
    from cifar_lab.sweep.points import Point
    from cifar_lab.sweep.search import StudySource
    from cifar_lab.sweep.space import parse_space
    from cifar_lab.sweep.supervisor import SweepJob

    def make_point(overrides: list[str]) -> Point:
        digest = sha256(" ".join(overrides).encode()).hexdigest()
        return Point(tuple(overrides), {}, OmegaConf.create(), {"seed": 0}, digest)

    study = optuna.create_study(
        direction=direction, pruner=optuna.pruners.MedianPruner(n_startup_trials=1)
    )
    settings: dict[str, Any] = {
        "objectives": [objective],
        "directions": [direction],
        "pruner": "median",
    }
    settings |= {"n_trials": 2, "sampler": "random", "storage": None}
    space = parse_space(OverridesParser.create().parse_overrides([f"{LR}=interval(0.1,1)"]))
    source = StudySource(study, space, settings, SweepFolder(tmp_path), make_point, [])
    good, bad = {"val/acc": 0.9, "val/loss": 0.3}, {"val/acc": 0.1, "val/loss": 2.3}
    pruned = []
    for metrics in (good, bad) if better_first else (bad, good):
        job = source.next()
        assert isinstance(job, SweepJob)
        for epochs in (1, 2):
            job.record = RunRecord(status="running", epochs=epochs, metrics=dict(metrics))
            if source.prunes(job):
                pruned.append(metrics)
        job.status = "finished"
        source.ended(job)
    assert pruned == ([bad, bad] if better_first else [])


@pytest.mark.slow
def test_a_bad_trial_is_pruned_a_diverged_one_is_worst_and_its_record_says_so(
    lab: Lab, tmp_path: Path
) -> None:
    status, _, err = lab(
        *("-m", "sweep=optuna", *TINY, "trainer.max_epochs=12", "data.batch_size=20"),
        *(
            "sweep.sampler=grid",
            "sweep.pruner=asha",
            "sweep.min_epochs=3",
            "sweep.slots=1",
            "threads=1",
        ),
        *(f"{LR}=0.05,1e30,1e-9", "hydra.sweep.dir=sweep"),
    )
    assert status == 1  # the one that diverged
    assert "diverged" in err
    by_lr = {trial.params[LR]: trial for trial in trials_of(tmp_path / "sweep")}
    assert by_lr["0.05"].state.name == "COMPLETE"
    assert by_lr["0.05"].value > 0.3
    assert (by_lr["1e+30"].state.name, by_lr["1e+30"].value) == ("COMPLETE", 0.0)
    assert by_lr["1e-09"].state.name == "PRUNED"
    record = record_of(tmp_path / "sweep" / by_lr["1e-09"].user_attrs["job"])
    assert record["status"] == "pruned"
    assert 3 <= record["epochs"] < 12


def test_several_objectives_have_several_best(lab: Lab, tmp_path: Path) -> None:
    status, out, err = lab(
        *("-m", "sweep=optuna", *SMALL, "sweep.n_trials=3", "hydra.sweep.dir=sweep"),
        *("sweep.objectives=[val/acc,parameters]", TWO, f"{LR}=0.05"),
        "model.width=range(2,5)",
    )
    assert status == 0, err
    assert "best: " in out
    assert {len(trial.values) for trial in trials_of(tmp_path / "sweep") if trial.values} == {2}
