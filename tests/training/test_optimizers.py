"""Parameter groups by role and by name, and which optimizers a fit can use."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim import SGD, Adagrad, Adam, AdamW, Optimizer, RMSprop

from cifar_lab.errors import InputError
from cifar_lab.model.resnet import ResNet
from cifar_lab.training.optimizers import OptimizerFactory, roles
from tests.conftest import TINY, environment, merged, record_of
from tests.support.runs import SMALL, weights

Lab = Callable[..., tuple[int, str, str]]
NO_DECAY = {"plain": {"parameters": ["norms", "biases"], "weight_decay": 0.0}}


@pytest.fixture
def network() -> nn.Module:
    return ResNet(num_blocks=[1, 1], width=4, num_classes=10)


def names_of(group: dict[str, Any]) -> set[str]:
    return set(group["param_names"])


def test_each_parameter_has_the_role_that_its_layer_gives_it(network: nn.Module) -> None:
    of = dict(roles(network))
    assert set(of) == {name for name, _ in network.named_parameters()}
    modules = dict(network.named_modules())
    for name, role in of.items():
        layer = modules[name.rpartition(".")[0]]
        if isinstance(layer, nn.BatchNorm2d):
            assert role == "norms"
        elif name.endswith("bias"):
            assert role == "biases"
        else:
            assert role == ("filters" if isinstance(layer, nn.Conv2d) else "weights")


@pytest.mark.parametrize(
    "make", [SGD, AdamW, Adam, RMSprop, Adagrad], ids=lambda make: make.__name__
)
def test_groups_part_the_parameters(network: nn.Module, make: Callable[..., Optimizer]) -> None:
    factory = OptimizerFactory(partial(make, lr=0.1, weight_decay=0.5), NO_DECAY)
    rest, plain = factory(network).param_groups
    assert names_of(plain) == {n for n, role in roles(network) if role in ("norms", "biases")}
    assert names_of(rest) | names_of(plain) == {n for n, _ in network.named_parameters()}
    assert not names_of(rest) & names_of(plain)
    assert (rest["weight_decay"], plain["weight_decay"]) == (0.5, 0.0)
    assert rest["lr"] == plain["lr"] == 0.1


def test_a_parameter_is_in_the_first_group_that_fits_and_rates_are_scaled(
    network: nn.Module,
) -> None:
    groups = {
        "head": {"parameters": "fc*", "lr_scale": 0.5},
        "biases": {"parameters": ["biases", "norms"], "lr_scale": 64},
        "second": {"parameters": ["filters"], "lr": 0.7},
    }
    head, biases, second = OptimizerFactory(partial(SGD, lr=0.1), groups)(network).param_groups
    assert names_of(head) == {"fc.weight", "fc.bias"}
    assert "fc.bias" not in names_of(biases)
    assert [group["lr"] for group in (head, biases, second)] == [0.05, 6.4, 0.7]


def test_one_step_decays_what_is_in_no_group_alone(network: nn.Module) -> None:
    make = partial(SGD, lr=1.0, weight_decay=0.5)
    before = {name: p.detach().clone() for name, p in network.named_parameters()}
    optimizer = OptimizerFactory(make, NO_DECAY)(network)
    for parameter in network.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    for name, parameter in network.named_parameters():
        kept = 1.0 if dict(roles(network))[name] in ("norms", "biases") else 0.5
        assert torch.equal(parameter, kept * before[name]), name


def test_without_groups_the_order_is_the_networks(network: nn.Module) -> None:
    (group,) = OptimizerFactory(partial(SGD, lr=0.1))(network).param_groups
    assert [id(p) for p in group["params"]] == [id(p) for p in network.parameters()]


@pytest.mark.parametrize(
    ("group", "parts"),
    [
        ({"parameters": "head*"}, ["head*", "norms, biases, filters, weights", "stem"]),
        ({}, ["parameters=null", "roles"]),
        ({"parameters": []}, ["parameters=[]"]),
        ({"parameters": "fc*", "decay": 0}, ["decay: unknown key", "weight_decay"]),
        ({"parameters": "fc*", "weight_decay": -1}, ["weight_decay=-1", "at least 0"]),
        ({"parameters": "fc*", "lr_scale": "high"}, ["lr_scale=high", "a number"]),
        ({"parameters": "fc*", "lr_scale": 2, "lr": 0.1}, ["lr_scale=2", "no lr beside it"]),
    ],
    ids=str,
)
def test_a_wrong_group_is_named(
    network: nn.Module, group: dict[str, Any], parts: list[str]
) -> None:
    with pytest.raises(InputError, match=r"groups\.mine") as caught:
        OptimizerFactory(partial(SGD, lr=0.1), {"mine": group})(network)
    for part in parts:
        assert part in str(caught.value)


# --- from the command line ------------------------------------------------------------------------

OWN = """
import torch

