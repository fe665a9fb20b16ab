"""Every file under conf/ composes, and every node in it can be built."""

from __future__ import annotations

from pathlib import Path

import pytest

from cifar_lab.config.compose import compose, run_config
from cifar_lab.config.names import job_name
from cifar_lab.config.targets import check_targets_of_record
from cifar_lab.config.validate import check
from cifar_lab.records.digest import config_digest
from tests.conftest import REPOSITORY

GROUPS = sorted(
    str(path.relative_to(REPOSITORY / "conf").with_suffix(""))
    for path in (REPOSITORY / "conf").rglob("*.yaml")
)


@pytest.mark.parametrize("name", GROUPS)
def test_every_file_composes_and_is_checked(name: str) -> None:
    group, _, option = name.rpartition("/")
    cfg = compose([f"{group}={option}"] if group else [])
    check(cfg)
    check_targets_of_record(run_config(cfg))  # a run of it can be read back


@pytest.mark.parametrize("experiment", ["report_cnn", "report_resnet10"])
def test_the_original_report_is_followed_to_the_letter(experiment: str) -> None:
    resolved = run_config(compose([f"experiment={experiment}"]))
    assert resolved["data"]["batch_size"] == 100
    assert resolved["data"]["val_size"] == 0
    assert resolved["data"]["normalization"] == "half"
    assert resolved["data"]["drop_last"] is False
    assert resolved["augment"]["transforms"] == {}
    assert resolved["optimizer"] == {
        "_target_": "torch.optim.SGD",
        "_partial_": True,
        "lr": 0.01,
        "momentum": 0.9,
        "nesterov": False,
        "weight_decay": 0.0,
        "fused": True,  # the same update in one kernel
    }
    assert resolved["scheduler"]["_target_"].endswith("constant")
    assert resolved["loss"]["label_smoothing"] == 0.0
    assert resolved["trainer"]["max_epochs"] == 20
    assert resolved["trainer"]["precision"] == "32-true"


def test_debug_presets_change_what_they_say() -> None:
    fast = run_config(compose(["debug=fast"]))
    assert fast["trainer"]["limit_train_batches"] == 3
    overfit = run_config(compose(["debug=overfit"]))
    assert overfit["data"]["shuffle"] is False
    assert overfit["augment"]["transforms"] == {}


def test_folders_under_conf_of_the_working_directory_join_the_search_path(tmp_path: Path) -> None:
    folder = tmp_path / "conf" / "experiment"
    folder.mkdir(parents=True)
    (folder / "mine.yaml").write_text("# @package _global_\nseed: 42\n")
    assert compose(["experiment=mine"]).seed == 42


def test_the_digest_is_of_what_decides_the_result() -> None:
    def digest(*overrides: str) -> str:
        return config_digest(run_config(compose(overrides)))

    same = digest()
    assert digest("data.root=/elsewhere", "resume=must", "logger=csv") == same
    assert len({same, digest("seed=1"), digest("optimizer.lr=0.02"), digest("model=resnet10")}) == 4


def test_a_job_name_is_short_and_plain_and_tells_points_apart() -> None:
    def name(*overrides: str) -> str:
        return job_name(["model=resnet10", *overrides])

    plain = name("optimizer.lr=0.1", "model.num_blocks=[1,1,1,1]")
    assert plain.startswith("resnet10-lr0.1-num_blocks1.1.1.1-")
    assert name("model.num_blocks=[1,11]") != name("model.num_blocks=[11,1]")
    assert len(name(*[f"optimizer.some_long_key_{i}=0.123456" for i in range(20)])) <= 100
    assert not set(name("data.root='a b/c,d'")) & set(" ,/[]'\"")
