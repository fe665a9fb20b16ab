"""Every experiment makes a few steps on synthetic images, and says of itself what it claims."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from cifar_lab.config.compose import compose, run_config
from tests.conftest import REPOSITORY, record_of

Lab = Callable[..., tuple[int, str, str]]

FOLDER = REPOSITORY / "conf" / "experiment"
EXPERIMENTS = sorted(path.stem for path in FOLDER.glob("*.yaml"))
NARROW = {
    "cnn": ("model.width=4",),
    "resnet10": ("model.width=4", "model.num_blocks=[1,1]"),
    "speednet": ("model.widths=[8,8,8]",),
}


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_it_makes_a_few_steps(lab: Lab, tmp_path: Path, name: str) -> None:
    cfg = compose([f"experiment={name}"])
    narrow = NARROW[cfg.hydra.runtime.choices.model]
    threads = torch.get_num_threads()
    try:
        status, _, err = lab(
            f"experiment={name}",
            *("data=synthetic", "data.train_size=200", "data.test_size=40", "data.batch_size=20"),
            *("threads=1", "trainer=cpu", "trainer.max_epochs=2", "trainer.limit_train_batches=3"),
            *("trainer.limit_test_batches=2", f"hydra.run.dir={tmp_path}/run", *narrow),
            *(("data.val_size=20",) if cfg.data.val_size else ()),
        )
    finally:
        torch.set_num_threads(threads)
    assert status == 0, err
    record = record_of(tmp_path / "run")
    assert record["status"] == "finished"
    assert record["steps"] == 6
    assert record["departures"] == []


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_its_header_is_its_claim(name: str) -> None:
    lines = (FOLDER / f"{name}.yaml").read_text().splitlines()
    assert lines[0] == "# @package _global_"
    assert lines[1].startswith("# ")


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_nothing_selects_by_the_test(name: str) -> None:
    config = run_config(compose([f"experiment={name}"]))
    assert config["callbacks"]["checkpoints"]["monitor"] == "val/acc"


def test_speed94_is_what_its_source_does() -> None:
    config = run_config(compose(["experiment=speed94"]))
    assert config["trainer"]["max_epochs"] * (50_000 // config["data"]["batch_size"]) == 200
    assert config["loss"]["label_smoothing"] == 0.2
    assert (config["data"]["drop_last"], config["data"]["val_size"]) == (True, 0)
    groups = config["optimizer"]["groups"]
    # of a sum over the batch there, of its mean here; weight decay is 2e-6 * batch / rate there
    for group, rate in (("whitening", 0.053), ("biases", 0.053), ("head", 0.67)):
        lr, decay = groups[group]["lr"], groups[group]["weight_decay"]
        assert lr == pytest.approx(2000 * rate)
        assert lr * decay == pytest.approx(2e-6 * 2000, rel=1e-3)
    assert groups["whitening"]["until"] * 8 == 3
