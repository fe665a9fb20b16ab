"""Every experiment makes a few steps on synthetic images, and says of itself what it claims."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from cifar_lab.config.compose import compose, run_config
from cifar_lab.config.validate import check
from cifar_lab.run.build import build_optimizer, build_schedule
from cifar_lab.run.networks import build_network
from cifar_lab.training.muon import orthogonalized
from cifar_lab.training.schedules import FactorSchedule, TorchSchedule
from tests.conftest import REPOSITORY, record_of

Lab = Callable[..., tuple[int, str, str]]

FOLDER = REPOSITORY / "conf" / "experiment"
EXPERIMENTS = sorted(path.stem for path in FOLDER.glob("*.yaml") if path.stem != "none")
NARROW = {
    "cnn": ("model.width=4",),
    "resnet10": ("model.width=4", "model.num_blocks=[1,1]"),
    "speednet": ("model.widths=[8,8,8]",),
    "wide_resnet": ("model.depth=10", "model.width=1"),
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


def test_speed94_makes_its_source_s_steps() -> None:
    # airbench94_muon's loop, in its own terms: a loss that is summed, rates of the sum, two
    # optimizers whose rates are set by hand before each step
    cfg = compose(["experiment=speed94", "model.widths=[8,8,8]", "optimizer.dtype=float32"])
    torch.manual_seed(0)
    ours = build_network(cfg, 10, 32)
    theirs: Any = copy.deepcopy(ours)
    batches = [(torch.randn(16, 3, 32, 32), torch.randint(0, 10, (16,))) for _ in range(8)]
    optimizer = build_optimizer(cfg)(ours)
    factor = build_schedule(cfg)
    assert not isinstance(factor, TorchSchedule)
    schedule = FactorSchedule(optimizer, factor, len(batches))
    for images, labels in batches:
        loss = F.cross_entropy(ours(images), labels, label_smoothing=0.2)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    bias_rate, head_rate, decay = 0.053, 0.67, 2e-6 * 2000
    filters = [p for p in theirs.parameters() if p.ndim == 4 and p.requires_grad]
    norms = [p for n, p in theirs.named_parameters() if "norm" in n and p.requires_grad]
    groups = [
        {"params": [theirs.whiten.bias], "lr": bias_rate, "weight_decay": decay / bias_rate},
        {"params": norms, "lr": bias_rate, "weight_decay": decay / bias_rate},
        {"params": [theirs.head.weight], "lr": head_rate, "weight_decay": decay / head_rate},
    ]
    sgd = torch.optim.SGD(groups, momentum=0.85, nesterov=True)
    buffers = [torch.zeros_like(p) for p in filters]
    rates = [group["lr"] for group in sgd.param_groups]
    for step, (images, labels) in enumerate(batches):
        loss = F.cross_entropy(theirs(images), labels, label_smoothing=0.2)
        sgd.zero_grad()
        (2000 * loss).backward()  # the sum over a batch of 2,000 with this mean
        theirs.whiten.bias.requires_grad_(step + 1 < 3)  # 3 of 8 epochs: no gradient from there on
        for index, group in enumerate(sgd.param_groups):
            group["lr"] = rates[index] * (1 - step / (len(batches) if index else 3))
        with torch.no_grad():
            for p, buffer in zip(filters, buffers, strict=True):
                buffer.mul_(0.6).add_(p.grad)
                matrix = (p.grad + 0.6 * buffer).flatten(1)
                p.mul_(len(p) ** 0.5 / p.norm())
                update = orthogonalized(matrix, steps=3, dtype=torch.float32)
                p.sub_(update.view_as(p), alpha=0.24 * (1 - step / len(batches)))
                p.grad = None
        sgd.step()
    for (name, mine), its in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(mine, its, rtol=1e-3, atol=1e-3, msg=name)


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


def test_speed96_is_what_its_source_does() -> None:
    config = run_config(compose(["experiment=speed96"]))
    optimizer, groups = config["optimizer"], config["optimizer"]["groups"]
    # decoupled there: 9 and .012 for 1,024 images, in units of 1 + 1 / (1 - momentum)
    unit = 1 + 1 / (1 - 0.85)
    assert optimizer["momentum"] == 0.85
    assert optimizer["lr"] == pytest.approx(9 / unit)
    assert optimizer["lr"] * optimizer["weight_decay"] == pytest.approx(0.012 / unit)
    assert groups["biases"]["lr"] == pytest.approx(64 * 9 / unit)
    assert groups["biases"]["lr"] * groups["biases"]["weight_decay"] == pytest.approx(0.012 / unit)
    assert groups["whitening"]["until"] * 37 == pytest.approx(3)
    assert config["model"]["widths"] == [128, 384, 512]
    assert config["model"]["logit_scale"] == pytest.approx(1 / 9)


def test_cpu94_is_speed94_for_longer() -> None:
    short, long = (run_config(compose([f"experiment={name}"])) for name in ("speed94", "cpu94"))
    assert long["trainer"].pop("max_epochs") == 4 * short["trainer"].pop("max_epochs")
    for config in (short, long):
        config["optimizer"]["groups"]["whitening"].pop("until")
    assert long == short


@pytest.mark.slow
def test_each_ingredient_can_be_left_out() -> None:
    for name in EXPERIMENTS:
        for ingredient in compose([f"experiment={name}"]).sweep.ingredients or ():
            check(compose([f"experiment={name}", f"ablation=without_{ingredient}"]))
