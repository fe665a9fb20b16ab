"""What is unknown is answered with what was meant: other names, other options, flags, nodes."""

from __future__ import annotations

import argparse
import re
import shlex
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest
from hydra._internal.utils import get_args_parser

from cifar_lab.config import known_keys, messages
from cifar_lab.config.compose import compose, register
from cifar_lab.config.known_keys import said_of_unknown
from cifar_lab.config.overrides import flags_first
from cifar_lab.config.schema import conf_dir
from cifar_lab.config.validate import check
from cifar_lab.errors import InputError
from cifar_lab.run.networks import build_network
from tests.conftest import TINY, merged

Lab = Callable[..., tuple[int, str, str]]


def test_every_other_name_leads_to_a_key_a_group_or_an_option() -> None:
    register()
    known, *_ = known_keys.known("", ())
    for key, words in known_keys.OTHER_NAMES.items():
        group, chooses, option = key.partition("=")
        if chooses:
            assert (conf_dir() / group / f"{option}.yaml").is_file(), key
        else:
            assert key in known or key == "hydra.run.dir", key
        assert not set(words.split()) & set(known), key  # they are taken by nothing of ours
    every = " ".join(known_keys.OTHER_NAMES.values()).split()
    assert len(every) == len(set(every))


MEANT = {
    "trainer.gpus": "trainer.devices",
    "epochs": "trainer.max_epochs",
    "trainer.max-epochs": "trainer.max_epochs",
    "early_stopping": "callbacks=early_stopping",
    "model.pretrained": "init_from",
    "lr": "optimizer.lr",
    "dropuot": "model.dropout",
    "precision": "trainer.precision",
    "data.num_workers": "data.workers",
    "model.num_clases": "model.num_classes",
    "modle": "model",
}


@pytest.mark.parametrize("key", MEANT)
def test_the_key_that_is_meant_is_named(key: str) -> None:
    register()
    assert said_of_unknown(key, [f"{key}=1"]) == f" (did you mean {MEANT[key]}?)"


def test_what_was_typed_is_never_the_suggestion() -> None:
    register()
    for key in ("model.num_classes", "seed", "trainer.max_epochs"):
        assert f"mean {key}?" not in said_of_unknown(key, [f"{key}=1"])


@pytest.mark.parametrize(
    ("overrides", "line"),
    [
        (["model.num_blocks=[1,1]"], "with model=cnn (model=preact_resnet, resnet10 have it)"),
        (["model=resnet10", "model.dropout=.1"], "model=resnet10 (model=cnn, wide_resnet have it)"),
        (["callbacks.ema.decay=.9"], "with callbacks=default (callbacks=ema has it)"),
        (["data=synthetic", "data.root=x"], "(data=cifar10, cifar100, folders have it)"),
        (["scheduler.T_max=3"], "scheduler.T_max: unknown key; +scheduler.T_max=... adds it wher"),
        *(
            ([f"{key}=[1]"], f"{key}: unknown key; +{key}=... adds it where its _target_ takes it")
            for key in ("loss.weight", "augment.sizes", "augment.transforms.crop.fill")
        ),
        (
            ["scheduler={_target_: torch.optim.lr_scheduler.StepLR, step_size: 1, gamma: 0.1}"],
            "scheduler: unknown key in its dictionary, which adds none to the node; give "
            "+scheduler.step_size=... +scheduler.gamma=...; see --help",
        ),
        (["+callbacks=ema"], "give it without +: callbacks=ema"),
        (["debug=true"], "debug=true: must be the name of an option"),
        (["model=False"], "model=False: must be the name of an option"),
        (["epochs"], "epochs: must be key=value"),
    ],
)
def test_an_option_that_has_the_key_is_named(overrides: list[str], line: str) -> None:
    with pytest.raises(InputError, match=re.escape(line)):
        compose(overrides)


def test_keys_are_known_with_an_experiment_of_ones_own(tmp_path: Path) -> None:
    folder = tmp_path / "conf" / "experiment"
    folder.mkdir(parents=True)
    (folder / "mine.yaml").write_text("# @package _global_\nseed: 3\n")
    with pytest.raises(InputError, match=re.escape("data.roott: unknown key (did you mean data.")):
        compose(["experiment=mine", "data.roott=x"])
    model = tmp_path / "conf" / "model"
    model.mkdir()
    (model / "mine.yaml").write_text("defaults: [resnet10]\nextra: 1\n")
    with pytest.raises(InputError, match=r"with model=cnn \(model=mine has it\)"):
        compose(["model.extra=2"])


# --- flags ----------------------------------------------------------------------------------------


def test_the_flags_are_those_of_hydra() -> None:
    flags: list[str] = []

    class Collected(argparse.HelpFormatter):
        def add_arguments(self, actions: Iterable[argparse.Action]) -> None:
            flags.extend(flag for action in actions for flag in action.option_strings)

    parser = get_args_parser()
    parser.formatter_class = Collected
    parser.format_help()
    assert set(flags) == set(messages.FLAGS)


