"""Leaving ingredients out of a recipe: what it means, and what is refused."""

from __future__ import annotations

import pytest

from cifar_lab.config.compose import compose, run_config
from cifar_lab.config.ingredients import points
from cifar_lab.config.validate import check
from cifar_lab.errors import InputError
from cifar_lab.records.digest import config_digest, deciding

EXPERIMENTS = ["speed94", "cnn_strong"]


@pytest.mark.parametrize("experiment", EXPERIMENTS)
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
    ],
)
def test_what_there_is_not_is_refused(overrides: list[str], said: str) -> None:
    with pytest.raises(InputError, match=said):
        compose(overrides)


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