def split(named_parameters, *, lr, head_lr):
    named = list(named_parameters)
    head = [(n, p) for n, p in named if n.startswith("fc")]
    rest = [(n, p) for n, p in named if not n.startswith("fc")]
    return torch.optim.SGD([{"params": rest}, {"params": head, "lr": head_lr}], lr=lr)

def of_none(named_parameters, *, lr):
    return torch.optim.SGD([torch.nn.Parameter(torch.zeros(3))], lr=lr)

def of_a_tensor(named_parameters, *, lr):
    return torch.optim.Adam([p for _, p in named_parameters], lr=torch.tensor(lr))

def lists(named_parameters, *, lr):
    return [p for _, p in named_parameters]
"""
SWITCH = ("~optimizer.momentum", "~optimizer.nesterov", "~optimizer.weight_decay")


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "own_optimizers.py").write_text(OWN)
    monkeypatch.syspath_prepend(tmp_path)


def groups_of(run_dir: Path) -> list[dict[str, Any]]:
    checkpoint = torch.load(run_dir / "checkpoints" / "last.ckpt", weights_only=True)
    groups: list[dict[str, Any]] = checkpoint["optimizer_states"][0]["param_groups"]
    return groups


@pytest.mark.usefixtures("own")
def test_a_factory_of_ones_own_gets_names(lab: Lab, tmp_path: Path) -> None:
    status, _, err = lab(
        *(*TINY, *SWITCH, "~optimizer.fused", "~optimizer._partial_", "trainer.max_epochs=1"),
        *("optimizer._target_=own_optimizers.split", "+optimizer.head_lr=0.5"),
        *("scheduler=none", f"hydra.run.dir={tmp_path}/run"),
    )
    assert status == 0, err
    rest, head = groups_of(tmp_path / "run")
    assert head["param_names"] == ["fc.weight", "fc.bias"]
    assert (rest["lr"], head["lr"]) == (0.03, 0.5)


@pytest.mark.usefixtures("own")
def test_a_rate_in_a_tensor_is_logged_as_it_was(lab: Lab, tmp_path: Path) -> None:
    """Schedules change it in place."""
    status, _, err = lab(
        *(*TINY, *SWITCH, "~optimizer.fused", "trainer.max_epochs=1"),
        *("optimizer._target_=own_optimizers.of_a_tensor", f"hydra.run.dir={tmp_path}/run"),
    )
    assert (status, err) == (0, "")
    assert record_of(tmp_path / "run")["metrics"]["lr"] > 0


def test_groups_are_chosen_without_a_plus(lab: Lab, tmp_path: Path) -> None:
    arguments = (*TINY, "trainer.max_epochs=1", "optimizer/groups=no_decay")
    head = "+optimizer.groups.head={parameters: fc*, lr_scale: 0.1}"
    assert lab(*arguments, head, f"hydra.run.dir={tmp_path}/run")[0] == 0
    groups = groups_of(tmp_path / "run")
    assert [group["weight_decay"] for group in groups] == [0.0005, 0.0, 0.0005]
    assert record_of(tmp_path / "run")["config"]["optimizer"]["groups"]["head"]["lr_scale"] == 0.1


def wrong(*arguments: str) -> Sequence[str]:
    return arguments


@pytest.mark.usefixtures("own")
@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (
            wrong("+optimizer.groups.head.parameters=head*"),
            ["optimizer.groups.head.parameters=head*: no parameter is left"],
        ),
        (
            wrong("optimizer._target_=torch.optim.LBFGS", *SWITCH, "~optimizer.fused"),
            ["optimizer._target_: LBFGS computes the loss several times in a step"],
        ),
        (
            wrong("optimizer._target_=torch.optim.SparseAdam", *SWITCH, "~optimizer.fused"),
            ["optimizer._target_: SparseAdam takes sparse gradients"],
        ),
        (
            wrong("optimizer._target_=torch.optim.Muon", "~optimizer.fused"),
            ["optimizer: Muon", "2D"],
        ),
        (
            wrong("optimizer._target_=own_optimizers.lists", *SWITCH, "~optimizer.fused"),
            ["optimizer._target_: list is no torch.optim.Optimizer"],
        ),
        (
            wrong("optimizer._target_=own_optimizers.of_none", *SWITCH, "~optimizer.fused"),
            ["optimizer._target_: gives an optimizer of a parameter (3,) that is none of the netw"],
        ),
        (
            wrong("+optimizer.groups.head={parameters: fc*, nesterov: often}"),
            ["optimizer: ", "nesterov"],
        ),
        (wrong("+optimizer.groups.head=null"), ["optimizer.groups.head=null: must say its param"]),
        (
            wrong("optimizer._target_=own_optimizers.split", *SWITCH, "~optimizer.fused"),
            ["optimizer", "head_lr"],
        ),
    ],
    ids=lambda value: value[0][:60],
)
def test_what_a_fit_can_not_use_is_one_line(
    lab: Lab, tmp_path: Path, arguments: Sequence[str], parts: list[str]
) -> None:
    status, _, err = lab(*TINY, *arguments)
    assert status == 2, err
    assert len(err.strip().splitlines()) == 1, err
    for part in parts:
        assert part in err
    assert not (tmp_path / "outputs").exists()


# --- parameters that are trained for a share of the fit -------------------------------------------

EARLY = "+optimizer.groups.early={parameters: stem*, until: 0.5}"
LINE = ("scheduler=linear", "trainer.max_epochs=2", "threads=1")


def weights_of(folder: Path, name: str = "last.ckpt") -> dict[str, torch.Tensor]:
    state = torch.load(folder / "checkpoints" / name, weights_only=True)["state_dict"]
    weights: dict[str, torch.Tensor] = state
    return weights


@pytest.mark.parametrize("steps_per_call", ["1", "3"])
def test_until_ends_a_group_and_saves_its_gradients_alone(
    lab: Lab, tmp_path: Path, steps_per_call: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from cifar_lab.training.classifier import Classifier

    found = []
    arguments = (*TINY, EARLY, *LINE, f"steps_per_call={steps_per_call}")
    for folder in ("frozen", "at_rate_0"):
        if folder == "at_rate_0":  # gradients go on to be computed
            monkeypatch.setattr(Classifier, "_end_training", lambda self: None)
        status, _, err = lab(*arguments, f"hydra.run.dir={tmp_path}/{folder}")
        assert status == 0, err
        found.append(weights_of(tmp_path / folder))
    for name, value in found[0].items():
        assert torch.equal(value, found[1][name]), name
    half = weights_of(tmp_path / "frozen", "previous.ckpt")  # the end of the first epoch of two
    for name in ("network.stem.0.weight", "network.stem.1.bias"):
        assert torch.equal(half[name], found[0][name])
    assert not torch.equal(half["network.fc.weight"], found[0]["network.fc.weight"])


def test_until_with_a_schedule_of_torch_s_is_refused(lab: Lab, tmp_path: Path) -> None:
    status, _, err = lab(*TINY, EARLY, "scheduler=step")
    assert status == 2
    assert "optimizer.groups has an until" in err
    assert len(err.splitlines()) == 1
    assert not (tmp_path / "outputs").exists()


@pytest.mark.parametrize("until", ["0", "1.5", "soon", "-1"])
def test_until_is_a_share_of_the_fit(lab: Lab, tmp_path: Path, until: str) -> None:
    status, _, err = lab(*TINY, EARLY.replace("0.5", until))
    assert status == 2
    assert f"optimizer.groups.early.until={until}" in err


@pytest.mark.slow  # two processes that load torch
def test_two_processes_clip_what_one_does_after_a_group_has_ended(lab: Lab, tmp_path: Path) -> None:
    arguments = (
        *(a for a in SMALL if not a.startswith("callbacks")),
        *("callbacks=checkpoints", "model.dropout=0.0", "data.val_size=0"),
        "+optimizer.groups.early={parameters: 'classifier.*', until: 0.3}",
        "trainer.gradient_clip_val=0.1",
    )
    assert lab(*arguments, f"hydra.run.dir={tmp_path}/one")[0] == 0
    two = ("trainer=ddp", "trainer.accelerator=cpu", f"hydra.run.dir={tmp_path}/two")
    command = (sys.executable, "-m", "cifar_lab", *merged(*arguments, *two))
    done = subprocess.run(command, env=environment(), capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    one, both = weights(tmp_path / "one"), weights(tmp_path / "two")
    for name, value in one.items():
        torch.testing.assert_close(both[name], value, rtol=1e-4, atol=1e-6)
