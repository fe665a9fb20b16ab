"""What is read back from a run folder never runs code that isn't a part of a run."""

from __future__ import annotations

from copy import deepcopy
from functools import lru_cache
from typing import Any

import pytest
from omegaconf import OmegaConf

from cifar_lab.config.compose import compose, run_config
from cifar_lab.config.targets import PARTS_OF_A_RUN, check_targets_of_record, target_nodes
from cifar_lab.errors import InputError
from tests.conftest import REPOSITORY, TINY


@lru_cache
def composed(*overrides: str) -> dict[str, Any]:
    return run_config(compose(overrides))


def resolved(*overrides: str) -> dict[str, Any]:
    return deepcopy(composed(*overrides))


@pytest.mark.parametrize(
    "overrides",
    [
        (),
        TINY,
        ("data=synthetic", "augment=strong", "optimizer=adamw", "callbacks=early_stopping"),
        ("model._target_=torchvision.models.resnet18", "~model.width", "~model.dropout"),
    ],
    ids=range(4),
)
def test_shipped_configurations_are_accepted(overrides: tuple[str, ...]) -> None:
    check_targets_of_record(resolved(*overrides))


def test_every_part_that_is_shipped_is_a_part_of_a_run() -> None:
    seen = 0
    for path in sorted((REPOSITORY / "conf").glob("*/*.yaml")):
        group = path.parent.name
        loaded = OmegaConf.to_container(OmegaConf.load(path))
        for _, node in target_nodes({group: loaded}, ""):
            if group in PARTS_OF_A_RUN:
                check_targets_of_record({group: {"_target_": node["_target_"]}})
                seen += 1
    assert seen > 30


@pytest.mark.parametrize(
    "target",
    [
        "os.system",
        "subprocess.Popen",
        "builtins.eval",
        "torch.load",
        "torch.hub.load",
        "torch.utils.cpp_extension.load",
        "torch.nn.modules.module.warnings.sys.exit",
        "torchvision.models._api.importlib.import_module",
        "lightning.pytorch.callbacks.model_checkpoint.os.remove",
        "cifar_lab.training.fit.signals.poll",
        "cifar_lab.__main__.main",
        "torch.nnx.Module",
    ],
)
@pytest.mark.parametrize("place", ["model", "data.transform", "callbacks.x", "deep"])
def test_any_other_target_is_refused_by_name(target: str, place: str) -> None:
    cfg = resolved(*TINY)
    node = {"_target_": target}
    if place == "deep":
        cfg["augment"]["transforms"]["list"] = [{"inner": node}]
    elif "." in place:
        group, name = place.split(".")
        cfg[group][name] = node
    else:
        cfg[place] = node
    with pytest.raises(InputError, match="not a part of a run"):
        check_targets_of_record(cfg)


def test_a_module_is_not_imported_to_be_refused(tmp_path: Any, monkeypatch: Any) -> None:
    (tmp_path / "evil.py").write_text("raise SystemExit('imported')")
    monkeypatch.syspath_prepend(tmp_path)
    cfg = resolved(*TINY)
    cfg["model"] = {"_target_": "evil.Network"}
    with pytest.raises(InputError, match="evil"):
        check_targets_of_record(cfg)


def test_own_networks_are_accepted_where_they_are_named(tmp_path: Any, monkeypatch: Any) -> None:
    (tmp_path / "own_networks.py").write_text("class Net: pass\n")
    monkeypatch.syspath_prepend(tmp_path)
    cfg = resolved(*TINY)
    cfg["model"] = {"_target_": "own_networks.Net"}
    check_targets_of_record(cfg, also=["own_networks"])


def test_a_value_still_to_be_interpolated_is_refused() -> None:
    cfg = resolved(*TINY)
    cfg["data"]["root"] = "${oc.env:HOME}"
    with pytest.raises(InputError, match=r"data\.root"):
        check_targets_of_record(cfg)


@pytest.mark.parametrize(
    ("group", "target"),
    [
        ("model", "lightning.pytorch.loggers.CSVLogger"),
        ("model", "torch.optim.SGD"),
        ("model", "cifar_lab.data.fetch.download.fetch"),
        ("model", "timm.models.load_state_dict"),
        ("loss", "cifar_lab.training.callbacks.ema.Ema"),
        ("loss", "torch.nn.utils.clip_grad_norm_"),
        ("data", "cifar_lab.data.datamodule.stratified_split"),
        ("data", "torchvision.datasets.CIFAR10"),
        ("optimizer", "torch.optim.swa_utils.update_bn"),
        ("logger", "cifar_lab.training.loggers.tensorboard.hparams_of"),
        ("surprise", "torch.nn.Linear"),
    ],
)
def test_a_part_of_another_group_is_none_of_this(group: str, target: str) -> None:
    with pytest.raises(InputError, match="not a part of a run"):
        check_targets_of_record({group: {"_target_": target}})


@pytest.mark.parametrize(
    ("group", "target"),
    [
        ("model", "torchvision.models.resnet18"),
        ("model", "torchvision.models.get_model"),
        ("model", "timm.create_model"),
        ("model", "torch.nn.Sequential"),
        ("loss", "torch.nn.CrossEntropyLoss"),
        ("loss", "torch.nn.functional.cross_entropy"),
        ("scheduler", "cifar_lab.training.schedules.cosine"),
        ("scheduler", "torch.optim.lr_scheduler.StepLR"),
        ("trainer", "lightning.pytorch.Trainer"),
    ],
)
def test_the_libraries_parts_are_accepted(group: str, target: str) -> None:
    check_targets_of_record({group: {"_target_": target}})


@pytest.mark.parametrize("path", ["/etc", "../x", "a/../../x", "~/x", "C:\\x", "..\\x"])
@pytest.mark.parametrize("place", ["callbacks", "monitors", "logger", "trainer"])
def test_no_part_that_writes_leaves_the_folder(path: str, place: str) -> None:
    cfg = resolved(*TINY)
    node = cfg["trainer"] if place == "trainer" else cfg[place].setdefault("x", {})
    node["dirpath"] = path
    with pytest.raises(InputError, match="leads out of the run folder"):
        check_targets_of_record(cfg)
    # Lightning takes it from the working directory on
    node["dirpath"] = "below/it"
    with pytest.raises(InputError, match="leads out of the run folder"):
        check_targets_of_record(cfg)
    del node["dirpath"]
    node["filename"] = "below/it"  # of the run folder
    check_targets_of_record(cfg)


def test_advice_to_trust_is_given_for_a_module_of_ones_own_alone() -> None:
    for target, advised in (("nets.Net", True), ("os.system", False), ("torch.load", False)):
        with pytest.raises(InputError) as error:
            check_targets_of_record({"model": {"_target_": target}})
        assert ("--trust" in str(error.value)) == advised
