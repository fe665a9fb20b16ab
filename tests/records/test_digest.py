"""Two configurations are one run where nothing that decides a result differs, and only there."""

from __future__ import annotations

import copy
import hashlib
import json
from typing import Any

import pytest

from cifar_lab.records.digest import (
    KEYS_THAT_CHANGE_NO_RESULT,
    NEW_OF_RESIDUAL,
    STANDING_VALUES,
    changes_no_result,
    config_digest,
    flatten,
    run_digest,
)
from cifar_lab.records.record import Data

CONFIG: dict[str, Any] = {
    "seed": 3,
    "model": {"_target_": "a.B", "num_blocks": [1, 2], "extra": {}},
    "optimizer": {"lr": 0.1, "groups": {"bias": {"lr": 6.4}}},
    "threads": None,
    "data": {"val_size": 50},
}


def changed(key: str, value: Any) -> dict[str, Any]:
    """The configuration with one dotted key set, new or not."""
    config = copy.deepcopy(CONFIG)
    *path, last = key.split(".")
    node = config
    for name in path:
        node = node.setdefault(name, {})
    node[last] = value
    return config


def test_flattening_gives_every_leaf_its_dotted_key() -> None:
    assert list(flatten(CONFIG)) == [
        ("seed", 3),
        ("model._target_", "a.B"),
        ("model.num_blocks", [1, 2]),
        ("model.extra", {}),
        ("optimizer.lr", 0.1),
        ("optimizer.groups.bias.lr", 6.4),
        ("threads", None),
        ("data.val_size", 50),
    ]
    assert list(flatten({"b": 1, "c": {2: 3}}, "a.")) == [("a.b", 1), ("a.c.2", 3)]


@pytest.mark.parametrize("key", [key for key, _ in flatten(CONFIG)])
def test_whatever_decides_a_result_changes_the_digest(key: str) -> None:
    before = config_digest(CONFIG)
    assert config_digest(changed(key, "another")) != before
    assert config_digest(changed(f"{key}_2", "new")) != before


@pytest.mark.parametrize("key", KEYS_THAT_CHANGE_NO_RESULT)
def test_what_decides_none_does_not(key: str) -> None:
    before = config_digest(CONFIG)
    assert changes_no_result(key)
    assert config_digest(changed(key, "anything")) == before
    assert config_digest(changed(f"{key}.below", "anything")) == before
    # a name that only begins so is another key
    assert not changes_no_result(f"{key}_2")
    assert config_digest(changed(f"{key}_2", "anything")) != before


@pytest.mark.parametrize("key", STANDING_VALUES)
@pytest.mark.parametrize("value", ["another", 7, None, {"_target_": "a.B", "x": 1}])
def test_what_decides_none_and_was_counted_before_keeps_the_old_digest(
    key: str, value: Any
) -> None:
    standing = changed(key, STANDING_VALUES[key])
    text = json.dumps(dict(flatten(standing)), sort_keys=True, separators=(",", ":"))
    assert config_digest(standing) == hashlib.sha256(text.encode()).hexdigest()
    assert config_digest(changed(key, value)) == config_digest(standing)


def test_callbacks_that_only_look_on_are_no_part_of_it() -> None:
    for name in ("LearningRateMonitor", "DeviceStatsMonitor"):
        target = f"lightning.pytorch.callbacks.{name}"
        node = {"_target_": target, "logging_interval": "epoch"}
        assert config_digest(changed("callbacks.x", node)) == config_digest(CONFIG)
    for target in ("lightning.pytorch.callbacks.EarlyStopping", "mine.LearningRateMonitor"):
        assert config_digest(changed("callbacks.x", {"_target_": target})) != config_digest(CONFIG)


@pytest.mark.parametrize("key", ["callbacks.checkpoints", "callbacks.stop", "scheduler"])
def test_a_monitor_whose_metric_chooses_is_a_part_of_it(key: str) -> None:
    def digest(metric: str | None, monitors: dict[str, Any]) -> str:
        chosen = changed(key, {"_target_": "a.C", "monitor": metric})
        return config_digest(chosen | {"monitors": monitors})

    def mine(bins: int) -> dict[str, Any]:
        return {"mine": {"_target_": "mine.Calibration", "bins": bins}}

    ours = {"figures": {"_target_": "cifar_lab.training.callbacks.x.X", "every": 3}}
    assert digest("val/ece", mine(10)) != digest("val/ece", mine(15))
    assert digest("val/ece", mine(10) | ours) == digest("val/ece", mine(10))
    for metric in ("val/acc", "val/loss", None):
        assert digest(metric, mine(10)) == digest(metric, mine(15)) == digest(metric, {})


def test_the_order_of_keys_is_no_part_of_it_but_that_of_values_is() -> None:
    turned = {key: CONFIG[key] for key in reversed(CONFIG)}
    turned["optimizer"] = {"groups": {"bias": {"lr": 6.4}}, "lr": 0.1}
    assert config_digest(turned) == config_digest(CONFIG)
    assert config_digest(changed("model.num_blocks", [2, 1])) != config_digest(CONFIG)
    assert len({config_digest(changed("seed", value)) for value in (3, "3", 3.5, None, [3])}) == 5


def test_the_digest_is_what_it_was() -> None:
    # it stands in every run.json and in the folders' names of sweeps: were it another, finished
    # runs would not be found again
    assert (
        config_digest(CONFIG) == "9a7106c2b365f3f4ae89cacbe51f72ee5fab1ab0caf500aca4c8fa1cd620673a"
    )


def test_a_run_is_its_configuration_and_its_images() -> None:
    pairs = [(config, images) for config in ("c1", "c2") for images in ("i1", "i2")]
    assert len({run_digest(*pair) for pair in pairs}) == 4
    # as above: it is on record
    assert run_digest("c1", "i1") == hashlib.sha256(b"c1 i1").hexdigest()


@pytest.mark.parametrize(
    ("images", "data", "same"),
    [
        ("a", {"digest": "a", "official": False}, True),
        ("b", {"digest": "a", "official": True}, False),
        ("a", {}, False),
        # the official ones, which nobody has fetched yet
        (None, {"digest": "a", "official": True}, True),
        (None, {"digest": "a", "official": False}, False),
        (None, {}, False),
    ],
)
def test_images_are_the_same_by_their_digest_or_as_the_official_ones(
    images: str | None, data: dict[str, Any], same: bool
) -> None:
    assert Data.model_validate(data).holds(images) is same


@pytest.mark.parametrize(("key", "value"), NEW_OF_RESIDUAL.items())
def test_a_key_that_is_new_for_one_network_is_not_for_others(key: str, value: Any) -> None:
    def digests(target: str) -> list[str]:
        without = changed("model._target_", target)
        given = [copy.deepcopy(without) for _ in range(2)]
        for config, setting in zip(given, (value, "another"), strict=True):
            config["model"][key.removeprefix("model.")] = setting
        return [config_digest(config) for config in (without, *given)]

    for network in ("cifar_lab.model.resnet.ResNet", "cifar_lab.model.preact_resnet.WideResNet"):
        without, at_the_old_value, another = digests(network)
        assert without == at_the_old_value != another
    for network in ("cifar_lab.model.speednet.SpeedNet", "nets.Mine"):
        assert len(set(digests(network))) == 3
