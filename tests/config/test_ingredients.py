"""Leaving ingredients out of a recipe: what it means, and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from cifar_lab.config.compose import compose, run_config
from cifar_lab.config.ingredients import points
from cifar_lab.config.validate import check
from cifar_lab.errors import InputError
from cifar_lab.records.digest import config_digest, deciding

Lab = Callable[..., tuple[int, str, str]]
EXPERIMENTS = ["speed94", "cnn_strong"]
OTHERS = ["speed96", "resnet10_strong", "wrn_strong"]


@pytest.mark.parametrize(
    "experiment", [*EXPERIMENTS, *(pytest.param(name, marks=pytest.mark.slow) for name in OTHERS)]
)
def test_every_ingredient_can_be_left_out_and_changes_something(experiment: str) -> None:
    base = compose([f"experiment={experiment}"])
    whole = config_digest(run_config(base))
    found = {}
    for name in base.sweep.ingredients:
        cfg = compose([f"experiment={experiment}", f"ablation=without_{name}"])
        check(cfg)
        settings = deciding(run_config(cfg))
        assert settings.pop("ablation") == f"without_{name}"
        found[name] = str(sorted(settings.items()))
        assert config_digest(run_config(cfg)) != whole
    assert len(set(found.values())) == len(found)
    assert str(sorted(deciding(run_config(base)).items())) not in found.values()
    check(compose([f"experiment={experiment}", "ablation=bare"]))
    alone = points(base.sweep.ingredients, "only").split(",")[1:]
    # of a flip that is left out there is no alternation, of Muon no normalization
    nothing = {"only_alternation", "only_normalization"}
    assert {f"only_{name}" for name in base.sweep.ingredients} - {*alone} <= nothing


def test_without_ablation_the_digest_is_as_it_was() -> None:
    config = run_config(compose(["experiment=report_cnn"]))
    before = {key: value for key, value in config.items() if key not in ("ablation", "tta")}
    assert config_digest(config) == config_digest(before)


def test_alone_leaves_out_all_others() -> None:
    smoothing = run_config(compose(["experiment=speed94", "ablation=only_label_smoothing"]))
    assert smoothing["loss"]["label_smoothing"] == 0.2
    assert smoothing["tta"] == "none"
    assert smoothing["augment"]["transforms"]["flip"] is None
    assert smoothing["model"]["whitening"] is False


def test_what_was_typed_gives_way() -> None:
    cfg = compose(["experiment=speed94", "tta=flip", "ablation=without_tta"])
    assert cfg.tta == "none"


def test_the_points_of_a_sweep_are_all_of_them_and_the_base() -> None:
    ingredients = {"a": ["tta=none"], "b": ["model.width=2"]}
    assert points(ingredients, "without") == "null,without_a,without_b"
    assert points(ingredients, "only") == "bare,only_a,only_b"


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["experiment=speed94", "ablation=without_flp"], "did you mean without_flip"),
        (["experiment=speed94", "ablation=flip"], "must be null, bare"),
        (["ablation=bare"], "sweep.ingredients: the configuration names none"),
        (
            ["experiment=speed94", "ablation=only_alternation"],
            "ablation=only_alternation: is the same as bare",
        ),
        (
            ["experiment=speed94", "tta=none", "ablation=without_tta"],
            "ablation=without_tta: changes nothing: .* ~sweep.ingredients.tta takes it off",
        ),
    ],
)
def test_what_there_is_not_is_refused(overrides: list[str], said: str) -> None:
    with pytest.raises(InputError, match=said):
        compose(overrides)


@pytest.mark.parametrize(
    ("ingredient", "said"),
    [
        ("x: []", "sweep.ingredients.x: is empty"),
        ("x: [monitors=none]", "ablation=without_x: changes nothing"),
        ("x: [steps_per_call=abc]", "ablation=without_x: steps_per_call=abc: must be an integer"),
        ("x: [loss.smothing=0]", "ablation=without_x: loss.smothing: unknown key"),
        ("x: ['loss.label_smoothing=0,0.2']", "ablation=without_x: .*several values are a sweep"),
        (
            "x: [loss.label_smoothing=0.1, loss.label_smoothing=0.2]",
            "loss.label_smoothing=0.1 and loss.label_smoothing=0.2 are left out together, and are ",
        ),
        ("x: [seed=3]", "sweep.ingredients.x: seed=3 is no part of a recipe"),
        ("x: [ablation=bare]", "sweep.ingredients.x: ablation=bare is no part of a recipe"),
        ("x: [experiment=none]", "sweep.ingredients.x: experiment=none is no part"),
        ("x: [hydra/launcher=basic]", "sweep.ingredients.x: hydra/launcher=basic is no part"),
        ("x: [sweep.slots=1]", "sweep.ingredients.x: sweep.slots=1 is no part of a recipe"),
        ("'a,b': [tta=none]", "sweep.ingredients.a,b: must be called by letters, digits"),
    ],
    ids=lambda value: value if ":" not in value else "",
)
def test_an_ingredient_of_ones_own_that_is_none_is_named(
    tmp_path: Path, ingredient: str, said: str
) -> None:
    folder = tmp_path / "conf" / "experiment"
    folder.mkdir(parents=True)
    text = f"# @package _global_\nsweep:\n  ingredients:\n    {ingredient}\n"
    (folder / "mine.yaml").write_text(text)
    with pytest.raises(InputError, match=said) as error:
        compose(["experiment=mine", "ablation=without_x"])
    assert "\n" not in str(error.value)


def test_what_is_left_out_together_is_nothing_alone(lab: Lab) -> None:
    both = {"a": ["tta=none"], "b": ["tta=none"]}
    with pytest.raises(InputError, match="none of them is anything alone"):
        points(both, "only")
    status, _, err = lab("-m", "sweep=add_one", "data=synthetic")
    assert (status, err.count("\n")) == (2, 1)
    assert err.startswith("cifar_lab: sweep.ingredients: the configuration names none")


def test_callbacks_are_ingredients() -> None:
    own = [
        "callbacks=[sam,lookahead,swa]",
        "callbacks.sam.rho=0.1",
        *(f'+sweep.ingredients.{n}=["callbacks.{n}=null"]' for n in ("sam", "lookahead", "swa")),
    ]
    for ablation, left in (
        ("null", {"checkpoints", "sam", "lookahead", "swa"}),
        ("without_sam", {"checkpoints", "lookahead", "swa"}),
        ("only_sam", {"checkpoints", "sam"}),
        ("bare", {"checkpoints"}),
    ):
        cfg = compose([*own, f"ablation={ablation}"])
        check(cfg)
        assert set(run_config(cfg)["callbacks"]) == left