@pytest.mark.parametrize(
    ("flag", "said"),
    [
        ("--lr=0.1", "(did you mean optimizer.lr=0.1?)"),
        ("--epochs 5", "(did you mean trainer.max_epochs?)"),
        ("--batch-size=64", "(did you mean data.batch_size=64?)"),
        ("--model=cnn", "(did you mean model=cnn?)"),
        ("seed=1 --config x.yaml", "--config x.yaml: there is one root"),
        ("--confi x", "--confi: no such flag"),
        ("--multi-run", "(did you mean --multirun?)"),
        ("-e 5", "-e: no such flag;"),
    ],
)
def test_an_unknown_flag_is_one_line(lab: Lab, flag: str, said: str) -> None:
    status, out, err = lab(*flag.split())
    assert (status, out, len(err.splitlines())) == (2, "", 1)
    assert said in err


def test_another_root_is_refused_with_what_does_it_here(tmp_path: Path) -> None:
    for flags in (
        ["--config-name", "x"],
        ["-cn=x"],
        ["--config-path", str(tmp_path)],
        ["-cp"],
        ["--config", "x.yaml"],
    ):
        with pytest.raises(InputError, match="experiment=NAME"):
            messages.check_flags(flags)


def test_the_way_to_repeat_a_run_of_hydra_leads_to_its_command(lab: Lab, tmp_path: Path) -> None:
    assert lab(*TINY, "debug=fast", "seed=7", "hydra.run.dir=run")[0] == 0
    for flags in (
        ["--config-name", "config", "--config-path", "run/.hydra"],
        [f"--config-path={tmp_path}/run/.hydra", "--config-name=config"],
        ["--experimental-rerun", "run/.hydra/config.pickle"],
    ):
        status, _, err = lab(*flags)
        assert status == 2
        assert "run/.hydra" in err
        command = shlex.split(err.partition(" own: ")[2])
        assert command[:3] == ["python", "-m", "cifar_lab"]
        assert command[3:] == merged(*TINY, "debug=fast", "seed=7")
    status, _, err = lab("--config-path=run/.hydra", "--config-name=config", "seed=8")
    assert status == 2
    command = shlex.split(err.partition(" own: ")[2])
    assert command[3:] == merged(*TINY, "debug=fast", "seed=8")


@pytest.mark.parametrize(
    "flags",
    [
        *(["--cfg"], ["--cfg", "nonsense"], ["-c", "seed=1"], ["--info", "nonsense"]),
        *(["--resolve"], ["--resolve", "-m"], ["-sc"], ["-sc", "instal=bash"], ["--package"]),
    ],
    ids=str,
)
def test_what_a_flag_does_not_take_is_one_line(lab: Lab, flags: list[str]) -> None:
    status, out, err = lab(*flags)
    assert (status, out, len(err.splitlines())) == (2, "", 1)
    assert err.startswith("cifar_lab: ")


def test_flags_of_hydra_pass() -> None:
    messages.check_flags(flags_first(["seed=1", "-m", "--cfg", "job", "--multi", "-cd", "x"]))
    messages.check_flags(["-sc", "query=bash"])


# --- options and nodes ----------------------------------------------------------------------------


@pytest.mark.parametrize("group", messages.OF_A_LIBRARY)
def test_an_unknown_option_names_a_way_on_that_composes(group: str) -> None:
    with pytest.raises(InputError, match=f"conf/{group}/nothing.yaml") as refused:
        compose([f"{group}=nothing"])
    assert messages.OF_A_LIBRARY[group] in str(refused.value)
    example = messages.OF_A_LIBRARY[group].partition(", one of timm")[0]
    words = [word for word in example.split() if re.match(r"[+~]?[a-z]+[.=]", word)]
    if group == "data":
        words = ["data=folders", "data.root=x"]
    cfg = compose(words)
    check(cfg)
    if group == "model":
        build_network(cfg, 10, 32)


@pytest.mark.parametrize("option", ["SGD", "Sgd"])
def test_an_option_in_other_case_is_found(option: str) -> None:
    with pytest.raises(InputError, match=r"did you mean sgd\?"):
        compose([f"optimizer={option}"])


def test_what_another_target_leaves_is_said_as_it_is_removed() -> None:
    target = "optimizer._target_=torch.optim.Adam"
    with pytest.raises(InputError) as refused:
        check(compose([target]))
    removals = re.findall(r"~\S+", str(refused.value))
    assert removals == ["~optimizer.momentum", "~optimizer.nesterov"]
    check(compose([target, *removals]))


def test_names_of_several_types_are_one_list_without_repetition() -> None:
    with pytest.raises(InputError) as refused:
        check(compose(["trainer.precision=fp16"]))
    listed = str(refused.value).partition("must be ")[2].replace(" or ", ", ").split(", ")
    assert len(listed) == len(set(listed))
    assert {"16-mixed", "bf16-mixed", "null"} <= set(listed)


def test_an_unset_variable_is_named() -> None:
    with pytest.raises(InputError, match=r"data.root: Environment variable 'NOT_SET' not found"):
        check(compose(["data.root=${oc.env:NOT_SET}"]))
